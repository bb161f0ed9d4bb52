"""
The certificate that a client presents: the key that goes with it, and what is wrong with it when it is not taken.

gRPC says of neither more than that it could not connect. So the handshake is rehearsed in memory with Python's own TLS,
which says more.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Final

_CERTIFICATE: Final = b"-----BEGIN CERTIFICATE-----"
_PRIVATE_KEY: Final = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----")

# What OpenSSL calls what it finds.
_OTHER_KEY: Final = frozenset({"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"})
_NOT_YET_VALID: Final = 9
_EXPIRED: Final = 10
_NOT_ITS_PURPOSE: Final = 26
_OF_OTHERS: Final = frozenset({2, 7, 18, 19, 20, 21})
_NO_CHECK_TIME: Final = 0x200000
"""A flag of OpenSSL for which Python has no name."""


class OwnCertificate:
    """A client's own certificate and its private key, in PEM. `authorities` vouch for the engine; None: public ones."""

    def __init__(self, certificate: bytes, key: bytes, authorities: bytes | None) -> None:
        """
        Look at the key before gRPC does.

        Raises:
            ValueError: the key is none, has a password, or is another certificate's.
        """
        if not _PRIVATE_KEY.search(key):
            fault = "is a certificate, not its private key" if _CERTIFICATE in key else "is no private key in PEM"
            raise ValueError(fault)
        self._certificate = certificate
        self._key = key
        self._authorities = authorities
        try:
            self._context(ssl.PROTOCOL_TLS_CLIENT)
        except ssl.SSLError as error:
            if error.reason in _OTHER_KEY:
                raise ValueError("is not the private key of the certificate") from None
            # All others are named, such as one that is too short for this system.
            if not error.reason:
                raise ValueError("is no private key in PEM") from None
        except OSError:
            # A system without files in memory; gRPC has the last word anyway.
            return

    def __repr__(self) -> str:
        return "OwnCertificate(***)"

    def fault(self) -> str:
        """Return what may be wrong with it if the engine did not take it, as far as that can be known here."""
        try:
            return self._fault()
        except (OSError, ValueError, KeyError):
            return "the client's own certificate may be none that the engine's authority issued"

    def _fault(self) -> str:
        # Trusted for itself, it is looked at for all but who issued it.
        wrong = self._wrong(self._certificate)
        if wrong == _NOT_ITS_PURPOSE:
            return "the client's own certificate is not one for clients"
        dates = self._dates()
        if wrong == _EXPIRED:
            return f"the client's own certificate expired at {dates['notAfter']}"
        if wrong == _NOT_YET_VALID:
            return f"the client's own certificate is not valid before {dates['notBefore']}, by this host's clock"
        if self._authorities is not None and self._wrong(self._authorities) in _OF_OTHERS:
            return (
                "the client's own certificate was not issued by the authority in `ca`, and the engine takes only those"
                " of its own authority"
            )
        return (
            f"it did not take the client's own certificate, which is valid until {dates['notAfter']} but perhaps not"
            " issued by the engine's authority"
        )

    def _wrong(self, trusted: bytes) -> int:
        """Return OpenSSL's number for what keeps it from being taken by who trusts these; 0 for nothing."""
        try:
            self._rehearse(trusted)
        except ssl.SSLCertVerificationError as error:
            return error.verify_code
        return 0

    def _dates(self) -> dict[str, str]:
        shown = self._rehearse(self._certificate, _NO_CHECK_TIME).getpeercert() or {}
        seconds = {name: ssl.cert_time_to_seconds(str(shown[name])) for name in ("notBefore", "notAfter")}
        return {name: f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC" for name, at in seconds.items()}

    def _rehearse(self, trusted: bytes, flags: int = 0) -> ssl.SSLObject:
        """Present it to ourselves, as one who trusts these, and return that one's end of the connection."""
        engine = self._context(ssl.PROTOCOL_TLS_SERVER)
        engine.verify_mode = ssl.CERT_REQUIRED
        engine.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | flags
        engine.load_verify_locations(cadata=trusted.decode("ascii"))
        client = self._context(ssl.PROTOCOL_TLS_CLIENT)
        there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
        ends = client.wrap_bio(back, there), engine.wrap_bio(there, back, server_side=True)
        for end in (*ends, *ends):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
        return ends[1]

    def _context(self, protocol: int) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        # Who is on the other end is no question here.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        with _file(self._certificate) as certificate, _file(self._key) as key:
            context.load_cert_chain(certificate, key, password=_no_password)
        return context


@contextmanager
def _file(content: bytes) -> Iterator[str]:
    """Make a file that is nowhere on a disk: a private key does not belong there, and TLS reads nothing but files."""
    if not hasattr(os, "memfd_create"):
        raise OSError("no files in memory")
    file = os.memfd_create("riskgate")
    try:
        os.write(file, content)
        yield f"/proc/self/fd/{file}"
    finally:
        os.close(file)


def _no_password() -> str:
    raise ValueError("has a password; give it without")
