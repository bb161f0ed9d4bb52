from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import protovalidate
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass

from riskgate.common.v1 import access_pb2
from tests.style.paths import ROOT, load_script

protos = load_script("protos")

# Field numbers of descriptor.proto, as they appear in the paths of SourceCodeInfo.
FILE_PACKAGE, FILE_MESSAGE, FILE_ENUM, FILE_SERVICE, FILE_EXTENSION = 2, 4, 5, 6, 7
MESSAGE_FIELD, MESSAGE_NESTED, MESSAGE_ENUM, MESSAGE_ONEOF = 2, 3, 4, 8
ENUM_VALUE = 2
SERVICE_METHOD = 2

# What a call that changes nothing begins with.
READING_VERBS = ("Explain", "Get", "List", "Validate", "Watch")

Element = tuple[tuple[int, ...], str]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[descriptor_pb2.FileDescriptorProto]:
    image = protos.compile_image(tmp_path_factory.mktemp("image") / "image.binpb")
    compiled = descriptor_pb2.FileDescriptorSet.FromString(image.read_bytes())
    return [file for file in compiled.file if file.name.startswith("riskgate/")]


def test_generated_code_is_what_the_sources_give() -> None:
    assert protos.stale_files() == []


def test_every_element_of_the_contract_is_commented(files: list[descriptor_pb2.FileDescriptorProto]) -> None:
    uncommented = []
    for file in files:
        commented = {tuple(place.path) for place in file.source_code_info.location if place.leading_comments.strip()}
        uncommented += [name for path, name in _elements(file) if path not in commented]

    assert uncommented == []


def test_the_folder_of_a_file_is_its_package(files: list[descriptor_pb2.FileDescriptorProto]) -> None:
    assert [file.name for file in files if Path(file.name).parent != Path(*file.package.split("."))] == []


def test_every_call_names_the_scope_it_needs(files: list[descriptor_pb2.FileDescriptorProto]) -> None:
    unscoped = [
        method.full_name for method in _methods(files) if not method.GetOptions().Extensions[access_pb2.required_scope]
    ]

    assert unscoped == []


def test_requests_and_responses_are_used_by_one_call_each(
    files: list[descriptor_pb2.FileDescriptorProto],
) -> None:
    misnamed = [
        method.full_name
        for method in _methods(files)
        if method.input_type.name != f"{method.name}Request" or method.output_type.name != f"{method.name}Response"
    ]

    assert misnamed == []


def test_every_rule_of_every_request_can_be_evaluated(
    files: list[descriptor_pb2.FileDescriptorProto],
) -> None:
    validator = protovalidate.Validator()

    for method in _methods(files):
        validator.collect_violations(GetMessageClass(method.input_type)())


def test_no_request_with_an_id_accepts_an_empty_message(
    files: list[descriptor_pb2.FileDescriptorProto],
) -> None:
    validator = protovalidate.Validator()
    accepting = [
        method.full_name
        for method in _methods(files)
        if any(field.name == "request_id" for field in method.input_type.fields)
        and not validator.collect_violations(GetMessageClass(method.input_type)())
    ]

    assert accepting == []


def test_every_call_that_changes_something_names_its_attempt(
    files: list[descriptor_pb2.FileDescriptorProto],
) -> None:
    nameless = [
        method.full_name
        for method in _methods(files)
        if not method.name.startswith(READING_VERBS) and "request_id" not in _fields_two_deep(method)
    ]

    assert nameless == []


def test_every_generated_module_can_be_imported() -> None:
    names = [
        ".".join(path.relative_to(ROOT / "protos/gen").with_suffix("").parts)
        for path in (ROOT / "protos/gen/riskgate").rglob("*_pb2*.py")
    ]

    assert names
    for name in names:
        __import__(name)
        assert name in sys.modules


def _fields_two_deep(method: MethodDescriptor) -> set[str]:
    """Names of the request's fields and of its messages' fields: a batch names its attempts one by one."""
    outer = list(method.input_type.fields)
    return {field.name for field in outer} | {
        inner.name for field in outer if field.message_type is not None for inner in field.message_type.fields
    }


def _methods(files: list[descriptor_pb2.FileDescriptorProto]) -> Iterator[MethodDescriptor]:
    pool = descriptor_pool.Default()
    for file in files:
        __import__(file.name.removesuffix(".proto").replace("/", ".") + "_pb2")
        for service in file.service:
            yield from pool.FindServiceByName(f"{file.package}.{service.name}").methods


def _elements(file: descriptor_pb2.FileDescriptorProto) -> Iterator[Element]:
    yield (FILE_PACKAGE,), file.name
    for index, extension in enumerate(file.extension):
        yield (FILE_EXTENSION, index), f"{file.package}.{extension.name}"
    for index, message in enumerate(file.message_type):
        yield from _message_elements(message, (FILE_MESSAGE, index), file.package)
    for index, enum in enumerate(file.enum_type):
        yield from _enum_elements(enum, (FILE_ENUM, index), file.package)
    for index, service in enumerate(file.service):
        path, name = (FILE_SERVICE, index), f"{file.package}.{service.name}"
        yield path, name
        for number, method in enumerate(service.method):
            yield (*path, SERVICE_METHOD, number), f"{name}.{method.name}"


def _message_elements(message: descriptor_pb2.DescriptorProto, path: tuple[int, ...], scope: str) -> Iterator[Element]:
    if message.options.map_entry:  # protoc's own, for a map field
        return
    name = f"{scope}.{message.name}"
    yield path, name
    for index, field in enumerate(message.field):
        yield (*path, MESSAGE_FIELD, index), f"{name}.{field.name}"
    for index, oneof in enumerate(message.oneof_decl):
        # proto3 `optional` makes a oneof nobody wrote.
        if not any(field.proto3_optional and field.oneof_index == index for field in message.field):
            yield (*path, MESSAGE_ONEOF, index), f"{name}.{oneof.name}"
    for index, nested in enumerate(message.nested_type):
        yield from _message_elements(nested, (*path, MESSAGE_NESTED, index), name)
    for index, enum in enumerate(message.enum_type):
        yield from _enum_elements(enum, (*path, MESSAGE_ENUM, index), name)


def _enum_elements(enum: descriptor_pb2.EnumDescriptorProto, path: tuple[int, ...], scope: str) -> Iterator[Element]:
    name = f"{scope}.{enum.name}"
    yield path, name
    for index, value in enumerate(enum.value):
        yield (*path, ENUM_VALUE, index), f"{name}.{value.name}"
