"""What a browser or phone says it was asked, and by which page or app (WebAuthn Level 3, 5.8.1)."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from riskgate_server.crypto.proofs.reading import Unreadable, json_object, text_of
from riskgate_server.domain.identity.challenges import base64url
from riskgate_server.domain.identity.devices import Fault, ProofPolicy, ProofRefused

CLIENT_DATA_BYTES_MAX: Final = 4096

CREATE: Final = "webauthn.create"
GET: Final = "webauthn.get"
PAYMENT: Final = "payment.get"


class ClientData(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """As read. `payment` is absent but in Secure Payment Confirmation."""

    type: str
    challenge: str
    origin: str
    embedded: bool
    """Shown inside a page of another site, or does not deny it in a way we know."""
    payment: dict[str, Any] | None


def read(data: bytes) -> ClientData:
    """
    Read client data, which may have names that nobody knows yet.

    Raises:
        Unreadable: it is not strict JSON of at most 4 KiB, or a part is of the wrong type.
    """
    fields = json_object(data, bytes_max=CLIENT_DATA_BYTES_MAX)
    for name in ("type", "challenge", "origin"):
        if name not in fields:
            raise Unreadable(f"client data without {name}")
    cross_origin, payment = fields.get("crossOrigin", False), fields.get("payment")
    if type(cross_origin) is not bool:
        raise Unreadable("crossOrigin must be true or false")
    if payment is not None and type(payment) is not dict:
        raise Unreadable("payment must be an object")
    return ClientData(
        type=text_of(fields["type"], "type"),
        challenge=text_of(fields["challenge"], "challenge"),
        origin=text_of(fields["origin"], "origin"),
        embedded=cross_origin or "topOrigin" in fields,
        payment=payment,
    )


def check(data: ClientData, *, type: str, challenge: bytes, policy: ProofPolicy, credential_id: str = "") -> None:
    """
    Hold what it says against what was asked.

    Raises:
        ProofRefused: made for another ceremony, challenge, page or app, or inside another site's page.
    """
    if data.type != type:
        raise ProofRefused(Fault.TYPE_WRONG, credential_id)
    # As text: any other spelling of the same bytes was not made by a browser.
    if data.challenge != base64url(challenge):
        raise ProofRefused(Fault.CHALLENGE_WRONG, credential_id)
    if data.origin not in policy.origins:
        raise ProofRefused(Fault.ORIGIN_UNKNOWN, credential_id)
    if data.embedded:
        raise ProofRefused(Fault.CROSS_ORIGIN, credential_id)
