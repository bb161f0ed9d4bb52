"""
Why a call did not get through to any engine, from gRPC's own texts.

gRPC has one status for all of it and tells the cause in words only. Should they change, `never_sent` errs on the safe
side, and the rest is told as gRPC tells it.
"""

from __future__ import annotations

from typing import Final

_NEVER_SENT: Final = (
    "failed to connect to all addresses",
    "DNS resolution failed",
    "errors resolving",
    "no children in",
)
_NOBODY_THERE: Final = "Failed to connect to remote host"
_UNTRUSTED: Final = ("CERTIFICATE_VERIFY_FAILED", "Hostname Verification Check failed", "is not in peer certificate")
_UNTRUSTED_HINT: Final = "the engine's certificate is none that `ca` vouches for, or is for another host"
_CLOSED: Final = "Socket closed"
_CLOSED_HINT: Final = (
    "the engine closed the connection, as its port for certificates does to callers without one: an API key goes to"
    " the other port"
)


def explained(message: str) -> str:
    """Return what gRPC says of a failed call, with what it means for whoever made it where that is known."""
    if never_sent(message):
        if any(text in message for text in _UNTRUSTED):
            return f"{_UNTRUSTED_HINT} ({message})"
        if message.endswith(_CLOSED):
            return f"{_CLOSED_HINT} ({message})"
    return message


def never_sent(message: str) -> bool:
    """Whether the call never left this process."""
    for hint in (_UNTRUSTED_HINT, _CLOSED_HINT):
        message = message.removeprefix(f"{hint} (")
    return message.startswith(_NEVER_SENT)


def nobody_there(message: str) -> bool:
    """Whether nobody listens where the engine should: it may be about to."""
    return never_sent(message) and _NOBODY_THERE in message


def untrusted(message: str) -> bool:
    """Whether whoever is there is not the engine, as far as `ca` tells: that does not change by waiting."""
    return message.startswith(_UNTRUSTED_HINT)
