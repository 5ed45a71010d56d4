"""From messages to the dataclasses of the same names and fields."""

from dataclasses import fields
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from client import status_info
from tickring.v1 import types_pb2

T = TypeVar("T")
_PRIORITY_PREFIX = "PRIORITY_"


def read(kind: type[T], message: Message) -> T:
    """A message as this dataclass of `client.status_info`."""
    values = {field.name: _value(message, field.name) for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**values)


def label_of(priority: int) -> str:
    """A class by its name, or by its number where a newer server has more of them."""
    known = types_pb2.Priority.DESCRIPTOR.values_by_number.get(priority)
    return str(priority) if known is None else known.name.removeprefix(_PRIORITY_PREFIX).lower()


def _value(message: Message, name: str) -> Any:
    field = message.DESCRIPTOR.fields_by_name[name]
    value = getattr(message, name)
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        assert field.message_type is not None
        kind = getattr(status_info, field.message_type.name)
        return tuple(read(kind, each) for each in value)
    if field.is_repeated:
        return tuple(value)
    if field.enum_type is types_pb2.Priority.DESCRIPTOR:
        return label_of(value)
    if field.has_presence and not message.HasField(name):
        return None
    return value
