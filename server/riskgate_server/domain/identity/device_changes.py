"""How what happens to a customer's devices changes what they can prove themselves with; proofs are in `identity.py`."""

from __future__ import annotations

from typing import Final

import msgspec

from riskgate_server.domain.identity import events
from riskgate_server.domain.identity.devices import Algorithm, DeviceKey
from riskgate_server.domain.identity.enrolled import Device, DeviceChallenge, Enrolment
from riskgate_server.domain.identity.events import IdentitySecrets
from riskgate_server.domain.identity.identity import (
    CHALLENGES_KEPT,
    DEVICE_CHALLENGES_KEPT,
    DEVICES_KEPT,
    Evolver,
    Identity,
    ended,
    newest,
    without_begun,
    without_pending,
    without_source,
)

replace = msgspec.structs.replace


def _enrolment_begun(
    identity: Identity, event: events.EnrolmentBegun, _at_us: int, secrets: IdentitySecrets | None
) -> Identity:
    # Of an erased customer nothing is left to read.
    known = secrets if isinstance(secrets, events.EnrolmentSecrets) else events.EnrolmentSecrets(b"", "")
    begun = Enrolment(
        challenge_id=event.enrolment_id,
        platform=event.platform,
        nonce=known.nonce,
        display_name=known.display_name,
        granted=event.granted,
        expires_us=event.expires_us,
    )
    return replace(identity, enrolments=newest(identity.enrolments, begun, CHALLENGES_KEPT))


def _device_enrolled(
    identity: Identity, event: events.DeviceEnrolled, at_us: int, secrets: IdentitySecrets | None
) -> Identity:
    unknown = DeviceKey(event.platform, Algorithm.ES256, b"")
    enrolment = identity.enrolment(event.enrolment_id)
    device = Device(
        credential_id=event.credential_id,
        key=secrets.key if isinstance(secrets, events.DeviceSecrets) else unknown,
        assurance=event.assurance,
        display_name=enrolment.display_name,
        marks=event.marks,
        enrolled_us=at_us,
        full_strength_us=event.full_strength_us,
    )
    if not identity.bound:
        # From now on a grant is needed, and what waits beside the first has none.
        identity = without_pending(identity)
    return replace(
        identity,
        devices=(*identity.devices, device),
        # Whoever comes back stands again, under another name.
        revoked=tuple(known for known in identity.revoked if not set(known.marks) & set(device.marks)),
        enrolments=ended(identity.enrolments, event.enrolment_id, "CHALLENGE_USED"),
    )


def _devices_revoked(
    identity: Identity, event: events.DevicesRevoked, _at_us: int, _secrets: IdentitySecrets | None
) -> Identity:
    gone = tuple(device for device in identity.devices if device.credential_id in event.credential_ids)
    left = tuple(device for device in identity.devices if device not in gone)
    names = {device.credential_id for device in left}
    return replace(
        without_begun(identity),
        devices=left,
        revoked=(*identity.revoked, *gone)[-DEVICES_KEPT:],
        challenges=tuple(
            c if names.intersection(c.credential_ids) else replace(c, ended=c.ended or "DEVICE_REVOKED")
            for c in identity.challenges
        ),
        grants=without_source(identity.grants, *event.credential_ids),
    )


def _challenge_issued(
    identity: Identity, event: events.ChallengeIssued, _at_us: int, secrets: IdentitySecrets | None
) -> Identity:
    known = secrets if isinstance(secrets, events.ChallengeSecrets) else events.ChallengeSecrets(b"", None)
    issued = DeviceChallenge(
        challenge_id=event.challenge_id,
        use=event.use,
        credential_ids=event.credential_ids,
        nonce=known.nonce,
        transaction=known.transaction,
        expires_us=event.expires_us,
    )
    return replace(identity, challenges=newest(identity.challenges, issued, DEVICE_CHALLENGES_KEPT))


EVOLVERS: Final[dict[type, Evolver]] = {
    events.EnrolmentBegun: _enrolment_begun,
    events.DeviceEnrolled: _device_enrolled,
    events.DevicesRevoked: _devices_revoked,
    events.ChallengeIssued: _challenge_issued,
}
