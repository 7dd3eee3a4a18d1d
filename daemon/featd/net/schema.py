"""Caffe's messages, as far as featd reads them: Caffe's field numbers under a protobuf package of our own.

Real pycaffe registers the package `caffe` in the same process, so this one lives in a pool of its own and is
built here, at import, from a table: no generated code that ties featd to one version of protobuf.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from featd.net.messages import TABLE
from featd.net.messages_old import OLD_TABLE

Message = Any
"""A message of this schema; protobuf makes the classes at run time."""

PACKAGE: Final = "featd.caffe"


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """One row of the table. `type` is a scalar's name, or the name of a message or enum of this schema."""

    number: int
    name: str
    type: str
    repeated: bool
    packed: bool
    default: str | None


_SCALARS: Final = {"double": 1, "float": 2, "int64": 3, "int32": 5, "bool": 8, "string": 9, "uint32": 13}
_TYPE_MESSAGE: Final = 11
_TYPE_ENUM: Final = 14

FIELDS: Final[dict[str, dict[str, FieldSpec]]] = {}
"""Message name -> field name -> its row."""
ENUMS: Final[dict[str, dict[str, int]]] = {}
"""`Message.Enum` -> value name -> number."""


def _read_table() -> None:
    message = ""
    for line in (TABLE + OLD_TABLE.lstrip()).strip().splitlines():
        if not line.startswith(" "):
            message = line
            FIELDS[message] = {}
            continue
        words = line.split()
        if words[0] == "enum":
            values = (word.partition("=") for word in words[2:])
            ENUMS[f"{message}.{words[1]}"] = {
                name: int(number or at) for at, (name, _, number) in enumerate(values)
            }
            continue
        kind = words[2].rstrip("*!")
        default = words[4] if len(words) > 3 else None
        FIELDS[message][words[1]] = FieldSpec(
            number=int(words[0]),
            name=words[1],
            type=message + kind if kind.startswith(".") else kind,
            repeated=words[2][-1] in "*!",
            packed=words[2].endswith("!"),
            default=default,
        )


def _build() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="featd/caffe.proto", package=PACKAGE, syntax="proto2")
    for message, fields in FIELDS.items():
        entry = file.message_type.add(name=message)
        for path, values in ENUMS.items():
            owner, _, name = path.partition(".")
            if owner == message:
                enum = entry.enum_type.add(name=name)
                for value, number in values.items():
                    enum.value.add(name=value, number=number)
        for spec in fields.values():
            field = entry.field.add(name=spec.name, number=spec.number, label=3 if spec.repeated else 1)
            if spec.type in _SCALARS:
                field.type = _SCALARS[spec.type]
            else:
                field.type = _TYPE_ENUM if spec.type in ENUMS else _TYPE_MESSAGE
                field.type_name = f".{PACKAGE}.{spec.type}"
            if spec.packed:
                field.options.packed = True
            if spec.default is not None:
                field.default_value = spec.default
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))
        for name in FIELDS
    }


_read_table()
CLASSES: Final[dict[str, Any]] = _build()


def new(message: str) -> Message:
    """An empty message of this schema."""
    return CLASSES[message]()


def is_message(type_name: str) -> bool:
    """Whether a field's type is a message of this schema, rather than a scalar or an enum."""
    return type_name in FIELDS
