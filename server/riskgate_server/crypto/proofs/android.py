"""
Android key attestation: a chain of certificates whose leaf describes a key of the Android Keystore.

https://source.android.com/docs/security/features/keystore/attestation. The secure hardware writes the leaf, and only
the leaf, with the extension that describes the key: where it lives, who may use it, how the phone started.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from typing import Final

import msgspec
from cryptography import x509
from cryptography.hazmat import asn1

from riskgate_server.crypto.proofs import chains
from riskgate_server.crypto.proofs.reading import Unreadable
from riskgate_server.domain.identity.devices import AndroidApp, BootState, Fault, ProofRefused

KEY_DESCRIPTION: Final = "1.3.6.1.4.1.11129.2.1.17"

# Tags of an authorization list that are judged here, as they are encoded: [n] EXPLICIT.
_PURPOSE, _ALGORITHM, _KEY_SIZE, _CURVE = (bytes([0xA0 | tag]) for tag in (1, 2, 3, 10))
_NO_AUTH_REQUIRED, _USER_AUTH_TYPE, _AUTH_TIMEOUT = (bytes.fromhex(tag) for tag in ("bf8377", "bf8378", "bf8379"))
_ALL_APPLICATIONS, _ORIGIN, _ROOT_OF_TRUST = (bytes.fromhex(tag) for tag in ("bf8458", "bf853e", "bf8540"))
_APPLICATION_ID: Final = bytes.fromhex("bf8545")

_SOFTWARE: Final = 0
_LEVELS: Final = range(3)
_SIGN: Final = 2
_EC, _P256, _P256_BITS = 3, 1, 256
_GENERATED: Final = 0
_BOOT_STATES: Final = (BootState.VERIFIED, BootState.SELF_SIGNED, BootState.UNVERIFIED, BootState.UNVERIFIED)
"""As the hardware numbers them: verified, self-signed, unverified, failed."""

_ENUMERATED: Final = b"\x0a"
_SEQUENCE: Final = 0x30
_SHORT_LENGTH_MAX: Final = 127


@asn1.sequence
class _KeyDescription:
    attestation_version: int
    attestation_level: asn1.TLV
    keymint_version: int
    keymint_level: asn1.TLV
    challenge: bytes
    unique_id: bytes
    software_enforced: list[asn1.TLV]
    hardware_enforced: list[asn1.TLV]


@asn1.sequence
class _RootOfTrust:
    verified_boot_key: bytes
    device_locked: bool
    verified_boot_state: asn1.TLV
    verified_boot_hash: bytes | None


@asn1.sequence
class _Purposes:
    purposes: asn1.SetOf[int]


@asn1.sequence
class _Package:
    name: bytes
    version: int


@asn1.sequence
class _ApplicationId:
    packages: asn1.SetOf[_Package]
    signatures: asn1.SetOf[bytes]


class KeyDescription(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """
    What the hardware says of a key.

    Attributes:
        in_hardware: both the key and the attestation were made outside Android: in a TEE or a StrongBox.
        challenge: what the app passed on when it made the key.
        generated: made there, not brought in.
        signs_p256: an ECDSA key on P-256 that may sign.
        guarded: every single use needs the user.
        scoped: no other app may use it.
        boot_state, locked: how the phone started; UNATTESTED where the hardware does not say.
        apps: packages and signers that asked for the key, as Android says.
    """

    in_hardware: bool
    challenge: bytes
    generated: bool
    signs_p256: bool
    guarded: bool
    scoped: bool
    boot_state: BootState
    locked: bool
    apps: tuple[AndroidApp, ...]


def check(
    ders: Sequence[bytes],
    *,
    spki: bytes,
    challenge: bytes,
    root_keys: Collection[bytes],
    revoked: Collection[int],
    now_us: int,
) -> KeyDescription:
    """
    Check that a phone's hardware vouches for the key `spki`, for this enrolment.

    Raises:
        Unreadable: the chain or the description of the key is not what it must be.
        ProofRefused: it is, and does not hold.
    """
    certificates = chains.read(ders)
    chains.check(certificates, root_keys=root_keys, revoked=revoked, now_us=now_us)
    if any(chains.extension(certificate, KEY_DESCRIPTION) is not None for certificate in certificates[1:]):
        # Whoever holds an attested key could describe another one below it.
        raise ProofRefused(Fault.ATTESTATION_WRONG)
    if chains.spki_of(certificates[0]) != spki:
        raise ProofRefused(Fault.ATTESTATION_WRONG)
    found = describe(certificates[0])
    if found.challenge != challenge:
        raise ProofRefused(Fault.ATTESTATION_CHALLENGE_WRONG)
    if not found.in_hardware:
        raise ProofRefused(Fault.KEY_NOT_IN_HARDWARE)
    if not found.generated or not found.signs_p256 or not found.scoped:
        raise ProofRefused(Fault.KEY_NOT_GENERATED_THERE)
    if not found.locked or found.boot_state not in {BootState.VERIFIED, BootState.SELF_SIGNED}:
        raise ProofRefused(Fault.BOOT_NOT_VERIFIED)
    return found


def describe(leaf: x509.Certificate) -> KeyDescription:
    """
    Read the description of the key that a certificate is for.

    Raises:
        Unreadable: there is none, or it is not DER of its form.
    """
    extension = chains.extension(leaf, KEY_DESCRIPTION)
    if extension is None:
        raise Unreadable("the leaf describes no key")
    try:
        return _described(asn1.decode_der(_KeyDescription, extension))
    except ValueError:
        raise Unreadable("the description of the key is not DER of its form") from None


def _described(read: _KeyDescription) -> KeyDescription:
    software, hardware = _by_tag(read.software_enforced), _by_tag(read.hardware_enforced)
    levels = [_number(tlv, _ENUMERATED) for tlv in (read.attestation_level, read.keymint_level)]
    if any(level not in _LEVELS for level in levels):
        raise ValueError
    boot_state, locked = _boot(hardware.get(_ROOT_OF_TRUST))
    return KeyDescription(
        in_hardware=_SOFTWARE not in levels,
        challenge=read.challenge,
        generated=_integer(hardware, _ORIGIN) == _GENERATED,
        signs_p256=_SIGN in _purposes(hardware)
        and (_integer(hardware, _ALGORITHM), _integer(hardware, _KEY_SIZE)) == (_EC, _P256_BITS)
        and _integer(hardware, _CURVE) in {None, _P256},
        # Only the hardware's own word counts, and an open door in either list is open.
        guarded=bool(_integer(hardware, _USER_AUTH_TYPE))
        and not {_NO_AUTH_REQUIRED, _AUTH_TIMEOUT} & (hardware.keys() | software.keys()),
        scoped=_ALL_APPLICATIONS not in hardware.keys() | software.keys(),
        boot_state=boot_state,
        locked=locked,
        apps=_apps(software.get(_APPLICATION_ID)),
    )


def _by_tag(entries: list[asn1.TLV]) -> dict[bytes, bytes]:
    """Return the entries of an authorization list by tag, of which each is there once and the lower comes first."""
    tags = [bytes(entry.tag_bytes) for entry in entries]
    if any(not tag or tag[0] & 0xE0 != 0xA0 for tag in tags):  # noqa: PLR2004  context-specific and constructed
        raise ValueError
    # High tag numbers are written in more bytes than low ones, the leading byte being the same for all of them.
    if any(_tag_number(one) >= _tag_number(next_) for one, next_ in itertools.pairwise(tags)):
        raise ValueError
    return {tag: bytes(entry.data) for tag, entry in zip(tags, entries, strict=True)}


def _tag_number(tag: bytes) -> int:
    number = tag[0] & 0x1F
    if len(tag) > 1:
        number = 0
        for byte in tag[1:]:
            number = number << 7 | byte & 0x7F
    return number


def _integer(entries: dict[bytes, bytes], tag: bytes) -> int | None:
    return asn1.decode_der(int, entries[tag]) if tag in entries else None


def _purposes(entries: dict[bytes, bytes]) -> list[int]:
    encoded = entries.get(_PURPOSE, b"\x31\x00")
    if len(encoded) > _SHORT_LENGTH_MAX:
        raise ValueError
    # The reader takes a SET only inside something.
    return asn1.decode_der(_Purposes, bytes([_SEQUENCE, len(encoded)]) + encoded).purposes.as_list()


def _number(tlv: asn1.TLV, tag: bytes) -> int:
    if bytes(tlv.tag_bytes) != tag or len(tlv.data) != 1:
        raise ValueError
    return bytes(tlv.data)[0]


def _boot(root_of_trust: bytes | None) -> tuple[BootState, bool]:
    if root_of_trust is None:
        return BootState.UNATTESTED, False
    read = asn1.decode_der(_RootOfTrust, root_of_trust)
    state = _number(read.verified_boot_state, _ENUMERATED)
    if state >= len(_BOOT_STATES):
        raise ValueError
    return _BOOT_STATES[state], read.device_locked


def _apps(application_id: bytes | None) -> tuple[AndroidApp, ...]:
    if application_id is None:
        return ()
    read = asn1.decode_der(_ApplicationId, asn1.decode_der(bytes, application_id))
    return tuple(
        AndroidApp(package.name.decode("utf-8", "replace"), signer)
        for package in read.packages.as_list()
        for signer in read.signatures.as_list()
    )
