"""
Attacks on callers, codes, devices, grants and purchases, and the answer each must meet: the threat model as a table.

A test that shows an answer bears the attack's name, `@pytest.mark.attack("wrong-code")`; it passes only if the server
gave that very status and reason, on the wire, while it ran (`conftest.py`). `make attacks` lists all with their tests,
and fails if an attack has none.
"""

from __future__ import annotations

import contextlib
import io
import sys
from typing import Final, NamedTuple

import pytest

MARK: Final = "attack"


class Attack(NamedTuple):
    """What somebody tries, and what must come of it."""

    what: str
    answers: tuple[str, ...] = ()
    """Status and reason of every refusal that it meets; "OK" where it is to pass; none where no call is made."""
    why: str = ""
    """Why it is this answer, where another might be expected."""


def row(what: str, *answers: str, why: str = "") -> Attack:
    return Attack(what, answers, why)


OK: Final = "OK"
KEY_INVALID: Final = "UNAUTHENTICATED CREDENTIAL_INVALID"
WRONG: Final = "PERMISSION_DENIED PROOF_WRONG"
MALFORMED: Final = "INVALID_ARGUMENT PROOF_MALFORMED"
INVALID: Final = "INVALID_ARGUMENT FIELD_INVALID"
LOCKED: Final = "RESOURCE_EXHAUSTED PROOF_LOCKED"
SPENT: Final = "RESOURCE_EXHAUSTED SEND_BUDGET_SPENT"
BURNED: Final = "FAILED_PRECONDITION CHALLENGE_BURNED"
USED: Final = "FAILED_PRECONDITION CHALLENGE_USED"
SUPERSEDED: Final = "FAILED_PRECONDITION CHALLENGE_SUPERSEDED"
EXPIRED: Final = "FAILED_PRECONDITION CHALLENGE_EXPIRED"
REVOKED: Final = "FAILED_PRECONDITION DEVICE_REVOKED"
NO_GRANT: Final = "FAILED_PRECONDITION GRANT_INVALID"
OTHER_GRANT: Final = "FAILED_PRECONDITION GRANT_MISMATCH"
WEAK_GRANT: Final = "FAILED_PRECONDITION GRANT_TOO_WEAK"
NO_CHALLENGE: Final = "NOT_FOUND CHALLENGE_NOT_FOUND"

CALLERS: Final = {
    "no-credential": row("A call without a credential.", "UNAUTHENTICATED CREDENTIAL_MISSING"),
    "dead-key": row("An API key that has expired or was revoked.", KEY_INVALID),
    "scope-missing": row("A credential whose scopes do not open the call.", "PERMISSION_DENIED SCOPE_MISSING"),
    "token-for-a-key": row(
        "A JWT in place of an API key: unsigned, by HMAC with our public key, with a key of its own, a foreign type.",
        KEY_INVALID,
        why="Callers have keys and certificates. No token of a caller is read, so that each is as good as noise.",
    ),
    "foreign-certificate": row(
        "A client certificate of another authority.", "UNAVAILABLE", why="TLS refuses it before there is a call."
    ),
    "claimed-identity": row(
        "Caller and tenant claimed in metadata instead of proven.", "UNAUTHENTICATED CREDENTIAL_MISSING"
    ),
    "foreign-challenge": row(
        "Another tenant's challenge: as unknown, to the byte, as one that never was.",
        NO_CHALLENGE,
    ),
    "foreign-factor": row("Another tenant's factor, likewise.", "NOT_FOUND FACTOR_NOT_FOUND"),
    "foreign-device": row("Another tenant's device, likewise.", "NOT_FOUND DEVICE_NOT_FOUND"),
}

