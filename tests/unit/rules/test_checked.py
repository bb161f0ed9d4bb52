from __future__ import annotations

from pathlib import Path

from cel_expr_python import cel
from google.protobuf import any_pb2
from grpc_tools import protoc

import riskgate_server.rules as room
from riskgate_server.rules.checked_pb2 import CheckedExpr

FOLDER = Path(room.__file__).parent


def test_the_committed_description_is_what_its_source_generates(tmp_path: Path) -> None:
    server = FOLDER.parent.parent
    source = (FOLDER / "checked.proto").relative_to(server)

    failed = protoc.main(["protoc", f"-I{server}", f"--python_out={tmp_path}", str(server / source)])

    assert not failed
    fresh = (tmp_path / source).with_name("checked_pb2.py").read_text("utf-8")
    assert fresh == (FOLDER / "checked_pb2.py").read_text("utf-8")


def test_the_engines_serialised_form_reads_as_described() -> None:
    """The wheel brings no Python class for it, so a change of format would show here first."""
    program = cel.NewEnv(variables={"n": cel.Type.INT}).compile("-n > 5 && n in [1]")

    packed = any_pb2.Any.FromString(program.serialize())
    tree = CheckedExpr.FromString(packed.value)

    assert packed.type_url == "type.googleapis.com/cel.expr.CheckedExpr"
    assert tree.expr.call_expr.function == "_&&_"
    assert [list(reference.overload_id) for _, reference in sorted(tree.reference_map.items())] == [
        ["negate_int64"],
        [],
        ["greater_int64"],
        [],
        ["in_list"],
        ["logical_and"],
    ]
