"""
What can happen to a customer's proofs, as written for ever.

Tags go on where `domain/events.py` stops, and the same rule holds: fields may be added at the end with a default. No
event has a code, a seed, a number or a token in clear: what is secret is sealed, or is not there at all.

`told` is on how many phones the customer is told of it: so many messages wait in the store from this commit on, named
by the entry (`engine.messages`).
"""

from __future__ import annotations

import msgspec

from riskgate_server.domain.identity.challenges import Transaction
from riskgate_server.domain.identity.devices import Assurance, DeviceKey, Platform
from riskgate_server.domain.identity.grants import Method, Source, Use


class FactorEnrolled(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=17):
    """A factor was registered; it proves nothing yet. With `FactorSecrets`."""

    factor_id: str
    method: Method
    mark: bytes
    prefix: bytes
    expires_us: int


class FactorConfirmed(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=18):
    """A first right code made a factor usable. `step` is the accepted one of an authenticator app."""

    factor_id: str
    challenge_id: str
    step: int
    full_strength_us: int
    told: int = 0


class FactorRevoked(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=19):
    """A factor became worthless."""

    factor_id: str
    reason_code: str
    actor_id: str
    told: int = 0


class CodeSent(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=20):
    """
    A code was sent, or the same code again.

    `message_id` names the message; it waits in the store from this commit on.
    """

    challenge_id: str
    factor_id: str
    use: Use
    key_id: int
    expires_us: int
    resend_us: int
    message_id: str
    again: bool = False


class CodeUnsent(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=21):
    """A message with a code could not be delivered: it does not count against the customer's budget."""

    challenge_id: str
    message_id: str


class ProofFailed(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=22):
    """
    A wrong proof. `reason` says what was wrong, to nobody outside: the name of a `Fault`, or CODE_WRONG.

    The source's id is empty when a device's answer does not say, or wrongly says, whose it is.
    """

    source: Source
    challenge_id: str
    reason: str
    failures: int
    locked_until_us: int
    burned: bool = False


class ProofPassed(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=23):
    """
    A right proof, and the grant that came of it.

    Attributes:
        mark: SHA-256 of the grant's token.
        sources: everything the grant rests on, this proof last.
        replaces: mark of the grant that it strengthened and took the place of; empty for none.
        step: the accepted step of an authenticator app.
        spent_code: keyed hash of the recovery code that it spent.
        sign_count: the counter that a device showed, 0 for keys without one; `app_sign_count` that of App Attest.
        regressed: it had not grown, as that of a key with copies need not.
    """

    source: Source
    challenge_id: str
    use: Use
    level: int
    sources: tuple[Source, ...]
    mark: bytes
    expires_us: int
    replaces: bytes = b""
    step: int = 0
    spent_code: bytes = b""
    sign_count: int = 0
    app_sign_count: int = 0
    regressed: bool = False


class GrantSpent(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=24):
    """A grant was used up: by what it was for, or destroyed because it was offered for something else."""

    mark: bytes
    use: Use
    level: int
    destroyed: str = ""


class RecoveryCodesMade(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=25):
    """Recovery codes were made, and older ones became worthless. With `RecoverySecrets`."""

    factor_id: str
    full_strength_us: int
    told: int = 0


class MessageSettled(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=26):
    """A message was delivered, or given up; it waits no longer."""

    message_id: str
    outcome: str


class EnrolmentBegun(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=27):
    """A new device was asked to prove that it has a key. With `EnrolmentSecrets`."""

    enrolment_id: str
    platform: Platform
    expires_us: int
    granted: bool


class DeviceEnrolled(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=28):
    """
    A device's key was registered. With `DeviceSecrets`.

    `marks` are keyed hashes of the key and of a passkey's id; `attestation` is the format of what vouches for it.
    """

    credential_id: str
    enrolment_id: str
    platform: Platform
    marks: tuple[bytes, ...]
    assurance: Assurance
    attestation: str
    full_strength_us: int
    told: int = 0


class DevicesRevoked(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=29):
    """Devices became worthless, and all that was only being bound; `every` says that none was left out, if any."""

    credential_ids: tuple[str, ...]
    reason_code: str
    actor_id: str
    every: bool
    told: int = 0


class ChallengeIssued(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=30):
    """Devices were asked for a proof. With `ChallengeSecrets`."""

    challenge_id: str
    use: Use
    credential_ids: tuple[str, ...]
    expires_us: int


IdentityEvent = (
    FactorEnrolled
    | FactorConfirmed
    | FactorRevoked
    | CodeSent
    | CodeUnsent
    | ProofFailed
    | ProofPassed
    | GrantSpent
    | RecoveryCodesMade
    | MessageSettled
    | EnrolmentBegun
    | DeviceEnrolled
    | DevicesRevoked
    | ChallengeIssued
)


class FactorSecrets(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=3):
    """What of a factor is the customer's own: the number or the seed, and what it is called."""

    secret: bytes
    display_name: str
    region: str


class RecoverySecrets(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=4):
    """Keyed hashes of recovery codes."""

    codes: tuple[bytes, ...]


class EnrolmentSecrets(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=5):
    """What a new device was asked, and what the customer calls it."""

    nonce: bytes
    display_name: str


class DeviceSecrets(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=6):
    """The key of a device, and the model of a passkey's authenticator (AAGUID)."""

    key: DeviceKey
    aaguid: bytes


class ChallengeSecrets(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=7):
    """What devices were asked."""

    nonce: bytes
    transaction: Transaction | None


IdentitySecrets = FactorSecrets | RecoverySecrets | EnrolmentSecrets | DeviceSecrets | ChallengeSecrets
