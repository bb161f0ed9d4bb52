"""
Public keys as devices hand them in, and signatures as their platforms make them.

A key has one form here, so that the same key cannot be enrolled twice in two spellings: SubjectPublicKeyInfo in DER, of
exactly the bytes that its curve gives it. P-256 is 91 bytes with the point in full, which shuts out compressed points,
points at infinity, other curves and curves described by their parameters before any of them is computed with.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any, Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from riskgate_server.crypto.proofs import cbor
from riskgate_server.crypto.proofs.reading import Unreadable
from riskgate_server.domain.identity.devices import Algorithm, Platform

P256_SPKI_BYTES: Final = 91
P256_POINT_BYTES: Final = 65
ED25519_SPKI_BYTES: Final = 44
SIGNATURE_BYTES_MAX: Final = 512

_P256_PREFIX: Final = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d030107034200")
_ED25519_PREFIX: Final = bytes.fromhex("302a300506032b6570032100")
_UNCOMPRESSED: Final = b"\x04"
_PAIR_BYTES: Final = 64

# RFC 9052, 7.1 and RFC 9053, 7: names and values of a COSE_Key.
_KTY, _ALG, _CRV, _X, _Y = 1, 3, -1, -2, -3
_RSA_N, _RSA_E = -1, -2
_OKP, _EC2, _RSA = 1, 2, 3
_CURVES: Final[dict[int, tuple[int, int, ec.EllipticCurve]]] = {
    Algorithm.ES256: (1, 32, ec.SECP256R1()),
    Algorithm.ES512: (3, 66, ec.SECP521R1()),
}
_COSE_ED25519: Final = 6
_ED25519_PRIME: Final = 2**255 - 19
_ED25519_SMALL: Final = frozenset(
    {
        0,
        1,
        _ED25519_PRIME - 1,
        0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826,
        0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7,
    }
)
"""Heights of the points of order 1 to 8 (RFC 8032, 5.1: the cofactor): as keys, anybody can sign for them."""
_RSA_BYTES: Final = range(256, 513)
_RSA_BITS_MIN: Final = 2048
_RSA_EXPONENT_MAX: Final = 2**32

_UNSUPPORTED: Final = "the key's algorithm is not verified here; use ES256, EdDSA with Ed25519, RS256 or ES512"


def raw_key(platform: Platform, public_key: bytes) -> tuple[Algorithm, bytes]:
    """
    Return the algorithm of a raw key and its SubjectPublicKeyInfo.

    Keys of phones are P-256; iOS may hand in the bare point (X9.63). A JOSE library's key is P-256 or Ed25519.

    Raises:
        Unreadable: it is in another form, or no point of its curve.
    """
    if platform == Platform.IOS_SECURE_ENCLAVE and len(public_key) == P256_POINT_BYTES:
        public_key = _P256_PREFIX + public_key
    if platform == Platform.JOSE and len(public_key) == ED25519_SPKI_BYTES and public_key.startswith(_ED25519_PREFIX):
        _require_ed25519(public_key.removeprefix(_ED25519_PREFIX))
        return Algorithm.EDDSA, public_key
    if len(public_key) != P256_SPKI_BYTES or not public_key.startswith(_P256_PREFIX + _UNCOMPRESSED):
        raise Unreadable("not a P-256 key as SubjectPublicKeyInfo of 91 bytes")
    load(public_key)
    return Algorithm.ES256, public_key


def cose_key(data: bytes) -> tuple[Algorithm, bytes]:
    """
    Return the algorithm of a passkey and its SubjectPublicKeyInfo.

    Raises:
        Unreadable: the algorithm is not verified here, or the key is none of it.
    """
    key = cbor.decode(data)
    if type(key) is not dict or type(key.get(_ALG)) is not int:
        raise Unreadable("not a COSE_Key")
    try:
        algorithm = Algorithm(key[_ALG])
    except ValueError:
        raise Unreadable(_UNSUPPORTED) from None
    try:
        public = _public_key(algorithm, key)
    except (ValueError, UnsupportedAlgorithm):
        raise Unreadable("not a key of its curve") from None
    return algorithm, public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def fingerprint(spki: bytes) -> bytes:
    """Return 32 bytes that are equal for equal keys only, whatever form they came in."""
    return sha256(spki).digest()


def verify_der(spki: bytes, signature: bytes, message: bytes) -> bool:
    """Whether `signature` is that of ECDSA with P-256 and SHA-256 over `message`, as strict DER."""
    key = load(spki)
    if not isinstance(key, ec.EllipticCurvePublicKey):
        return False
    try:
        key.verify(signature, message, ec.ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return True


def verify_pair(algorithm: Algorithm, spki: bytes, signature: bytes, message: bytes) -> bool:
    """Whether `signature` is the 64 bytes that JOSE has for this key (RFC 7518, 3.4; RFC 8037, 3.1)."""
    if len(signature) != _PAIR_BYTES:
        return False
    if algorithm == Algorithm.ES256:
        r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
        return verify_der(spki, encode_dss_signature(r, s), message)
    key = load(spki)
    if not isinstance(key, Ed25519PublicKey):
        return False
    try:
        key.verify(signature, message)
    except InvalidSignature:
        return False
    return True


def load(spki: bytes) -> PublicKeyTypes:
    """
    Return the key object of a SubjectPublicKeyInfo.

    Raises:
        Unreadable: it is none, or no point of its curve.
    """
    try:
        return load_der_public_key(spki)
    except (ValueError, UnsupportedAlgorithm):
        raise Unreadable("not a point of its curve") from None


def _public_key(algorithm: Algorithm, key: dict[Any, Any]) -> Any:
    kty = key.get(_KTY)
    if algorithm in _CURVES:
        curve, width, of = _CURVES[algorithm]
        if (kty, key.get(_CRV)) != (_EC2, curve):
            raise Unreadable(_UNSUPPORTED)
        x, y = _bytes(key, _X, range(width, width + 1)), _bytes(key, _Y, range(width, width + 1))
        return ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), of).public_key()
    if algorithm == Algorithm.EDDSA:
        if (kty, key.get(_CRV)) != (_OKP, _COSE_ED25519):
            raise Unreadable(_UNSUPPORTED)
        point = _bytes(key, _X, range(32, 33))
        _require_ed25519(point)
        return Ed25519PublicKey.from_public_bytes(point)
    if kty != _RSA:
        raise Unreadable(_UNSUPPORTED)
    n = int.from_bytes(_bytes(key, _RSA_N, _RSA_BYTES), "big")
    e = int.from_bytes(_bytes(key, _RSA_E, range(1, 6)), "big")
    # Checking a signature costs time in the size of both.
    if e > _RSA_EXPONENT_MAX or n.bit_length() < _RSA_BITS_MIN:
        raise Unreadable("not an RSA key of 2048 to 4096 bits with a small exponent")
    return RSAPublicNumbers(e, n).public_key()


def _require_ed25519(point: bytes) -> None:
    """Refuse what the library takes: a second spelling of a point, and a key that is nobody's."""
    height = int.from_bytes(point, "little") & (2**255 - 1)
    if height >= _ED25519_PRIME or height in _ED25519_SMALL:
        raise Unreadable("an Ed25519 key of small order, or in another spelling")


def _bytes(key: dict[Any, Any], name: int, lengths: range) -> bytes:
    value = key.get(name)
    if type(value) is not bytes or len(value) not in lengths:
        raise Unreadable("a coordinate of a COSE_Key is missing or of the wrong length")
    return value
