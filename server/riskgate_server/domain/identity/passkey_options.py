"""What a browser or a phone's credential manager is told to make or use a passkey (WebAuthn Level 3, 5.4 and 5.5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from riskgate_server.domain.identity.challenges import base64url
from riskgate_server.domain.identity.devices import Algorithm, ProofPolicy

USER_HANDLE_BYTES_MAX: Final = 64
"""Bytes of `user.id`. It must say nothing about the person (WebAuthn, 14.6.1)."""

OFFERED: Final = (Algorithm.ES256, Algorithm.EDDSA, Algorithm.RS256, Algorithm.ES512)
"""Algorithms a new passkey may have, the preferred first; the last is what some security keys offer."""


def creation_options(
    policy: ProofPolicy,
    *,
    challenge: bytes,
    user_handle: bytes,
    user_name: str,
    exclude: Sequence[bytes] = (),
    timeout_seconds: int,
) -> str:
    """Return the options of `navigator.credentials.create()` as JSON. `exclude` names passkeys the customer has."""
    assert 1 <= len(user_handle) <= USER_HANDLE_BYTES_MAX
    return _json(
        {
            "rp": {"id": policy.rp_id, "name": policy.rp_name},
            "user": {"id": base64url(user_handle), "name": user_name, "displayName": user_name},
            "challenge": base64url(challenge),
            "pubKeyCredParams": [{"type": "public-key", "alg": int(algorithm)} for algorithm in OFFERED],
            "timeout": timeout_seconds * 1000,
            "excludeCredentials": _named(exclude),
            "authenticatorSelection": {
                "residentKey": "preferred",
                "requireResidentKey": False,
                "userVerification": "required",
            },
            "attestation": "none",
        }
    )


def request_options(policy: ProofPolicy, *, challenge: bytes, allow: Sequence[bytes], timeout_seconds: int) -> str:
    """Return the options of `navigator.credentials.get()` as JSON. `allow` names the passkeys that may answer."""
    return _json(
        {
            "challenge": base64url(challenge),
            "timeout": timeout_seconds * 1000,
            "rpId": policy.rp_id,
            "allowCredentials": _named(allow),
            "userVerification": "required",
        }
    )


def _named(ids: Sequence[bytes]) -> list[dict[str, str]]:
    return [{"type": "public-key", "id": base64url(webauthn_id)} for webauthn_id in ids]


def _json(options: dict[str, object]) -> str:
    return msgspec.json.encode(options).decode()
