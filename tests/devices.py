"""The bank of `tests.bank` whose customer has devices: they sign for real, and the edge verifies as it does live."""

from __future__ import annotations

from hashlib import sha256
from typing import Any, Final

from riskgate_client.phone import AndroidPhone, IPhone, JoseApp, Passkey
from riskgate_server.crypto.proofs import ProofVerifier
from riskgate_server.crypto.seal import Sealer
from riskgate_server.domain.identity import challenges
from riskgate_server.domain.identity.devices import (
    CompactJWS,
    KeySignature,
    PasskeyAssertion,
    PasskeyRegistration,
    Platform,
    Proof,
    ProofPolicy,
    RawKeyRegistration,
    Registration,
)
from riskgate_server.domain.identity.enrolled import challenge_asked, enrolment_asked
from riskgate_server.domain.identity.grants import Purpose
from riskgate_server.domain.identity.identity import Identity
from riskgate_server.domain.identity.passkey_options import creation_options, request_options
from riskgate_server.engine import commands as c
from riskgate_server.engine.judging import Judge
from riskgate_server.engine.queries import Queries
from riskgate_server.engine.replies import ChallengeReply, DeviceReply, EnrolmentReply, Reply
from riskgate_server.engine.storing import Store
from tests import factories as f
from tests.bank import KEY, Bank
from tests.unit.crypto.proofs.asking import NOW_US
from tests.unit.crypto.proofs.makers import TRUST

WEB: Final = "https://bank.example"
POLICY: Final = ProofPolicy(
    rp_id="bank.example", rp_name="Bank", origins=(WEB,), audience="bank", apple_app_ids=("TEAM123456.com.bank.app",)
)

AnyDevice = AndroidPhone | IPhone | JoseApp | Passkey


def mark(tenant_id: str, kind: str, value: str) -> bytes:
    return sha256(f"{tenant_id} {kind} {value}".encode()).digest()[:16]


def platform_of(device: AnyDevice) -> Platform:
    match device:
        case AndroidPhone():
            return Platform.ANDROID_KEYSTORE
        case IPhone():
            return Platform.IOS_SECURE_ENCLAVE
        case JoseApp():
            return Platform.JOSE
    return Platform.WEBAUTHN


class DeviceBank(Bank):
    """What the edge and a customer's devices do between the commands."""

    def __init__(self, store: Store | None = None) -> None:
        super().__init__(store)
        # When the makers' certificates of the tests are good.
        self.clock.us = NOW_US
        self.queries = Queries(
            self.store, vault=self.vault, sealer=Sealer(), clock=self.clock, rulesets=lambda _: f.ChosenRules()
        )
        self.judge = Judge(self.queries, ProofVerifier(TRUST), POLICY, mark)

    def begin(self, device: AnyDevice, grant: bytes = b"", **whose: str) -> EnrolmentReply:
        reply = self.ask(
            c.BeginEnrolment, platform=platform_of(device), display_name="Ada's phone", grant=grant, **whose
        )
        assert isinstance(reply, EnrolmentReply), reply
        return reply

    def registration(self, device: AnyDevice, begun: EnrolmentReply) -> Registration:
        """What a device answers."""
        asked = enrolment_asked(begun.key, begun.enrolment, POLICY.audience)
        challenge = challenges.challenge(asked)
        if isinstance(device, Passkey):
            options = creation_options(
                POLICY, challenge=challenge, user_handle=b"ada", user_name="Ada", timeout_seconds=600
            )
            return PasskeyRegistration(device.create(options))
        signing_input = challenges.signing_input(asked)
        key = (
            device.enrol(signing_input, challenge) if isinstance(device, AndroidPhone) else device.enrol(signing_input)
        )
        return RawKeyRegistration(key.public_key, key.signature, key.android_chain)

    def finish(self, begun: EnrolmentReply, answer: Registration, request_id: str = "") -> Reply:
        judged = self.judge.registration(begun.key, begun.enrolment.challenge_id, answer)
        return self.ask(
            c.FinishEnrolment,
            request_id,
            customer_id=begun.key[1],
            enrolment_id=begun.enrolment.challenge_id,
            found=judged.found,
            judged=judged.judged,
            marks=judged.marks,
        )

    def enrol(self, device: AnyDevice, grant: bytes = b"", **whose: str) -> str:
        """A registered device's credential id."""
        begun = self.begin(device, grant, **whose)
        reply = self.finish(begun, self.registration(device, begun))
        assert isinstance(reply, DeviceReply), reply
        return reply.device.credential_id

    def begin_proof(
        self, purpose: Purpose = Purpose.SIGN_IN, transaction_id: str = "", names: tuple[str, ...] = (), **whose: str
    ) -> Reply:
        return self.ask(c.BeginChallenge, purpose=purpose, transaction_id=transaction_id, credential_ids=names, **whose)

    def asked(
        self, purpose: Purpose = Purpose.SIGN_IN, transaction_id: str = "", names: tuple[str, ...] = (), **whose: str
    ) -> ChallengeReply:
        reply = self.begin_proof(purpose, transaction_id, names, **whose)
        assert isinstance(reply, ChallengeReply), reply
        return reply

    def answer(self, device: AnyDevice, asked: ChallengeReply, credential_id: str = "") -> Proof:
        """What a device answers; by default in the name of the first that was asked."""
        said = challenge_asked(asked.key, asked.challenge, POLICY.audience)
        signing_input = challenges.signing_input(said)
        credential_id = credential_id or asked.challenge.credential_ids[0]
        if isinstance(device, Passkey):
            options = request_options(
                POLICY, challenge=challenges.challenge(said), allow=asked.passkeys, timeout_seconds=120
            )
            return PasskeyAssertion(device.get(options))
        if isinstance(device, JoseApp):
            return CompactJWS(device.sign(signing_input, credential_id))
        return KeySignature(credential_id, device.sign(signing_input))

    def judged(self, challenge_id: str, proof: Proof, key: tuple[str, str] = KEY) -> dict[str, Any]:
        """The fields of a command, as of now."""
        judged = self.judge.proof(key, challenge_id, proof)
        return {"challenge_id": challenge_id, "found": judged.found, "judged": judged.judged}

    def prove(self, challenge_id: str, proof: Proof, request_id: str = "", **whose: str) -> Reply:
        key = (f.TENANT, whose.get("customer_id", f.CUSTOMER))
        return self.ask(c.VerifyChallenge, request_id, **self.judged(challenge_id, proof, key), **whose)

    def proven(self, device: AnyDevice, asked: ChallengeReply, request_id: str = "") -> Reply:
        """The answer of a device to what it was asked, counted."""
        return self.prove(asked.challenge.challenge_id, self.answer(device, asked), request_id)

    def revoke(self, credential_id: str) -> Reply:
        return self.ask(c.RevokeDevice, credential_id=credential_id, reason_code="PHONE_STOLEN", actor_id="olga")

    def identity(self) -> Identity:
        return self.queries.identity(KEY)[0]
