"""
Turn the contract (`protos/`) into Python, and check it.

`generate` writes `protos/gen/riskgate`, and the one message of the rules room beside its source; `check` says
whether what is committed is what the sources give; `lint` runs buf over the contract, and over what changed
in it since the last release; `image` writes `build/protos/image.binpb`, the contract with its imports as one
descriptor set, for tools that call without Python.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import FileDescriptor

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "protos"
GENERATED = SOURCES / "gen"
# Not part of the contract: the rules room reads the checker's own answer with it.
CHECKED = "riskgate_server/rules/checked.proto"
BUILD = ROOT / "build" / "protos"
IMAGE = BUILD / "image.binpb"

# Pinned: a newer buf may bring new rules, and a build must not turn red by itself.
BUF = "@bufbuild/buf@1.75.0"
BUF_CONFIG = json.dumps(
    {
        "version": "v2",
        "lint": {"use": ["STANDARD", "COMMENTS"], "ignore": ["buf", "google"]},
        "breaking": {"use": ["FILE"], "ignore": ["buf", "google"]},
    }
)

# Files our sources may import that are not ours. protoc reads them as descriptors out of the installed
# packages, so that nobody's .proto is copied into this repository.
FOREIGN_MODULES = (
    "google.protobuf.descriptor_pb2",
    "google.protobuf.duration_pb2",
    "google.protobuf.field_mask_pb2",
    "google.protobuf.timestamp_pb2",
    "google.protobuf.any_pb2",
    "google.rpc.status_pb2",
    "google.type.date_pb2",
)


class ProtoError(Exception):
    """The contract could not be compiled or does not pass; the message is for people."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the commands and return the exit status."""
    commands = {"generate": generate, "check": check, "lint": lint, "image": image}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=sorted(commands))
    try:
        commands[parser.parse_args(arguments).command]()
    except ProtoError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def generate() -> None:
    """Replace the generated Python by what the sources give now."""
    fresh = fresh_files()
    for leftover in set(_files_below(GENERATED / "riskgate")) - set(fresh):
        leftover.unlink()
    for path, content in fresh.items():
        if not path.exists() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    print(f"protos: {len(sources())} sources generated into {GENERATED.relative_to(ROOT)}")


def check() -> None:
    """Raise ProtoError unless the committed Python is what the sources give."""
    stale = stale_files()
    if stale:
        listing = "\n".join(f"  {path}" for path in stale)
        raise ProtoError(f"generated code is not what its sources give; run `make protos`:\n{listing}")
    print(f"protos: generated code is fresh ({len(sources())} sources)")


def lint() -> None:
    """Run `buf lint` and `buf breaking`, or say why not: buf comes by npm, which is not everywhere."""
    if shutil.which("npx") is None:
        print("protos: buf lint and buf breaking skipped: npx is not installed")
        return
    if _run(_buf("--version"), timeout=180).returncode != 0:
        print("protos: buf lint and buf breaking skipped: buf cannot be fetched by npx")
        return
    compiled = compile_image(IMAGE)
    _must(_buf("lint", str(compiled), "--config", BUF_CONFIG), "buf lint")
    _must(_buf("format", "--diff", "--exit-code", str(SOURCES)), f"buf format (npx {BUF} format --write protos)")
    print("protos: buf lint and format passed")
    release = _last_release()
    if release is None:
        print("protos: buf breaking skipped: there is no release to compare with")
        return
    baseline = compile_image(BUILD / "baseline.binpb", _sources_at(release))
    _must(_buf("breaking", str(compiled), "--against", str(baseline), "--config", BUF_CONFIG), "buf breaking")
    print(f"protos: buf breaking passed against {release}")


def image() -> None:
    """Write the contract as one file."""
    print(compile_image(IMAGE).relative_to(ROOT))


def sources(root: Path = SOURCES) -> list[str]:
    """Every .proto of ours, as protoc names it."""
    return sorted(str(path.relative_to(root)) for path in root.glob("riskgate/**/*.proto"))


def stale_files() -> list[str]:
    """Generated files that are missing, superfluous or different from what the sources give."""
    fresh = fresh_files()
    changed = {path for path, content in fresh.items() if not path.exists() or path.read_bytes() != content}
    leftover = set(_files_below(GENERATED / "riskgate")) - set(fresh)
    return sorted(str(path.relative_to(ROOT)) for path in changed | leftover)


