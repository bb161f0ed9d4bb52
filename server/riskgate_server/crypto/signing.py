"""
Signed heads: what the end of a writer's lane was and when, kept outside the database.

Whoever can write the database can rewrite a whole chain of hashes. They cannot rewrite a head that
was signed and copied elsewhere before. Each line names the hash of the line before it, so a line
missing from the middle shows; a missing end shows against any older copy of the file.

A head may name the key that signs from the next line on: who kept an old public key can follow the log to the newest.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)

_SIGNED_AS: Final = b"riskgate journal head v1\n"
"""No signature made here means anything elsewhere, nor the other way round."""
LINE_BYTES_MAX: Final = 4096


class _Link(NamedTuple):
    """What the next line must name and be signed with; an empty key id is any that is trusted."""

    previous: str
    key_id: str


_FIRST: Final = _Link("0" * 64, "")


class HeadsBroken(Exception):
    """A line of the log of heads is not what was signed, or lines are missing before it."""

    def __init__(self, line: int, why: str) -> None:
        super().__init__(f"line {line}: {why}")
        self.line = line
        self.why = why


class HeadsInUse(Exception):
    """Another process signs into the log."""


class HeadRefused(Exception):
    """The head contradicts one signed before: the journal was rewritten, or an old copy was restored."""


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a writer's lane at one instant: its last batch row and how many entries there were."""

    writer: int
    batch: int
    batch_hash: bytes
    entries: int
    at_us: int


