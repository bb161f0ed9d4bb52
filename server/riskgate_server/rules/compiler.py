"""
From checked CEL trees to one Python function for the whole ruleset.

The function does what CEL says for the subset it knows: comparison, logic, `in`, the ternary, field
names, arithmetic, a few string functions. It never decides what it is unsure of: a rule outside the
subset is left to the CEL engine from the start, and a rule whose translation raises (overflow,
division by zero) is handed to the engine for that one evaluation. This makes CEL's rule that `&&`
and `||` absorb errors come for free: Python's `and` and `or` answer as CEL does whenever they answer
without raising, and when they raise the engine is asked.

Nothing of the ruleset's text reaches the generated source except literals through `repr`: names
become `f_<number>` and `l_<number>`, functions come from a fixed table, and the function sees no
builtins.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

from riskgate_server.domain.fraud.features import Value
from riskgate_server.rules.checked_pb2 import CheckedExpr, Expr

Evaluate = Callable[[Sequence[Value]], tuple[list[int], list[int]]]

INT_MIN: Final = -(2**63)
INT_MAX: Final = 2**63 - 1

_SAFE_DOUBLE: Final = 2.0**62
"""Beyond it, where doubles thin out near the edge of int64, the engine decides how `int()` rounds."""

_COMPARISONS: Final = {"_>_": ">", "_>=_": ">=", "_<_": "<", "_<=_": "<="}
_COMPARED: Final = {
    f"{word}_{suffix}": cel_type
    for word in ("greater", "greater_equals", "less", "less_equals")
    for suffix, cel_type in (("int64", "int"), ("double", "double"), ("string", "string"))
}
_CHECKED_INT: Final = {"add_int64": "+", "subtract_int64": "-", "multiply_int64": "*"}
_DOUBLE: Final = {"add_double": "+", "subtract_double": "-", "multiply_double": "*", "divide_double": "/"}
"""Python's doubles are CEL's, but for division by zero: Python raises, and the engine answers."""
_INT_HELPERS: Final = {"divide_int64": "int_divide", "modulo_int64": "int_modulo"}
_STRING_METHODS: Final = {
    "starts_with_string": "startswith",
    "ends_with_string": "endswith",
    "contains_string": "__contains__",
}
_CONVERSIONS: Final = {
    "int64_to_double": ("float", "double"),
    "double_to_int64": ("double_to_int", "int"),
    "int64_to_int64": ("", "int"),
    "double_to_double": ("", "double"),
    "string_to_string": ("", "string"),
    "bool_to_bool": ("", "bool"),
}
_SCALARS: Final = frozenset(("int", "double", "string", "bool"))


class _Unknown(Exception):
    """The tree holds something the translation does not know."""


class _Undecided(ArithmeticError):
    """The translation will not say; the engine must."""


def compile_rules(
    trees: Sequence[CheckedExpr], types: Mapping[str, str], lists: Mapping[str, Collection[str]]
) -> tuple[Evaluate, tuple[int, ...]]:
    """
    Return the function, and the positions of the rules it leaves to the engine every time.

    The function takes feature values in the order of `types` and returns the positions of the rules
    that hit and of those it could not decide this time.
    """
    source, foreign = generate(trees, types, lists)
    namespace: dict[str, object] = {
        "__builtins__": {},
        "Exception": Exception,
        "float": float,
        "len": len,
        "int_divide": int_divide,
        "int_modulo": int_modulo,
        "double_to_int": double_to_int,
        "overflow": _overflow,
    }
    namespace |= {f"l_{number}": frozenset(members) for number, members in enumerate(lists.values())}
    # The source is ours: see the module's promise on what may appear in it.
    exec(compile(source, "<ruleset>", "exec"), namespace)  # noqa: S102
    evaluate: Evaluate = namespace["evaluate"]  # type: ignore[assignment] # defined by the line above
    return evaluate, foreign


def generate(
    trees: Sequence[CheckedExpr], types: Mapping[str, str], lists: Mapping[str, Collection[str]]
) -> tuple[str, tuple[int, ...]]:
    """Return the source of `evaluate` and the positions of the rules it leaves out."""
    names = {name: (f"f_{number}", cel_type) for number, (name, cel_type) in enumerate(types.items())}
    names |= {name: (f"l_{number}", "list") for number, name in enumerate(lists)}
    unpacked = "".join(f"f_{number}, " for number in range(len(types)))
    lines = ["def evaluate(values):", f"    {unpacked}= values", "    hits = []", "    undecided = []"]
    foreign: list[int] = []
    for position, tree in enumerate(trees):
        try:
            code, _ = _Translator(tree, names).translate(tree.expr)
        except _Unknown:
            foreign.append(position)
            continue
        lines += [
            "    try:",
            f"        if {code}:",
            f"            hits.append({position})",
            "    except Exception:",
            f"        undecided.append({position})",
        ]
    lines.append("    return hits, undecided")
    return "\n".join(lines) + "\n", tuple(foreign)


class _Translator:
    """Turns one tree into one Python expression; every result is in parentheses or an atom."""

    def __init__(self, tree: CheckedExpr, names: Mapping[str, tuple[str, str]]) -> None:
        self._references = tree.reference_map
        self._names = names
        self._temporaries = 0

    def translate(self, node: Expr) -> tuple[str, str]:
        """Return source and CEL type of a node."""
        kind = node.WhichOneof("expr_kind")
        if kind == "const_expr":
            return _literal(node)
        if kind == "ident_expr" and node.ident_expr.name in self._names:
            return self._names[node.ident_expr.name]
        if kind == "call_expr":
            return self._call(node)
        raise _Unknown

    def _call(self, node: Expr) -> tuple[str, str]:
        call = node.call_expr
        overloads = list(self._references[node.id].overload_id) if node.id in self._references else []
        if len(overloads) != 1:
            raise _Unknown
        overload = overloads[0]
        if overload == "in_list":
            return self._in_list(call.args[0], call.args[1])
        operands = [call.target] if call.HasField("target") else []
        operands += call.args
        parts = [self.translate(operand) for operand in operands]
        codes = [code for code, _ in parts]
        types = [cel_type for _, cel_type in parts]
        if len(parts) == 1:
            return self._unary(overload, codes[0], types[0])
        if len(parts) == 2:  # noqa: PLR2004 - binary
            return self._binary(call.function, overload, codes, types)
        if overload == "conditional" and types[0] == "bool" and types[1] == types[2] and types[1] in _SCALARS:
            return f"({codes[1]} if {codes[0]} else {codes[2]})", types[1]
        raise _Unknown

    def _unary(self, overload: str, code: str, cel_type: str) -> tuple[str, str]:
        if overload == "logical_not" and cel_type == "bool":
            return f"(not {code})", "bool"
        if overload == "negate_int64" and cel_type == "int":
            return self._in_range(f"-{code}"), "int"
        if overload == "negate_double" and cel_type == "double":
            return f"(-{code})", "double"
        if overload in {"size_string", "string_size"} and cel_type == "string":
            return f"len({code})", "int"
        if overload in _CONVERSIONS and cel_type in _SCALARS:
            function, result = _CONVERSIONS[overload]
            return f"{function}({code})", result
        raise _Unknown

    def _binary(self, function: str, overload: str, codes: list[str], types: list[str]) -> tuple[str, str]:
        left, right = codes
        if types[0] != types[1] or types[0] not in _SCALARS:
            raise _Unknown
        if overload in {"logical_and", "logical_or"} and types[0] == "bool":
            return f"({left} {'and' if overload == 'logical_and' else 'or'} {right})", "bool"
        if overload in {"equals", "not_equals"}:
            return f"({left} {'==' if overload == 'equals' else '!='} {right})", "bool"
        if function in _COMPARISONS and _COMPARED.get(overload) == types[0]:
            return f"({left} {_COMPARISONS[function]} {right})", "bool"
        if overload in _CHECKED_INT and types[0] == "int":
            return self._in_range(f"{left} {_CHECKED_INT[overload]} {right}"), "int"
        if overload in _DOUBLE and types[0] == "double":
            return f"({left} {_DOUBLE[overload]} {right})", "double"
        if overload in _INT_HELPERS and types[0] == "int":
            return f"{_INT_HELPERS[overload]}({left}, {right})", "int"
        if overload in _STRING_METHODS and types[0] == "string":
            return f"{left}.{_STRING_METHODS[overload]}({right})", "bool"
        if overload == "add_string" and types[0] == "string":
            return f"({left} + {right})", "string"
        raise _Unknown

    def _in_list(self, element: Expr, container: Expr) -> tuple[str, str]:
        code, cel_type = self.translate(element)
        if container.WhichOneof("expr_kind") == "list_expr":
            members = [self.translate(member) for member in container.list_expr.elements]
            # Whole numbers and text only: with doubles, membership in a Python set is not CEL's equality.
            if not members or cel_type not in {"int", "string"} or any(kind != cel_type for _, kind in members):
                raise _Unknown
            return f"({code} in {{{', '.join(member for member, _ in members)}}})", "bool"
        name, container_type = self.translate(container)
        if container_type != "list" or cel_type != "string":
            raise _Unknown
        return f"({code} in {name})", "bool"

    def _in_range(self, code: str) -> str:
        self._temporaries += 1
        name = f"t_{self._temporaries}"
        return f"({name} if {INT_MIN} <= ({name} := {code}) <= {INT_MAX} else overflow())"


def _literal(node: Expr) -> tuple[str, str]:
    constant = node.const_expr
    kind = constant.WhichOneof("constant_kind")
    if kind == "bool_value":
        return repr(constant.bool_value), "bool"
    if kind == "int64_value":
        return f"({constant.int64_value!r})", "int"
    if kind == "double_value" and -INT_MAX < constant.double_value < INT_MAX:
        return f"({constant.double_value!r})", "double"
    if kind == "string_value":
        return repr(constant.string_value), "string"
    raise _Unknown


def int_divide(dividend: int, divisor: int) -> int:
    """Divide towards zero as CEL does; zero and overflow are for the engine to report."""
    quotient = abs(dividend) // abs(divisor)
    if (dividend < 0) != (divisor < 0):
        return -quotient
    return quotient if quotient <= INT_MAX else _overflow()


def int_modulo(dividend: int, divisor: int) -> int:
    """Return the remainder with the sign of the dividend, as CEL does."""
    if dividend == INT_MIN:
        _overflow()
    rest = abs(dividend) % abs(divisor)
    return -rest if dividend < 0 else rest


def double_to_int(number: float) -> int:
    """Truncate a double that is certainly within int64; NaN fails the comparison too."""
    if -_SAFE_DOUBLE < number < _SAFE_DOUBLE:
        return int(number)
    return _overflow()


def _overflow() -> int:
    raise _Undecided
