"""
Every rule passes Google's CEL engine before it may decide anything: names, types, bounds, one trial run.

The engine is also the referee at run time for what the compiler does not translate. Its errors come
back as ordinary values that are truthy, so nothing here ever looks at a bare value: only type BOOL
with value True is a hit.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Final, NamedTuple

from cel_expr_python import cel
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError

from riskgate_server.domain.fraud.features import Value
from riskgate_server.rules.checked_pb2 import CheckedExpr, Expr

NODES_MAX: Final = 300
"""Largest tree of one rule. The engine itself bounds depth (32) and loops; rules have no loops."""

MESSAGE_CHARACTERS_MAX: Final = 300

_CEL_TYPES: Final = {
    "int": cel.Type.INT,
    "double": cel.Type.DOUBLE,
    "string": cel.Type.STRING,
    "bool": cel.Type.BOOL,
}
_STATUS: Final = re.compile(r"^[A-Z_]+: | \[[A-Z_]+\]$")
_POSITIONED: Final = re.compile(r"ERROR: <input>:(-?\d+):(-?\d+): (.*)")


class ExpressionInvalid(Exception):
    """An expression that must not be loaded. Line and column count from 1 within it; 0 is unknown."""

    def __init__(self, message: str, line: int = 0, column: int = 0) -> None:
        super().__init__(message)
        self.message = message[:MESSAGE_CHARACTERS_MAX]
        self.line = max(line, 0)
        self.column = max(column, 0)

    def __str__(self) -> str:
        """Return the message, led by its place where that is known."""
        return f"line {self.line}, column {self.column}: {self.message}" if self.line else self.message


class Checked(NamedTuple):
    """A rule's expression in both forms: the engine's program and the typed tree."""

    program: cel.Expression
    tree: CheckedExpr
    names: tuple[str, ...]
    """The features and lists it mentions, in the order of mention."""


class Verdict(NamedTuple):
    """What the engine says of one rule: `hit` is None on an error, then `error` says why."""

    hit: bool | None
    error: str = ""


class Checker:
    """Knows the names and types one ruleset may use."""

    def __init__(self, types: Mapping[str, str], lists: Mapping[str, Collection[str]]) -> None:
        variables = {name: _CEL_TYPES[cel_type] for name, cel_type in types.items()}
        variables |= {name: cel.Type.List(cel.Type.STRING) for name in lists}
        self._names = tuple(types)
        self._lists = {name: list(members) for name, members in lists.items()}
        self._environment = cel.NewEnv(variables=variables)

    def check(self, source: str) -> Checked:
        """
        Parse and type an expression that must yield a bool.

        Raises:
            ExpressionInvalid: with line and column where the engine names them.
        """
        try:
            program = self._environment.compile(source)
        except RuntimeError as error:
            raise _invalid(str(error)) from None
        if program.return_type() != cel.Type.BOOL:
            message = f"a rule must yield a bool, this is {program.return_type().name()}"
            raise ExpressionInvalid(message, 1, 1)
        try:
            tree = CheckedExpr.FromString(any_pb2.Any.FromString(program.serialize()).value)
        except DecodeError:
            message = "the checked expression cannot be read back"
            raise ExpressionInvalid(message) from None
        names: dict[str, None] = {}
        count = 0
        for node in _nodes(tree.expr):
            count += 1
            kind = node.WhichOneof("expr_kind")
            if kind == "comprehension_expr":
                message = "loops (all, exists, map, filter) are not part of the rule language; use `in`"
                raise ExpressionInvalid(message)
            if kind == "struct_expr":
                message = "maps and messages are not part of the rule language"
                raise ExpressionInvalid(message)
            if kind == "ident_expr":
                names[node.ident_expr.name] = None
        if count > NODES_MAX:
            message = f"the expression has {count} nodes, at most {NODES_MAX} are allowed"
            raise ExpressionInvalid(message)
        return Checked(program, tree, tuple(names))

    def run(self, program: cel.Expression, values: tuple[Value, ...]) -> Verdict:
        """Evaluate one rule in the engine."""
        data: dict[str, object] = dict(zip(self._names, values, strict=True))
        data.update(self._lists)
        try:
            result = program.eval(data=data)
            if result.type() == cel.Type.BOOL:
                return Verdict(result.value() is True)
            return Verdict(None, _STATUS.sub("", str(result.value()))[:MESSAGE_CHARACTERS_MAX])
        except Exception as error:  # noqa: BLE001 - a binding at 0.1: whatever it raises is this rule's error
            return Verdict(None, type(error).__name__)


def _nodes(root: Expr) -> Iterator[Expr]:
    pending = [root]
    while pending:
        node = pending.pop()
        yield node
        kind = node.WhichOneof("expr_kind")
        if kind == "call_expr":
            pending.extend(reversed(node.call_expr.args))
            if node.call_expr.HasField("target"):
                pending.append(node.call_expr.target)
        elif kind == "list_expr":
            pending.extend(reversed(node.list_expr.elements))
        elif kind == "select_expr":
            pending.append(node.select_expr.operand)


def _invalid(text: str) -> ExpressionInvalid:
    match = _POSITIONED.search(text)
    if match is None:
        return ExpressionInvalid(_STATUS.sub("", text).splitlines()[0])
    return ExpressionInvalid(_STATUS.sub("", match[3]), int(match[1]), int(match[2]))
