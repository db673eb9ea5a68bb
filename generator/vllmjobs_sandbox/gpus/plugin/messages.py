"""The messages and methods of `protos`, made at import, so that nothing has to be generated or installed.

They live in a pool of their own: another package of the same process may declare `grpc.health.v1` too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from google.protobuf import duration_pb2, message_factory, timestamp_pb2, wrappers_pb2
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message

from vllmjobs_sandbox.gpus.plugin import protos

_PACKAGE = re.compile(r"package ([\w.]+)")
_MESSAGE = re.compile(r"message (\w+) \{")
_ONEOF = re.compile(r"oneof (\w+) \{")
_RPC = re.compile(r"rpc (\w+)\((\w+)\) returns \((stream )?(\w+)\)")
_FIELD = re.compile(r"(repeated )?(?:map<string, ([\w.]+)>|([\w.]+)) (\w+) = (\d+);")
_SCALARS = {
    "bool": FieldDescriptorProto.TYPE_BOOL,
    "bytes": FieldDescriptorProto.TYPE_BYTES,
    "double": FieldDescriptorProto.TYPE_DOUBLE,
    "int32": FieldDescriptorProto.TYPE_INT32,
    "int64": FieldDescriptorProto.TYPE_INT64,
    "string": FieldDescriptorProto.TYPE_STRING,
    "uint64": FieldDescriptorProto.TYPE_UINT64,
}


@dataclass(frozen=True)
class Method:
    """One call: its gRPC path, what goes in, what comes out, and whether it comes again and again."""

    path: str
    request: type[Message]
    response: type[Message]
    streams: bool


def message(name: str, /, **fields: object) -> Message:
    """Make the message with this name; unique, so packages need not be spelt out."""
    made: Message = _CLASSES[name](**fields)
    return made


def _declare(text: str) -> FileDescriptorProto:
    """Read one of the texts in `protos`, line by line."""
    lines = [line.strip() for line in text.strip().splitlines()]
    package = _PACKAGE.fullmatch(lines[0])
    assert package, f"no package in {lines[0]!r}"
    file = FileDescriptorProto(name=f"{package[1]}.proto", package=package[1], syntax="proto3")
    oneof: int | None = None
    for line in lines:
        if found := _MESSAGE.fullmatch(line):
            file.message_type.add(name=found[1])
        elif found := _ONEOF.fullmatch(line):
            oneof = len(file.message_type[-1].oneof_decl)
            file.message_type[-1].oneof_decl.add(name=found[1])
        elif found := _FIELD.fullmatch(line):
            _add_field(file, file.message_type[-1], found, oneof)
        elif line == "}":
            oneof = None
    return file


def _add_field(
    file: FileDescriptorProto, into: DescriptorProto, found: re.Match[str], oneof: int | None
) -> None:
    repeated, map_value, type_name, name, number = found.groups()
    field = into.field.add(name=name, number=int(number), label=FieldDescriptorProto.LABEL_OPTIONAL)
    if oneof is not None:
        field.oneof_index = oneof
    if repeated or map_value:
        field.label = FieldDescriptorProto.LABEL_REPEATED
    if map_value:
        # A map is a list of entries, and protobuf knows it by this very name of the entry.
        entry = into.nested_type.add(name="".join(part.capitalize() for part in name.split("_")) + "Entry")
        entry.options.map_entry = True
        _set_type(file, entry.field.add(name="key", number=1), "string")
        _set_type(file, entry.field.add(name="value", number=2), map_value)
        type_name = f"{file.package}.{into.name}.{entry.name}"
    _set_type(file, field, type_name)


def _set_type(file: FileDescriptorProto, field: FieldDescriptorProto, type_name: str) -> None:
    if type_name in _SCALARS:
        field.type = _SCALARS[type_name]
        return
    field.type = FieldDescriptorProto.TYPE_MESSAGE
    # Always the full name: within Spec, a bare "Attr" would be its field of that name.
    field.type_name = f".{type_name}" if "." in type_name else f".{file.package}.{type_name}"


def _methods(text: str) -> Iterator[Method]:
    service = re.search(r"service (\w+)", text)
    package = _PACKAGE.search(text)
    for call, request, streams, response in _RPC.findall(text):
        assert service and package
        path = f"/{package[1]}.{service[1]}/{call}"
        yield Method(path, _CLASSES[request], _CLASSES[response], bool(streams))


def _classes(texts: tuple[str, ...]) -> dict[str, type[Message]]:
    pool = DescriptorPool()
    standard = [module.DESCRIPTOR for module in (duration_pb2, timestamp_pb2, wrappers_pb2)]
    for descriptor in standard:
        pool.AddSerializedFile(descriptor.serialized_pb)
    files: list[FileDescriptorProto] = []
    for text in texts:
        file = _declare(text)
        file.dependency.extend([*(known.name for known in standard), *(known.name for known in files)])
        pool.AddSerializedFile(file.SerializeToString())
        files.append(file)
    return {
        declared.name: message_factory.GetMessageClass(
            pool.FindMessageTypeByName(f"{file.package}.{declared.name}")
        )
        for file in files
        for declared in file.message_type
    }


_TEXTS = (
    protos.HEALTH,
    protos.CONTROLLER,
    protos.HCLSPEC,
    protos.BASE,
    protos.STRUCTS,
    protos.DEVICE,
)
_CLASSES = _classes(_TEXTS)

METHODS: dict[str, Method] = {
    method.path.rpartition("/")[2]: method for text in _TEXTS for method in _methods(text)
}
"""Every call that Nomad makes on a device plugin, by its bare name (Check, PluginInfo, Fingerprint, …)."""
