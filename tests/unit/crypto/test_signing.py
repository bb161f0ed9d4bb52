from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from riskgate_server.crypto.signing import (
    Head,
    HeadLog,
    HeadRefused,
    HeadsBroken,
    HeadSigner,
    HeadsInUse,
    HeadVerifier,
    end_of,
    read_heads,
    without_torn_end,
)

SIGNER = HeadSigner(bytes(range(32)))
VERIFIER = HeadVerifier(SIGNER.public_key_pem())


def head(batch: int, *, writer: int = 0, fill: int | None = None, entries: int | None = None) -> Head:
    return Head(
        writer=writer,
        batch=batch,
        batch_hash=bytes([batch % 256 if fill is None else fill]) * 32,
        entries=10 * batch if entries is None else entries,
        at_us=1_000_000 * batch,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "heads.log"


@pytest.fixture
def five_lines(path: Path) -> list[bytes]:
    log = HeadLog(path, SIGNER)
    for batch in range(1, 6):
        log.append(head(batch))
    log.close()
    return path.read_bytes().splitlines(keepends=True)


def verified(lines: Iterable[bytes]) -> list[Head]:
    return list(read_heads(lines, VERIFIER))


def test_the_published_key_pair_of_ed25519_is_met() -> None:
    """RFC 8032, 7.1, TEST 1."""
    seed = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    raw = load_pem_public_key(HeadSigner(seed).public_key_pem()).public_bytes(Encoding.Raw, PublicFormat.Raw)

    assert raw.hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"


def test_heads_read_back_verified_and_in_order(five_lines: list[bytes]) -> None:
    assert verified(five_lines) == [head(batch) for batch in range(1, 6)]


def test_the_same_head_makes_the_same_line() -> None:
    assert SIGNER.sign_line(head(1), "0" * 64) == HeadSigner(bytes(range(32))).sign_line(head(1), "0" * 64)


def test_no_flipped_bit_of_a_line_goes_unseen(five_lines: list[bytes]) -> None:
    line = five_lines[2]
    for bit in range(8 * len(line)):
        damaged = bytearray(line)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(HeadsBroken) as refusal:
            verified([*five_lines[:2], bytes(damaged), *five_lines[3:]])
        assert refusal.value.line in {3, 4}


def test_a_last_line_that_was_never_signed_is_refused_whatever_it_claims(five_lines: list[bytes]) -> None:
    """Nothing follows the last line, so no chain protects it: the signature alone does."""
    fields = json.loads(five_lines[-1])
    for claim in ({"entries": 51}, {"batch": 6}, {"batch_hash": "00" * 32}, {"at_us": 0}, {"writer": 1}):
        forged = json.dumps({**fields, **claim}, sort_keys=True, separators=(",", ":")).encode() + b"\n"
        with pytest.raises(HeadsBroken, match="signature"):
            verified([*five_lines[:-1], forged])


def test_a_line_missing_doubled_or_moved_is_seen_and_named(five_lines: list[bytes]) -> None:
    one, two, three, four, five = five_lines
    for changed, at in (
        ([two, three, four, five], 1),
        ([one, three, four, five], 2),
        ([one, two, two, three], 3),
        ([one, three, two, four, five], 2),
        ([one, two, three[:-1]], 3),
        ([one, two, b"\n", three], 3),
    ):
        with pytest.raises(HeadsBroken) as refusal:
            verified(changed)
        assert refusal.value.line == at


def test_a_missing_end_leaves_a_valid_log_that_contradicts_no_copy_but_ends_before_it(five_lines: list[bytes]) -> None:
    """What the file alone cannot show: hence copies elsewhere."""
    assert verified(five_lines[:3])[-1] == head(3)


def test_a_log_recomputed_with_another_key_is_refused(path: Path) -> None:
    other = HeadLog(path, HeadSigner(bytes(32)))
    other.append(head(1))
    other.close()

    with pytest.raises(HeadsBroken, match="another key"):
        verified(path.read_bytes().splitlines(keepends=True))


def test_a_respelled_line_is_refused_though_its_signature_fits(five_lines: list[bytes]) -> None:
    respelled = json.dumps(json.loads(five_lines[0])).encode() + b"\n"

    with pytest.raises(HeadsBroken, match="canonical"):
        verified([respelled])


def test_an_unknown_field_is_refused(five_lines: list[bytes]) -> None:
    widened = json.dumps({**json.loads(five_lines[0]), "more": 1}, sort_keys=True, separators=(",", ":"))

    with pytest.raises(HeadsBroken):
        verified([widened.encode() + b"\n"])


def test_appending_the_last_head_again_adds_nothing(path: Path) -> None:
    log = HeadLog(path, SIGNER)

    assert log.append(head(1)) is True
    assert log.append(head(1)) is False
    log.close()
    assert len(path.read_bytes().splitlines()) == 1


@pytest.mark.parametrize("rewritten", [head(3), head(5, fill=99), head(4), head(6, entries=1)])
def test_a_second_history_is_refused(path: Path, five_lines: list[bytes], rewritten: Head) -> None:
    log = HeadLog(path, SIGNER)

    with pytest.raises(HeadRefused):
        log.append(rewritten)
    log.close()
    assert path.read_bytes() == b"".join(five_lines)


def test_a_reopened_log_continues_the_chain(path: Path, five_lines: list[bytes]) -> None:
    log = HeadLog(path, SIGNER)
    log.append(head(6))
    log.close()

    assert verified(path.read_bytes().splitlines(keepends=True))[-1] == head(6)


def test_a_line_cut_by_a_crash_is_taken_away_wherever_it_was_cut(path: Path, five_lines: list[bytes]) -> None:
    for cut in range(len(five_lines[-1])):
        path.write_bytes(b"".join(five_lines[:-1]) + five_lines[-1][:cut])
        log = HeadLog(path, SIGNER)
        assert log.last == head(4)
        log.append(head(5))
        log.close()
        assert path.read_bytes() == b"".join(five_lines)


def test_a_line_with_sectors_that_never_reached_the_disk_is_taken_away(path: Path, five_lines: list[bytes]) -> None:
    """After a power cut a file may be as long as it was meant to be, and hold zeros where nothing was written."""
    before, last = b"".join(five_lines[:-1]), five_lines[-1]
    for hole in range(0, len(last), 7):
        torn = before + last[:hole] + bytes(len(last[hole : hole + 40])) + last[hole + 40 :]
        path.write_bytes(torn)

        assert without_torn_end(torn) == before
        log = HeadLog(path, SIGNER)
        assert log.last == head(4)
        log.append(head(5))
        log.close()
        assert path.read_bytes() == b"".join(five_lines)


def test_an_append_that_fails_leaves_nothing_before_the_next(
    path: Path, five_lines: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = HeadLog(path, SIGNER)
    write = os.write

    def half(descriptor: int, line: bytes) -> int:
        return write(descriptor, line[:100])

    def refuse(descriptor: int) -> None:
        raise OSError(errno.EIO, "no")

    for call, failing in (("write", half), ("fsync", refuse)):
        with monkeypatch.context() as disk:
            disk.setattr(os, call, failing)
            with pytest.raises(OSError, match=r"written|no"):
                log.append(head(6))
        assert log.last == head(5)
    log.append(head(6))
    log.close()

    assert verified(path.read_bytes().splitlines(keepends=True))[-1] == head(6)


def test_a_log_whose_last_line_is_another_keys_does_not_open(path: Path, five_lines: list[bytes]) -> None:
    with pytest.raises(HeadsBroken):
        HeadLog(path, HeadSigner(bytes(32)))


def test_the_log_is_private_and_each_line_is_synced_before_append_returns(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    log = HeadLog(path, SIGNER)
    log.append(head(1))
    log.close()

    assert synced == [path.stat().st_size]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_signer_shows_its_public_name_only() -> None:
    assert repr(SIGNER) == f"HeadSigner({VERIFIER.key_id}, ***)"


def test_a_public_key_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="PEM"):
        HeadVerifier(b"nonsense")


def test_a_log_is_held_by_one_at_a_time(path: Path) -> None:
    log = HeadLog(path, SIGNER)
    log.append(head(1))

    with pytest.raises(HeadsInUse, match=r"heads\.log is signed into by another process"):
        HeadLog(path, SIGNER)

    log.close()
    again = HeadLog(path, SIGNER)
    assert again.last == head(1)
    again.close()


SECOND, THIRD = HeadSigner(bytes([2]) * 32), HeadSigner(bytes([3]) * 32)


def passed_on(path: Path) -> list[bytes]:
    """A log that three keys signed in turn."""
    log = HeadLog(path, SIGNER)
    log.append(head(1))
    assert log.pass_on([SIGNER, SECOND])
    log.append(head(2))
    log.close()
    log = HeadLog(path, SIGNER, SECOND)
    assert log.pass_on([SECOND, THIRD])
    log.append(head(3))
    log.close()
    return path.read_bytes().splitlines(keepends=True)


def test_who_kept_the_first_public_key_can_follow_the_log_to_the_newest(path: Path) -> None:
    heads = list(read_heads(passed_on(path), HeadVerifier(SIGNER.public_key_pem())))

    assert heads == [head(1), head(2), head(3)]
    assert end_of(path) == (head(3), THIRD.key_id)


def test_the_end_of_a_log_is_read_beside_who_is_just_writing_it(path: Path) -> None:
    path.write_bytes(b"")
    assert end_of(path) is None
    whole = b"".join(passed_on(path))
    path.write_bytes(whole + b'{"at_us":')

    assert end_of(path) == (head(3), THIRD.key_id)
    path.write_bytes(b"something else\n")
    with pytest.raises(HeadsBroken):
        end_of(path)


def test_a_key_that_no_line_has_named_signs_nothing_even_if_it_is_trusted(path: Path) -> None:
    lines = passed_on(path)
    trusted = HeadVerifier(b"".join(signer.public_key_pem() for signer in (SIGNER, SECOND, THIRD)))

    without_the_handover = [lines[0], lines[2]]
    with pytest.raises(HeadsBroken, match="line 2"):
        list(read_heads(without_the_handover, trusted))


def test_a_key_that_was_followed_signs_no_more(path: Path) -> None:
    lines = passed_on(path)
    late = SIGNER.sign_line(head(4), hashlib.sha256(lines[-1][:-1]).hexdigest())

    with pytest.raises(HeadsBroken, match="signed with another key"):
        list(read_heads([*lines, late + b"\n"], VERIFIER))


def test_a_log_is_passed_on_once_and_goes_on_where_it_was(path: Path) -> None:
    log = HeadLog(path, SIGNER)
    log.append(head(1))
    log.pass_on([SIGNER, SECOND])

    assert not log.pass_on([SIGNER, SECOND])
    assert not log.append(head(1))
    log.close()
    reopened = HeadLog(path, SIGNER, SECOND)
    assert reopened.last == head(1)
    reopened.close()


def test_a_log_that_was_left_to_a_key_that_is_not_here_is_refused(path: Path) -> None:
    passed_on(path)

    with pytest.raises(HeadsBroken, match="another key"):
        HeadLog(path, SIGNER)
    log = path.with_name("just passed on")
    first = HeadLog(log, SIGNER)
    first.append(head(1))
    first.pass_on([SIGNER, SECOND])
    first.close()
    with pytest.raises(HeadsBroken, match="a key that is not here"):
        HeadLog(log, SIGNER)