CODES: Final = {
    "wrong-code": row("A wrong code: nothing says what was wrong.", WRONG),
    "sixth-try": row("A sixth try at one challenge, with the right code.", BURNED),
    "guessing-on": row("Wrong codes over several challenges: a new code resets no count.", LOCKED),
    "right-while-locked": row("The right code while locked: told as a wrong one.", LOCKED),
    "right-code-at-once": row("The right code 64 times at once: one is let in.", USED),
    "wrong-codes-at-once": row("200 wrong codes at once: five are compared.", WRONG, BURNED),
    "late-code": row("A code after its time.", EXPIRED),
    "older-code": row("The code of an older challenge after a newer one.", SUPERSEDED),
    "app-code-again": row("A code of an app once more, in its own step and in the next.", WRONG),
    "app-code-of-before": row("An app's code of the step before, after one of this step.", WRONG),
    "app-code-too-far": row("An app's code two steps old or ahead.", WRONG),
    "no-code": row("Other digits, blanks, a line break, another length: no try is counted.", INVALID),
    "leading-zeros": row("A code that begins with a zero is a text, not a number.", OK),
    "late-confirmation": row("A factor confirmed after its ten minutes.", "FAILED_PRECONDITION FACTOR_EXPIRED"),
    "second-confirmation": row("A factor confirmed twice.", "FAILED_PRECONDITION FACTOR_CONFIRMED"),
    "unbound": row("A further factor or device without a grant.", "PERMISSION_DENIED GRANT_REQUIRED"),
    "message-flood": row("A sixth message in ten minutes.", SPENT),
    "number-range": row("Messages to eleven numbers that differ in their last digits.", SPENT),
    "costly-number": row("A number that costs who sends to it.", "INVALID_ARGUMENT PHONE_NUMBER_REFUSED"),
    "respelled-number": row("One number in five spellings has one budget.", SPENT),
    "who-exists": row(
        "Codes for customers who do not exist, to learn who does: same answers, same shape, as long.",
        WRONG, BURNED, LOCKED, SPENT,
        why="One process remembers what decoys were tried, until it ends: docs/identity.md says what that leaves.",
    ),
    "gateway-down": row("A gateway that is down: no budget is spent, no try counted.", "UNAVAILABLE GATEWAY_DOWN"),
}  # fmt: skip

DEVICES: Final = {
    "other-question": row("A proof that answers another challenge, purchase or customer.", WRONG),
    "used-proof": row("A proof given a second time, or 64 times at once.", USED),
    "late-proof": row("A proof after two minutes.", EXPIRED),
    "user-unverified": row("A good signature, and the user was not verified.", WRONG),
    "wrong-flags": row("User absent, backed up without being eligible, eligibility changed.", WRONG),
    "wrong-ceremony": row("Registration for a proof, payment for a sign-in, and the reverse.", WRONG),
    "wrong-origin": row("Plain HTTP, a look-alike, a foreign sub-domain, an unknown app.", WRONG),
    "framed": row("An answer from inside another page.", WRONG),
    "wrong-site": row("An answer for another relying party.", WRONG),
    "unreadable-client-data": row("A name twice, 100,000 brackets, no UTF-8, no object.", MALFORMED),
    "unreadable-authenticator-data": row("Too short, too long, a bomb of lengths, too deep.", MALFORMED),
    "spoilt-signature": row("r or s of 0 or n, other spellings, the pair where DER is enrolled.", WRONG),
    "no-signature": row("An empty signature.", INVALID),
    "mirrored-signature": row("(r, n - s) of a signature that was used.", USED),
    "confused-token": row("A device's JWS without a signature, or by HMAC with its public key.", WRONG),
    "token-with-a-key": row("A device's JWS that brings a key or `crit`, of another type or audience.", WRONG),
    "padded-token": row("A device's JWS with padding, to dodge a memory keyed by its text.", INVALID),
    "no-key": row(
        "A point off the curve or at infinity, another curve, compressed, explicit parameters.", MALFORMED, INVALID
    ),
    "unpossessed-key": row("A key whose holder does not sign, or signs with another.", WRONG),
    "taken-key": row("One key, or one passkey's id, for a second customer.", "ALREADY_EXISTS CREDENTIAL_EXISTS"),
    "drawn-out-chain": row("An attested key that issues one certificate more.", WRONG),
    "false-chain": row(
        "A second description, software, an imported key, another challenge, an open phone, a revoked batch.", WRONG
    ),
    "old-root": row("A root certificate out of date whose key is trusted.", OK),
    "unguarded-key": row("A key that needs no user, or not each time, where that is asked.", WRONG),
    "false-app": row(
        "App Attest of a development build, another team, with a counter that stays, shown again.",
        WRONG,
    ),
    "app-for-a-proof": row("App Attest's assertion in place of the customer's signature.", WRONG),
    "app-alone": row(
        "App Attest's assertion with no proof beside it.", INVALID, why="It is no proof, so that there is none."
    ),
    "counter-back": row("A counter that does not grow, of a key bound to its device. Rules see it.", WRONG),
    "counter-of-copies": row("A counter that does not grow, of a key with copies: only rules see it.", OK),
    "no-counter": row("A counter that stays 0.", OK),
    "revoked-device": row("A revoked device, whatever was begun before.", REVOKED),
    "revoked-before-use": row("A grant whose device was revoked before it is used.", NO_GRANT),
}

