"""What an authenticator says of itself, byte for byte (WebAuthn Level 3, 6.1)."""

from __future__ import annotations

from hashlib import sha256
from typing import Final

import msgspec

from riskgate_server.crypto.proofs import cbor
from riskgate_server.crypto.proofs.reading import Unreadable
from riskgate_server.domain.identity.devices import Fault, ProofRefused

HEADER_BYTES: Final = 37
CREDENTIAL_ID_BYTES_MAX: Final = 1023

_USER_PRESENT, _USER_VERIFIED, _BACKUP_ELIGIBLE, _BACKED_UP = 0x01, 0x04, 0x08, 0x10
_ATTESTED, _EXTENDED = 0x40, 0x80
_AAGUID_BYTES: Final = 16


class AuthenticatorData(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """As read. The last three are empty in an assertion."""

    rp_id_hash: bytes
    user_present: bool
    user_verified: bool
    backup_eligible: bool
    backed_up: bool
    sign_count: int
    aaguid: bytes = b""
    webauthn_id: bytes = b""
    cose_key: bytes = b""


def read(data: bytes, *, registration: bool) -> AuthenticatorData:
    """
    Take authenticator data apart, to its last byte.

    Args:
        data: the bytes as they were signed.
        registration: it must carry a new key; otherwise it must not.

    Raises:
        Unreadable: a part is missing, cut short, or there are bytes after the last.
    """
    if len(data) < HEADER_BYTES:
        raise Unreadable(f"authenticator data of less than {HEADER_BYTES} bytes")
    flags = data[32]
    at = HEADER_BYTES
    aaguid = webauthn_id = cose_key = b""
    if bool(flags & _ATTESTED) != registration:
        raise Unreadable("a key where none belongs, or none where one does, in authenticator data")
    if registration:
        length = int.from_bytes(data[at + _AAGUID_BYTES : at + _AAGUID_BYTES + 2], "big")
        begin = at + _AAGUID_BYTES + 2
        if not 1 <= length <= CREDENTIAL_ID_BYTES_MAX or begin + length > len(data):
            raise Unreadable("the credential id in authenticator data is empty, too long or cut short")
        aaguid, webauthn_id = data[at : at + _AAGUID_BYTES], data[begin : begin + length]
        at = cbor.item_end(data, begin + length)
        cose_key = data[begin + length : at]
    if flags & _EXTENDED:
        extensions, at = cbor.decode_first(data, at)
        if type(extensions) is not dict:
            raise Unreadable("extensions in authenticator data that are not a map")
    if at != len(data):
        raise Unreadable("bytes after the end of authenticator data")
    return AuthenticatorData(
        rp_id_hash=data[:32],
        user_present=bool(flags & _USER_PRESENT),
        user_verified=bool(flags & _USER_VERIFIED),
        backup_eligible=bool(flags & _BACKUP_ELIGIBLE),
        backed_up=bool(flags & _BACKED_UP),
        sign_count=int.from_bytes(data[33:37], "big"),
        aaguid=aaguid,
        webauthn_id=webauthn_id,
        cose_key=cose_key,
    )


def check(data: AuthenticatorData, *, rp_id: str, user_verification: bool, credential_id: str = "") -> None:
    """
    Hold what it says against what was asked.

    Raises:
        ProofRefused: for another site, without the user, or with flags that contradict each other.
    """
    if data.rp_id_hash != sha256(rp_id.encode()).digest():
        raise ProofRefused(Fault.RP_WRONG, credential_id)
    if not data.user_present:
        raise ProofRefused(Fault.USER_ABSENT, credential_id)
    if user_verification and not data.user_verified:
        raise ProofRefused(Fault.USER_NOT_VERIFIED, credential_id)
    if data.backed_up and not data.backup_eligible:
        raise ProofRefused(Fault.BACKUP_FLAGS_WRONG, credential_id)
