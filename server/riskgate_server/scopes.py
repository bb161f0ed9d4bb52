"""Every scope a credential can hold, with its meaning. The contract names one per call."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from riskgate_server.domain.credit.line import BlockKind

ADMIN: Final = "admin"
"""Grants every scope."""

LIFT_PREFIX: Final = "block:lift:"


def lift_scope(kind: BlockKind) -> str:
    """Name the scope that lifting a block of `kind` needs beside `line:block`."""
    return f"{LIFT_PREFIX}{kind.name.lower()}"


SCOPES: Final[dict[str, str]] = {
    ADMIN: "everything below, and what later versions add",
    "risk:check": "ask for decisions on purchases and so reserve credit",
    "risk:history": "send purchases with an event time of one's own, on a server started for it",
    "risk:read": "read, list, watch and explain decisions",
    "risk:annotate": "record what a purchase turned out to be",
    "limit:read": "read limits and lines, and watch them",
    "line:open": "open credit lines and accept limit offers",
    "line:block": "place blocks, and lift those a lift scope is held for",
    "line:close": "close credit lines",
    **{lift_scope(kind): f"lift {kind.name.lower().replace('_', ' ')} blocks" for kind in BlockKind},
    "ledger:write": "capture, increment and void holds; record refunds, payments and corrections",
    "ledger:force": "capture by force after a hold expired, beside ledger:write",
    "ledger:read": "read holds, entries and statements",
    "assessment:write": "submit financials, assess and review credit",
    "assessment:read": "read assessments",
    "otp:enroll": "enrol code factors of customers",
    "otp:send": "send codes to customers",
    "otp:verify": "verify customers' codes",
    "device:enroll": "register customers' devices",
    "device:verify": "verify device proofs",
    "device:revoke": "revoke devices",
    "customer:erase": "erase customers: destroy what can be read of them",
    "rules:read": "read rulesets and run simulations on them",
    "rules:write": "propose rulesets",
    "rules:approve": "approve and activate rulesets that somebody else proposed",
    "lists:read": "read lists",
    "lists:write": "change lists",
    "cases:read": "read review cases",
    "cases:resolve": "resolve review cases",
    "callers:read": "read callers and the log of their changes",
    "callers:write": "add, rotate and revoke callers",
    "audit:read": "read audit proofs",
    "reflection:read": "let a tool discover the contract from the running server",
}


def unknown_scopes(asked: Iterable[str]) -> list[str]:
    """Return the scopes in `asked` that do not exist, each once, sorted."""
    return sorted(set(asked) - SCOPES.keys())
