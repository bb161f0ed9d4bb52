"""
Why a call did not get through to any engine, from gRPC's own texts.

gRPC has one status for all of it and tells the cause in words only. Should they change, `never_sent` errs on the safe
side, and the rest is told as gRPC tells it.
"""

from __future__ import annotations

from typing import Final

from riskgate_client.certificates import OwnCertificate

_NEVER_SENT: Final = (
    "failed to connect to all addresses",
    "DNS resolution failed",
    "errors resolving",
    "no children in",
)
_NOBODY_THERE: Final = "Failed to connect to remote host"
_UNTRUSTED: Final = "the engine's certificate"
_OTHER_HOST: Final = f"{_UNTRUSTED} is for another host"
_UNTRUSTED_HINTS: Final = {
    "certificate has expired": f"{_UNTRUSTED}, or that of its authority, has expired by this host's clock",
    "certificate is not yet valid": f"{_UNTRUSTED}, or that of its authority, is not yet valid by this host's clock",
    "Hostname Verification Check failed": _OTHER_HOST,
    "is not in peer certificate": _OTHER_HOST,
    "CERTIFICATE_VERIFY_FAILED": f"{_UNTRUSTED} is none that `ca` vouches for",
}
"""What gRPC says → what it means; the first that is found counts."""
_CLOSED: Final = "Socket closed"
_CLOSED_BY: Final = "the engine closed the connection"
_CLOSED_HINT: Final = (
    f"{_CLOSED_BY}, as its port for certificates does to callers without a good one: an API key goes to the other port"
)


def explained(message: str, own: OwnCertificate | None = None) -> str:
    """
    Return what gRPC says of a failed call, with what it means for whoever made it where that is known.

    `own` is the certificate that was presented.
    """
    if never_sent(message):
        for said, hint in _UNTRUSTED_HINTS.items():
            if said in message:
                return f"{hint} ({message})"
        if message.endswith(_CLOSED):
            hint = _CLOSED_HINT if own is None else f"{_CLOSED_BY}: {own.fault()}"
            return f"{hint} ({message})"
    return message


def never_sent(message: str) -> bool:
    """Whether the call never left this process."""
    if message.startswith((_UNTRUSTED, _CLOSED_BY)):
        # No hint has a bracket in it.
        message = message.partition(" (")[2]
    return message.startswith(_NEVER_SENT)


def nobody_there(message: str) -> bool:
    """Whether nobody listens where the engine should: it may be about to."""
    return never_sent(message) and _NOBODY_THERE in message


def untrusted(message: str) -> bool:
    """Whether whoever is there is not the engine, as far as `ca` tells: that does not change by waiting."""
    return message.startswith(_UNTRUSTED)