def fresh_files() -> dict[Path, bytes]:
    """Every generated file, by its place in the checkout, as the sources give it now."""
    with tempfile.TemporaryDirectory() as scratch:
        contract, server = Path(scratch) / "contract", Path(scratch) / "server"
        contract.mkdir()
        server.mkdir()
        compile_python(contract)
        _protoc([f"--python_out={server}", f"--mypy_out={server}"], ROOT / "server", [CHECKED])
        return {
            place / path.relative_to(compiled): path.read_bytes()
            for compiled, place in ((contract, GENERATED), (server, ROOT / "server"))
            for path in _files_below(compiled)
        }


def compile_python(target: Path) -> None:
    """Write the Python modules, gRPC stubs and types of all sources into `target`."""
    outputs = [f"--{kind}_out={target}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    _protoc(outputs, SOURCES, sources())
    modules = [path.relative_to(target) for path in target.glob("riskgate/**/*.py")]
    for package in {parent for module in modules for parent in module.parents if parent.name}:
        (target / package / "__init__.py").touch()
    (target / "riskgate" / "__init__.py").write_text(
        '"""The contract, generated from `protos/` by `make protos`; never edited."""\n', encoding="utf-8"
    )
    (target / "riskgate" / "py.typed").touch()


def compile_image(target: Path, root: Path = SOURCES) -> Path:
    """Write all sources with their imports and comments as one descriptor set, and return its path."""
    target.parent.mkdir(parents=True, exist_ok=True)
    _protoc([f"--descriptor_set_out={target}", "--include_imports", "--include_source_info"], root, sources(root))
    return target


def foreign_descriptors() -> descriptor_pb2.FileDescriptorSet:
    """The files of others that ours import, dependencies first."""
    # A private module of protovalidate: the lock pins it, and the freshness test notices if it moves.
    from protovalidate._gen.buf.validate import validate_pb  # noqa: PLC0415 - named beside its reason

    found: dict[str, descriptor_pb2.FileDescriptorProto] = {}
    for name in FOREIGN_MODULES:
        _collect(importlib.import_module(name).DESCRIPTOR, found)
    validate = descriptor_pb2.FileDescriptorProto.FromString(validate_pb.desc().proto.to_binary())
    return descriptor_pb2.FileDescriptorSet(file=[*found.values(), validate])


def _collect(file: FileDescriptor, found: dict[str, descriptor_pb2.FileDescriptorProto]) -> None:
    for dependency in file.dependencies:
        _collect(dependency, found)
    found.setdefault(file.name, descriptor_pb2.FileDescriptorProto.FromString(file.serialized_pb))


def _protoc(options: Sequence[str], root: Path, files: Sequence[str]) -> None:
    # The mypy plugins are found by name on PATH; they live beside the interpreter that runs us.
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    with tempfile.NamedTemporaryFile(suffix=".binpb") as foreign:
        foreign.write(foreign_descriptors().SerializeToString())
        foreign.flush()
        protoc = [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"-I{root}",
            f"--descriptor_set_in={foreign.name}",
        ]
        _must([*protoc, *options, *files], "protoc", {**os.environ, "PATH": search})


def _last_release() -> str | None:
    described = _run(["git", "-C", str(ROOT), "describe", "--tags", "--abbrev=0", "--match", "v*"])
    return described.stdout.strip() or None if described.returncode == 0 else None


def _sources_at(release: str) -> Path:
    archive = subprocess.run(
        ["git", "-C", str(ROOT), "archive", release, "protos"], check=True, capture_output=True
    ).stdout
    target = BUILD / "baseline"
    shutil.rmtree(target, ignore_errors=True)
    with tarfile.open(fileobj=BytesIO(archive)) as tar:
        tar.extractall(target, filter="data")
    return target / "protos"


def _files_below(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts]


def _buf(*arguments: str) -> list[str]:
    return ["npx", "--yes", BUF, *arguments]


def _must(command: Sequence[str], name: str, environment: dict[str, str] | None = None) -> None:
    done = _run(command, environment=environment)
    if done.returncode != 0:
        raise ProtoError(f"{name} failed:\n{done.stdout}{done.stderr}")


def _run(
    command: Sequence[str], *, environment: dict[str, str] | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=timeout)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, returncode=124, stdout="", stderr=f"no answer in {timeout} s")


if __name__ == "__main__":
    sys.exit(main())
