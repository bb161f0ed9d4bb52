"""Commands of a customer's devices: nothing is signed, for a verdict reaches the engine as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256
from random import Random
from typing import Any, Final

from riskgate_server.domain.identity.devices import (
    Algorithm,
    Assurance,
    DeviceKey,
    Fault,
    Platform,
    ProofVerdict,
    RegistrationVerdict,
)
from riskgate_server.domain.identity.enrolled import (
    Device,
    DeviceChallenge,
    Enrolment,
    ProofFault,
    challenge_judged,
    enrolment_judged,
)
from riskgate_server.domain.identity.grants import Purpose
from riskgate_server.engine import commands as c
from riskgate_server.engine.replies import ChallengeReply, DeviceReply, EnrolmentReply, Refusal, Reply, RevokedReply

Place = dict[str, Any]
KINDS: Final = (
    *("begin_enrolment",) * 2, *("finish_enrolment",) * 3, *("begin_challenge",) * 4, *("verify_challenge",) * 6,
    "revoke_device", "revoke_all",
)  # fmt: skip
STRONG: Final = Assurance(device_bound=True, hardware_backed=True, attested=True, user_verified_per_use=True)
PLAIN: Final = Assurance(device_bound=False)
KEPT_MAX: Final = 4


@dataclass
class Devices:
    """What one customer's devices were asked, and who they are; the latest last."""

    enrolments: list[Enrolment] = field(default_factory=list)
    challenges: list[DeviceChallenge] = field(default_factory=list)
    registered: dict[str, Device] = field(default_factory=dict)
    offered: dict[str, DeviceKey] = field(default_factory=dict)
    """The key that was shown for an enrolment."""


