"""One table from refusals to statuses, and one list of reasons: complete in both directions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import grpc
import pytest

import riskgate_server
from riskgate.common.v1.reason_pb2 import ErrorReason
from riskgate_server.domain import errors
from riskgate_server.rpc.status import FIELDS_IN_MESSAGE, STATUS_OF, proto_of, status_of
from tests.rpc.calling import refused_by

PREFIX: Final = "ERROR_REASON_"
PUBLISHED: Final = {name.removeprefix(PREFIX) for name, number in ErrorReason.items() if number}

NOT_YET: Final[dict[str, str]] = {}
"""Published reasons that this version never gives, and why."""

NEVER_SENT: Final = {
    "RULESET_INVALID": "the operator reads it at start; rulesets do not come over the wire yet",
}
"""Reasons of refusals that no caller sees."""


def families(family: type[errors.RiskgateError] = errors.RiskgateError) -> Iterator[type[errors.RiskgateError]]:
    for below in family.__subclasses__():
        yield below
        yield from families(below)


EVERY: Final = sorted(set(families()), key=lambda family: family.__name__)
FAMILIES: Final = sorted(errors.RiskgateError.__subclasses__(), key=lambda family: family.__name__)
"""What stands in the table; the others are kinds of these."""


def an_error(family: type[errors.RiskgateError]) -> errors.RiskgateError:
    if issubclass(family, errors.ResourceExhausted):
        return family("RATE_LIMITED", "slower", retry_after_seconds=0.25)
    if issubclass(family, errors.InvalidRequest):
        return family("FIELD_INVALID", "wrong", errors.FieldViolation("a.b[0]", "must be"))
    return family("INTERNAL", "words", detail="more")


def test_every_refusal_has_a_row_in_the_table() -> None:
    assert set(FAMILIES) == STATUS_OF.keys()
    assert [family for family in EVERY if not any(parent in STATUS_OF for parent in family.__mro__)] == []


def test_each_family_has_a_status_of_its_own() -> None:
    assert len(set(STATUS_OF.values())) == len(STATUS_OF)
    assert not set(STATUS_OF.values()) & {grpc.StatusCode.OK, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED}


def test_a_family_without_a_row_has_its_parents_status() -> None:
    class Narrower(errors.NotFound):
        pass

    assert status_of(Narrower("HOLD_NOT_FOUND", "no")) is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_the_wire_has_all_that_a_refusal_says(family: type[errors.RiskgateError]) -> None:
    error = an_error(family)

    told = refused_by(proto_of(error))

    assert (told.code, told.reason) == (STATUS_OF[family], error.reason)
    assert told.message == ("a.b[0]: must be" if isinstance(error, errors.InvalidRequest) else error.message)
    assert told.metadata == error.details
    assert told.fields == ({"a.b[0]": "must be"} if isinstance(error, errors.InvalidRequest) else {})
    assert told.retry_seconds == (0.25 if isinstance(error, errors.ResourceExhausted) else 0)


def test_a_message_names_the_first_fields_and_how_many_more() -> None:
    violations = [errors.FieldViolation(f"f{number}", "must be") for number in range(FIELDS_IN_MESSAGE + 2)]

    told = refused_by(proto_of(errors.InvalidRequest("FIELD_INVALID", "wrong", *violations)))

    assert told.message.startswith("f0: must be; f1: must be; ")
    assert told.message.endswith("; and 2 more")
    assert len(told.fields) == len(violations)


def test_a_caller_is_never_told_to_come_back_at_once() -> None:
    soon = errors.ResourceExhausted("RATE_LIMITED", "slower", retry_after_seconds=1e-9)

    assert refused_by(proto_of(soon)).retry_seconds > 0


def _given_reasons(tree: ast.AST) -> Iterator[str]:
    """Yield the reasons a module gives: first words of refusals, and what is called `reason` before one."""
    names = {family.__name__ for family in EVERY} | {"invalid"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            # A kind of refusal gives its reason where it is made.
            if called in names or (called == "__init__" and str(node.args[0].value).isupper()):
                yield str(node.args[0].value)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple):
            for target in node.targets:
                if isinstance(target, ast.Tuple) and getattr(target.elts[0], "id", "") == "reason":
                    assert isinstance(node.value.elts[0], ast.Constant)
                    yield str(node.value.elts[0].value)


def _sources() -> list[ast.AST]:
    root = Path(riskgate_server.__file__).parent
    return [ast.parse(path.read_text(encoding="utf-8")) for path in sorted(root.rglob("*.py"))]


def test_every_reason_the_engine_gives_is_published() -> None:
    given = {reason for tree in _sources() for reason in _given_reasons(tree)}

    assert len(given) > 40
    assert given - PUBLISHED == NEVER_SENT.keys()


def test_every_published_reason_is_given_somewhere_or_not_yet() -> None:
    words = {node.value for tree in _sources() for node in ast.walk(tree) if isinstance(node, ast.Constant)}

    assert PUBLISHED - words == NOT_YET.keys()