GRANTS: Final = {
    "grant-at-once": row("One grant 64 times at once buys once.", "FAILED_PRECONDITION STEP_UP_NOT_ASKED"),
    "binding-at-once": row("One grant 64 times at once binds once.", NO_GRANT),
    "grant-for-other-purchase": row(
        "A grant offered for another amount, payee or currency: void from then on.", OTHER_GRANT, NO_GRANT
    ),
    "grant-of-other-customer": row("Another customer's grant: void from then on.", NO_GRANT),
    "grant-of-other-tenant": row("Another tenant's grant and purchase.", "NOT_FOUND TRANSACTION_NOT_FOUND"),
    "changed-amount": row(
        "Another amount under the id of a purchase that waits.", "FAILED_PRECONDITION TRANSACTION_CHANGED"
    ),
    "weak-grant": row("A grant of level 1 where level 2 is asked for.", WEAK_GRANT),
    "sign-in-grant": row("A grant to sign in, for a purchase or for binding.", OTHER_GRANT),
}

REQUESTS: Final = {
    "impossible-purchase": row(
        "An amount below 0 or of 2^63, no currency, a payee with NUL or of a megabyte.",
        INVALID, "INVALID_ARGUMENT AMOUNT_NOT_POSITIVE", "INVALID_ARGUMENT CURRENCY_UNKNOWN",
        "INVALID_ARGUMENT MESSAGE_TOO_LARGE",
        why="A check of 0 is no attack: it asks about the account, and holds nothing.",
    ),
    "other-content": row("Another request under an id that was used.", "ALREADY_EXISTS REQUEST_ID_REUSED"),
    "clients-clock": row(
        "Times of the client: they prolong nothing, and one far from now is refused.",
        "INVALID_ARGUMENT EVENT_TIME_OUT_OF_RANGE", NO_GRANT,
        why="Within five minutes `event_time` places a purchase in its customer's history, and does nothing else.",
    ),
    "retried-proof": row(
        "A proof whose answer was lost, sent again: the same grant under the same id, and never a second.", USED
    ),
    "too-large": row("A message above the largest size.", "RESOURCE_EXHAUSTED"),
    "undefined": row("An unknown value of an enum; nothing of what must be chosen from.", INVALID),
    "secrets-lying-about": row("A code, seed, key, grant or phone number in a log, file, error or metric: none."),
    "codes-from-a-dump": row("All codes tried against a copy of the files, without the keys: none matches."),
    "key-gone-early": row("A key renewed while codes are in flight and seeds lie sealed under it.", OK),
}  # fmt: skip

RESTARTS: Final = {
    "restart-for-tries": row("A restart, so that wrong answers to a challenge are forgotten.", BURNED),
    "restart-for-locks": row("A restart, so that a lock is forgotten.", LOCKED),
    "restart-for-budgets": row("A restart, so that messages are forgotten.", SPENT),
    "restart-for-challenges": row("A restart, so that what was proven may be proven again.", USED),
    "restart-for-grants": row("A restart, so that a grant may be used again.", NO_GRANT),
    "restart-for-app-codes": row("A restart, so that an app's code or a spare one may be used again.", WRONG),
}

ATTACKS: Final[dict[str, Attack]] = {**CALLERS, **CODES, **DEVICES, **GRANTS, **REQUESTS, **RESTARTS}


def named(item: pytest.Item) -> list[str]:
    """Return the attacks whose answers a test shows."""
    return [mark.args[0] for mark in item.iter_markers(MARK)]


class _Collected:
    """What pytest itself would run: a test that is not there, is not one, or is left out shows nothing."""

    def __init__(self) -> None:
        self.tests: dict[str, list[str]] = {}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            test = item.nodeid.partition("[")[0]
            for name in named(item):
                shown = self.tests.setdefault(name, [])
                if test not in shown:
                    shown.append(test)


def main() -> int:
    """List every attack with its tests; say what is missing, and end with 1 if anything is."""
    collected, said = _Collected(), io.StringIO()
    with contextlib.redirect_stdout(said):
        ended = pytest.main(["--collect-only", "-qq", "-m", f"{MARK} and not long", "tests/rpc"], plugins=[collected])
    if ended is not pytest.ExitCode.OK:
        sys.stderr.write(said.getvalue())
        return 1
    faults = [f"{name}: no test shows its answer" for name in ATTACKS if name not in collected.tests]
    faults += [f"{name}: borne by a test, and not in the table" for name in collected.tests.keys() - ATTACKS.keys()]
    for name, attack in ATTACKS.items():
        lines = [f"{name}: {attack.what}", *(f"    {answer}" for answer in attack.answers)]
        lines += [f"    {attack.why}"] if attack.why else []
        sys.stdout.write("\n".join([*lines, *(f"    {test}" for test in collected.tests.get(name, ()))]) + "\n")
    sys.stderr.writelines(f"{fault}\n" for fault in faults)
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