class DeviceSource:
    """Makes commands from chance and from what was answered before."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._shown = 0
        self.devices: dict[tuple[str, str], Devices] = {}

    def next(self, key: tuple[str, str], request_id: str, *, waiting: str, grant: bytes) -> c.Command:
        """
        One command for a customer.

        Args:
            waiting: a purchase that waits for a proof.
            grant: the mark of a grant that may bind a device.
        """
        who = self.devices.setdefault(key, Devices())
        kind = self._random.choice(KINDS)
        if not who.registered and self._chance(0.8):
            kind = "finish_enrolment" if who.enrolments else "begin_enrolment"
        elif who.challenges and self._chance(0.4):
            kind = "verify_challenge"
        place = {"tenant_id": key[0], "customer_id": key[1], "request_id": request_id}
        if kind == "begin_enrolment":
            platform = self._random.choice(list(Platform))
            return _made(c.BeginEnrolment, place, platform=platform, display_name="phone", grant=grant)
        if kind == "begin_challenge":
            purpose = self._random.choice((Purpose.TRANSACTION, Purpose.SIGN_IN, Purpose.BINDING, Purpose.UNLOCK))
            names = tuple(who.registered)[-1:] if self._chance(0.4) else ()
            about = waiting if purpose is Purpose.TRANSACTION else ""
            return _made(c.BeginChallenge, place, purpose=purpose, transaction_id=about, credential_ids=names)
        made: c.Command = getattr(self, f"_{kind}")(who, place)
        return made

    def heard(self, command: c.Command, reply: Reply) -> None:
        """Learn from an answer."""
        who = self.devices.setdefault(command.key, Devices())
        if not (isinstance(reply, Refusal) and reply.reason == "PROOF_WRONG"):
            # It will not be accepted again: repeated requests try it all the same.
            if isinstance(command, c.FinishEnrolment):
                who.enrolments = [asked for asked in who.enrolments if asked.challenge_id != command.enrolment_id]
            elif isinstance(command, c.VerifyChallenge):
                who.challenges = [asked for asked in who.challenges if asked.challenge_id != command.challenge_id]
        if isinstance(reply, EnrolmentReply):
            _keep(who.enrolments, reply.enrolment)
        elif isinstance(reply, ChallengeReply):
            _keep(who.challenges, reply.challenge)
        elif isinstance(reply, DeviceReply) and isinstance(command, c.FinishEnrolment):
            shown, key = reply.device, who.offered.get(command.enrolment_id)
            if key is not None:
                who.registered[shown.credential_id] = Device(
                    shown.credential_id, key, shown.assurance, shown.display_name, command.marks, shown.enrolled_us, 0
                )
        elif isinstance(reply, RevokedReply):
            for credential_id in reply.ids:
                who.registered.pop(credential_id, None)

    def _chance(self, share: float) -> bool:
        return self._random.random() < share

    def _finish_enrolment(self, who: Devices, place: Place) -> c.Command:
        if not who.enrolments or self._chance(0.05):
            return _made(c.FinishEnrolment, place, enrolment_id="e", found=None, judged=b"", marks=())
        asked = self._random.choice(who.enrolments)
        judged = enrolment_judged(asked) if self._chance(0.95) else b"another"
        if self._chance(0.2):
            fault = ProofFault(Fault.SIGNATURE_WRONG)
            return _made(
                c.FinishEnrolment, place, enrolment_id=asked.challenge_id, found=fault, judged=judged, marks=()
            )
        # Few keys, so that one is shown again, by its owner or by somebody else.
        public_key = b"key %d" % self._random.randrange(400)
        who.offered[asked.challenge_id] = key = DeviceKey(asked.platform, Algorithm.ES256, public_key)
        found = RegistrationVerdict(
            key=key,
            assurance=self._random.choice((STRONG, PLAIN)),
            fingerprint=sha256(public_key).digest(),
            challenge=asked.nonce,
            attestation="none",
        )
        marks = (sha256(place["tenant_id"].encode() + public_key).digest()[:16],)
        return _made(c.FinishEnrolment, place, enrolment_id=asked.challenge_id, found=found, judged=judged, marks=marks)

    def _verify_challenge(self, who: Devices, place: Place) -> c.Command:
        if not who.challenges or self._chance(0.05):
            return _made(c.VerifyChallenge, place, challenge_id="c", found=None, judged=b"")
        asked = who.challenges[-1] if self._chance(0.8) else self._random.choice(who.challenges)
        device = who.registered.get(self._random.choice(asked.credential_ids))
        judged = challenge_judged(asked, device) if self._chance(0.95) else b"another"
        claimed = device.credential_id if device else ""
        found: ProofVerdict | ProofFault = ProofFault(Fault.SIGNATURE_WRONG, claimed)
        if device and self._chance(0.8):
            self._shown += 1
            # Counters grow, but for the copy of a key.
            found = ProofVerdict(
                credential_id=claimed,
                challenge=asked.nonce,
                digest=sha256(asked.nonce).digest(),
                sign_count=self._shown if self._chance(0.9) else 1,
                user_verified=self._chance(0.95),
                device_bound=True,
            )
        return _made(c.VerifyChallenge, place, challenge_id=asked.challenge_id, found=found, judged=judged)

    def _revoke_device(self, who: Devices, place: Place) -> c.Command:
        if who.registered and self._chance(0.7):
            return self._verify_challenge(who, place)
        name = self._random.choice(list(who.registered) or ["nobody's"])
        return _made(c.RevokeDevice, place, credential_id=name, reason_code="LOST", actor_id="olga")

    def _revoke_all(self, who: Devices, place: Place) -> c.Command:
        if self._chance(0.8):
            return self._verify_challenge(who, place)
        return _made(c.RevokeAllDevices, place, reason_code="LOST", actor_id="olga")


def _made(kind: type[c.Command], place: Place, **fields: Any) -> c.Command:
    return kind(**place, fingerprint=f"{kind.__name__} {sorted(fields.items())}".encode(), **fields)


def _keep(known: list[Any], new: Any) -> None:
    known.append(new)
    del known[:-KEPT_MAX]
