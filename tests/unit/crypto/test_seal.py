from __future__ import annotations

import pickle

import pytest

from riskgate_server.crypto.keys import (
    FINGERPRINT,
    MASTER,
    WRAPPED_BYTES,
    FingerprintKey,
    MasterKey,
    MasterKeyMismatch,
    SecretFileBroken,
    decode_secret,
    encode_secret,
)
from riskgate_server.crypto.seal import SealBroken, Sealer

KEY = bytes(range(32))
NONCE = bytes(range(12))
CUSTOMER = ("tenant", "customer")


def test_the_published_vector_of_aes_256_gcm_is_met() -> None:
    """Test case 14 of McGrew and Viega, "The Galois/Counter Mode of Operation"."""
    sealed = Sealer().seal(bytes(32), bytes(12), b"", bytes(16))

    assert sealed.hex() == "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919"


def test_what_was_sealed_opens() -> None:
    sealer = Sealer()

    assert sealer.open_sealed(KEY, NONCE, b"aad", sealer.seal(KEY, NONCE, b"aad", b"text")) == b"text"


def test_no_flipped_bit_of_a_sealed_value_opens_and_all_are_refused_with_one_text() -> None:
    sealer = Sealer()
    texts = set()
    for size in range(40):
        sealed = sealer.seal(KEY, NONCE, b"aad", bytes(size))
        for bit in range(8 * len(sealed)):
            damaged = bytearray(sealed)
            damaged[bit // 8] ^= 1 << bit % 8
            with pytest.raises(SealBroken) as refusal:
                sealer.open_sealed(KEY, NONCE, b"aad", bytes(damaged))
            texts.add(str(refusal.value))

    assert len(texts) == 1


@pytest.mark.parametrize(
    ("key", "nonce", "aad", "cut"),
    [
        (bytes(32), NONCE, b"aad", 0),
        (KEY, bytes(12), b"aad", 0),
        (KEY, NONCE, b"another", 0),
        (KEY, NONCE, b"", 0),
        (KEY, NONCE, b"aad", 1),
        (KEY, NONCE, b"aad", 10),
        (KEY[:16], NONCE, b"aad", 0),
        (KEY, NONCE[:8], b"aad", 0),
    ],
)
def test_another_key_nonce_or_associated_data_or_a_cut_text_is_refused(
    key: bytes, nonce: bytes, aad: bytes, cut: int
) -> None:
    sealer = Sealer()
    sealed = sealer.seal(KEY, NONCE, b"aad", b"text")

    with pytest.raises(SealBroken):
        sealer.open_sealed(key, nonce, aad, sealed[: len(sealed) - cut])


def test_a_wrapped_key_unwraps_for_its_customer() -> None:
    master = MasterKey(KEY)

    assert master.unwrap(CUSTOMER, master.wrap(CUSTOMER, bytes(32))) == bytes(32)


@pytest.mark.parametrize(
    "other", [("tenant", "customer2"), ("tenant2", "customer"), ("tenantc", "ustomer"), ("", "tenantcustomer")]
)
def test_a_wrapped_key_given_to_another_customer_is_refused(other: tuple[str, str]) -> None:
    master = MasterKey(KEY)

    with pytest.raises(SealBroken):
        master.unwrap(other, master.wrap(CUSTOMER, bytes(32)))


def test_no_flipped_bit_of_a_wrapped_key_unwraps() -> None:
    master = MasterKey(KEY)
    wrapped = master.wrap(CUSTOMER, bytes(32))
    for bit in range(8 * WRAPPED_BYTES):
        damaged = bytearray(wrapped)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises((SealBroken, MasterKeyMismatch)):
            master.unwrap(CUSTOMER, bytes(damaged))


def test_a_key_wrapped_under_another_master_key_says_so() -> None:
    with pytest.raises(MasterKeyMismatch):
        MasterKey(bytes(32)).unwrap(CUSTOMER, MasterKey(KEY).wrap(CUSTOMER, bytes(32)))


def test_wrapping_twice_never_repeats_a_nonce() -> None:
    master = MasterKey(KEY)

    assert len({master.wrap(CUSTOMER, bytes(32)) for _ in range(1000)}) == 1000


def test_a_fingerprint_depends_on_tenant_kind_value_and_key_and_not_on_where_they_join() -> None:
    key = FingerprintKey(KEY)
    prints = {
        key.fingerprint("t", "phone", "1"),
        key.fingerprint("u", "phone", "1"),
        key.fingerprint("t", "email", "1"),
        key.fingerprint("t", "phone", "2"),
        key.fingerprint("tp", "hone", "1"),
        key.fingerprint("t", "phone1", ""),
        FingerprintKey(bytes(32)).fingerprint("t", "phone", "1"),
    }

    assert len(prints) == 7
    assert key.fingerprint("t", "phone", "1") == FingerprintKey(KEY).fingerprint("t", "phone", "1")


def test_a_digest_of_content_depends_on_tenant_customer_content_and_key_and_not_on_where_they_join() -> None:
    key = FingerprintKey(KEY)
    prints = {
        key.of_content(("t", "ada"), b"1"),
        key.of_content(("u", "ada"), b"1"),
        key.of_content(("t", "bob"), b"1"),
        key.of_content(("t", "ada"), b"2"),
        key.of_content(("ta", "da"), b"1"),
        key.of_content(("t", "ad"), b"a1"),
        key.of_content(("t", "ada1"), b""),
        FingerprintKey(bytes(32)).of_content(("t", "ada"), b"1"),
    }

    assert len(prints) == 8
    assert key.of_content(("t", "ada"), b"1") == FingerprintKey(KEY).of_content(("t", "ada"), b"1")


def test_a_secret_file_reads_back_and_any_damage_or_another_kind_is_refused_without_quoting_it() -> None:
    content = encode_secret(MASTER, KEY)

    assert decode_secret(MASTER, content) == KEY
    damaged = [
        b"",
        b"\xff\xfe",
        content[:-10],
        content.replace(b"00", b"01", 1),
        content.replace(b"master", FINGERPRINT.encode()),
        content.replace(b"secret-1", b"secret-2"),
        content + content,
    ]
    for each in damaged:
        with pytest.raises(SecretFileBroken) as refusal:
            decode_secret(MASTER, each)
        assert KEY.hex()[:8] not in str(refusal.value)
    with pytest.raises(SecretFileBroken):
        decode_secret(FINGERPRINT, content)


@pytest.mark.parametrize("secret", [MasterKey(KEY), FingerprintKey(KEY)])
def test_a_secret_shows_itself_nowhere_and_is_not_pickled(secret: object) -> None:
    for text in (repr(secret), str(secret), f"{secret}", f"{[secret]}"):
        assert "***" in text
        assert KEY.hex() not in text
    with pytest.raises(TypeError):
        pickle.dumps(secret)
