"""Why messages cannot be sent as the operator wished."""

from __future__ import annotations


class GatewayUnusable(Exception):
    """The gateway cannot be used as it is set. The message says why, and never repeats a secret."""