class _Line(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    v: int
    writer: int
    batch: int
    batch_hash: str
    entries: int
    at_us: int
    previous: str
    key: str
    signature: str
    next: str = ""


class HeadVerifier:
    """Checks heads with public keys alone: those given, and those that heads they signed have named."""

    def __init__(self, public_keys_pem: bytes) -> None:
        """
        Trust every key of a file of PEM blocks.

        Raises:
            ValueError: it holds none, or one that is no Ed25519 key.
        """
        self._keys: dict[str, Ed25519PublicKey] = {}
        end = b"-----END PUBLIC KEY-----"
        for block in public_keys_pem.strip().removesuffix(end).split(end):
            try:
                key = load_pem_public_key(block + end)
            except (ValueError, UnsupportedAlgorithm) as error:
                raise ValueError("not a public key in PEM form") from error
            if not isinstance(key, Ed25519PublicKey):
                raise ValueError("not an Ed25519 public key")  # noqa: TRY004  the content is wrong, not its type
            self.key_id = _key_id(key)
            self._keys[self.key_id] = key

    def check(self, line: bytes, number: int, link: _Link) -> tuple[Head, _Link]:
        """
        Return the head of a line and what the next one must link to.

        Raises:
            HeadsBroken: naming `number`.
        """
        try:
            fields = msgspec.json.decode(line, type=_Line)
            signature = base64.b64decode(fields.signature, validate=True)
            successor = base64.b64decode(fields.next, validate=True)
            batch_hash = bytes.fromhex(fields.batch_hash)
        except (msgspec.MsgspecError, binascii.Error, ValueError) as error:
            raise HeadsBroken(number, "not a head") from error
        if fields.v != 1:
            raise HeadsBroken(number, f"version {fields.v} is not known here")
        key = self._keys.get(fields.key)
        if key is None or (link.key_id and fields.key != link.key_id):
            raise HeadsBroken(number, "signed with another key")
        signed = canonical_bytes(fields)
        # One spelling per head: otherwise a changed line could keep a valid signature.
        if line != _line_bytes(fields, signature):
            raise HeadsBroken(number, "not in canonical form")
        try:
            key.verify(signature, _SIGNED_AS + signed)
        except InvalidSignature:
            raise HeadsBroken(number, "the signature does not fit") from None
        if fields.previous != link.previous:
            raise HeadsBroken(number, "does not follow the line before it: lines are missing or were moved")
        head = Head(
            writer=fields.writer,
            batch=fields.batch,
            batch_hash=batch_hash,
            entries=fields.entries,
            at_us=fields.at_us,
        )
        signs_next = fields.key
        if successor:
            try:
                named = Ed25519PublicKey.from_public_bytes(successor)
            except ValueError as error:
                raise HeadsBroken(number, "names a key that is none") from error
            signs_next = _key_id(named)
            self._keys[signs_next] = named
        return head, _Link(hashlib.sha256(line).hexdigest(), signs_next)


class HeadSigner:
    """Signs heads. The secret is the seed of an Ed25519 key."""

    def __init__(self, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public_key = self._key.public_key()
        self.key_id = _key_id(self.public_key)

    def __repr__(self) -> str:
        return f"HeadSigner({self.key_id}, ***)"

    def __reduce__(self) -> str:
        raise TypeError("a signing key is not copied or sent elsewhere")

    def public_key_pem(self) -> bytes:
        """Return what others verify with."""
        return self.public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def sign_line(self, head: Head, previous: str, successor: HeadSigner | None = None) -> bytes:
        """
        Return the line for `head` that follows the line whose hash is `previous`, without a line end.

        With a successor, who signs from the next line on.
        """
        fields = _Line(
            v=1,
            writer=head.writer,
            batch=head.batch,
            batch_hash=head.batch_hash.hex(),
            entries=head.entries,
            at_us=head.at_us,
            previous=previous,
            key=self.key_id,
            signature="",
            next=base64.b64encode(_raw(successor.public_key)).decode() if successor else "",
        )
        return _line_bytes(fields, self._key.sign(_SIGNED_AS + canonical_bytes(fields)))


def canonical_bytes(fields: _Line) -> bytes:
    """Return what is signed: all fields but the signature as JSON, keys sorted, no spaces, ASCII."""
    values = _values(fields)
    del values["signature"]
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _line_bytes(fields: _Line, signature: bytes) -> bytes:
    values = _values(fields) | {"signature": base64.b64encode(signature).decode()}
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _values(fields: _Line) -> dict[str, object]:
    # A key that is not followed by another is not mentioned.
    return {name: getattr(fields, name) for name in fields.__struct_fields__ if name != "next" or fields.next}


def read_heads(lines: Iterable[bytes], verifier: HeadVerifier) -> Iterator[Head]:
    """
    Yield every head of a log in order, each verified and in its place.

    Raises:
        HeadsBroken: at the first line that is not what was signed, does not follow, or goes back.
    """
    link = _FIRST
    last: dict[int, Head] = {}
    for number, line in enumerate(lines, start=1):
        if not line.endswith(b"\n"):
            raise HeadsBroken(number, "the line is incomplete")
        by = link.key_id
        head, link = verifier.check(line[:-1], number, link)
        before = last.get(head.writer)
        # One that names another key may say nothing new beside it.
        if before is None or by == link.key_id or head != before:
            if before is not None and (head.batch <= before.batch or head.entries < before.entries):
                raise HeadsBroken(number, "goes back in the journal")
            yield head
        last[head.writer] = head


def without_torn_end(log: bytes) -> bytes:
    """
    Return a log without what a crash may have left of the line that was being written: nobody relied on it.

    That line lacks its end, or holds sectors that never reached the disk and read as zeros.
    """
    whole = log[: log.rfind(b"\n") + 1]
    before_last = whole.rfind(b"\n", 0, -1) + 1
    return whole[:before_last] if b"\0" in whole[before_last:] else whole


class HeadLog:
    """The growing file of heads of one lane, held by the one process that writes the lane."""

    def __init__(self, path: Path, *signers: HeadSigner) -> None:
        """
        Open the log and verify its last line. What a crash left of a line is taken away: nobody relied on it.

        The last of the signers signs; the others are those it follows.

        Raises:
            HeadsBroken: the last line is not one that these keys signed, or it leaves the log to none of them.
            HeadsInUse: another process has it open.
        """
        self._path = path
        self._signers = signers
        self._link = _FIRST
        self.last: Head | None = None
        self._size = 0
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            self._hold()
            self._read_last()
        except BaseException:
            os.close(self._descriptor)
            raise

    def append(self, head: Head) -> bool:
        """
        Sign `head` and add it, durably on return; False if it is already the last one.

        Raises:
            HeadRefused: it does not lie beyond the last head of the log.
        """
        if self.last is not None and self.last.writer == head.writer:
            if head.batch == self.last.batch and head.batch_hash == self.last.batch_hash:
                return False
            if head.batch <= self.last.batch or head.entries < self.last.entries:
                raise HeadRefused(
                    f"batch {head.batch} does not lie beyond batch {self.last.batch}, which was signed before"
                )
        self._write(head, self._signer())
        return True

    def pass_on(self, signers: Sequence[HeadSigner]) -> bool:
        """
        Let the last of `signers` sign from the next line on, durably on return; False if it does so already.

        The key that signs up to now says so in a line of its own, which repeats the last head.
        """
        self._signers = tuple(signers)
        if self.last is None or self._link.key_id == self._signers[-1].key_id:
            return False
        self._write(self.last, self._signer(), self._signers[-1])
        return True

    def _signer(self) -> HeadSigner:
        """Return whom the last line leaves the log to."""
        by = self._link.key_id
        for signer in reversed(self._signers):
            if not by or signer.key_id == by:
                return signer
        raise HeadsBroken(-1, "leaves the log to a key that is not here")

    def _write(self, head: Head, signer: HeadSigner, successor: HeadSigner | None = None) -> None:
        line = signer.sign_line(head, self._link.previous, successor)
        assert len(line) < LINE_BYTES_MAX
        # What a failed attempt left of a line, or of one that may not be on the disk, must not stand before the next.
        if os.fstat(self._descriptor).st_size != self._size:
            os.ftruncate(self._descriptor, self._size)
        written = os.write(self._descriptor, line + b"\n")
        if written != len(line) + 1:
            raise OSError(errno.ENOSPC, f"only {written} bytes of a line were written", str(self._path))
        os.fsync(self._descriptor)
        self._size += written
        self._link = _Link(hashlib.sha256(line).hexdigest(), (successor or signer).key_id)
        self.last = head

    @property
    def name(self) -> str:
        """The name of the file."""
        return self._path.name

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _hold(self) -> None:
        """Take the file for this process, until it closes it or ends: what two wrote would not be one chain."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HeadsInUse(f"{self._path} is signed into by another process") from None

    def _read_last(self) -> None:
        size = os.fstat(self._descriptor).st_size
        # Two lines always fit: the last whole one, and what a crash left of the next.
        tail = os.pread(self._descriptor, 2 * LINE_BYTES_MAX, max(0, size - 2 * LINE_BYTES_MAX))
        whole = without_torn_end(tail)
        if len(whole) < len(tail):
            size -= len(tail) - len(whole)
            os.ftruncate(self._descriptor, size)
            os.fsync(self._descriptor)
        self._size = size
        if not whole:
            if size:
                raise HeadsBroken(-1, "not a head")
            return
        line = whole[whole.rfind(b"\n", 0, -1) + 1 : -1]
        verifier = HeadVerifier(b"".join(signer.public_key_pem() for signer in self._signers))
        claimed = _FIRST
        # What it follows is not read again; a line that is no head is refused by the check.
        with contextlib.suppress(msgspec.MsgspecError):
            claimed = claimed._replace(previous=msgspec.json.decode(line, type=_Line).previous)
        self.last, self._link = verifier.check(line, -1, claimed)
        self._signer()


class End(NamedTuple):
    """The last head of a log, and the id of the key that signs the next one."""

    head: Head
    signs_next: str


def end_of(path: Path) -> End | None:
    """Return the end of a log, unverified and whoever is writing it; None where there is no head yet."""
    with path.open("rb") as log:
        log.seek(max(0, path.stat().st_size - 2 * LINE_BYTES_MAX))
        lines = without_torn_end(log.read()).splitlines()
    if not lines:
        return None
    try:
        fields = msgspec.json.decode(lines[-1], type=_Line)
        signs_next = _key_id(_public_key(fields.next)) if fields.next else fields.key
        batch_hash = bytes.fromhex(fields.batch_hash)
    except ValueError as error:
        raise HeadsBroken(-1, "not a head") from error
    head = Head(
        writer=fields.writer, batch=fields.batch, batch_hash=batch_hash, entries=fields.entries, at_us=fields.at_us
    )
    return End(head, signs_next)


def _public_key(text: str) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(base64.b64decode(text, validate=True))


def _key_id(key: Ed25519PublicKey) -> str:
    return hashlib.sha256(_raw(key)).hexdigest()[:16]


def _raw(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)
