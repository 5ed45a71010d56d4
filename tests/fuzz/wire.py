"""Protobuf messages as trees of fields, which can be written down in ways that no encoder would.

What every field is comes from the message's descriptor; only serialised messages of ours are read here, so
reading trusts them.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

from google.protobuf.descriptor import Descriptor, FieldDescriptor

VARINT, I64, LEN, START_GROUP, END_GROUP, I32 = range(6)
# All that one field becomes by being repeated.
MAX_REPEATED_BYTES = 200_000
_PACKED_KINDS = {
    **dict.fromkeys((FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_FIXED32), I32),
    **dict.fromkeys((FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FIXED64), I64),
}
_LENGTH_DELIMITED = (
    FieldDescriptor.TYPE_STRING,
    FieldDescriptor.TYPE_BYTES,
    FieldDescriptor.TYPE_MESSAGE,
)


@dataclass
class Field:
    """One field as it is written.

    Attributes:
        value: an integer of a varint, the fields of a message, else the bytes.
        name: of the field in its message; empty for one that the message does not have.
        lie: what the length prefix says too much.
        padding: bytes by which tag and varints are longer than they need to be.
        repeat: times that it is written, while that is no more than MAX_REPEATED_BYTES.
    """

    number: int
    kind: int
    value: "int | bytes | list[Field]"
    name: str = ""
    is_text: bool = False
    packed: int | None = None
    lie: int = 0
    padding: int = 0
    repeat: int = 1

    def copy(self) -> "Field":
        """With copies of the fields below it."""
        return replace(self, value=copy(self.value)) if isinstance(self.value, list) else replace(self)


def copy(fields: list[Field]) -> list[Field]:
    """A tree of its own."""
    return [field.copy() for field in fields]


def parse(raw: bytes, descriptor: Descriptor) -> list[Field]:
    """The tree of a serialised message of this type."""
    fields = []
    position = 0
    while position < len(raw):
        tag, position = _read_varint(raw, position)
        number, kind = tag >> 3, tag & 7
        spec = descriptor.fields_by_number[number]
        value: int | bytes | list[Field]
        if kind == VARINT:
            value, position = _read_varint(raw, position)
        else:
            size = {I64: 8, I32: 4}.get(kind)
            if size is None:
                size, position = _read_varint(raw, position)
            value = raw[position : position + size]
            position += size
            if spec.message_type is not None:
                value = parse(value, spec.message_type)
        packed = kind == LEN and spec.type not in _LENGTH_DELIMITED
        fields.append(
            Field(
                number,
                kind,
                value,
                spec.name,
                spec.type == FieldDescriptor.TYPE_STRING,
                _PACKED_KINDS.get(spec.type, VARINT) if packed else None,
            )
        )
    return fields


def encode(fields: list[Field]) -> bytes:
    """The bytes of a tree, lies and all."""
    return b"".join(map(_encode, fields))


def walk(fields: list[Field]) -> Iterator[tuple[list[Field], int]]:
    """Every field of a tree, as a list and an index of it."""
    for index, field in enumerate(fields):
        yield fields, index
        if isinstance(field.value, list):
            yield from walk(field.value)


def depth(fields: list[Field]) -> int:
    """Levels of messages in each other."""
    found = 0
    while fields:
        found += 1
        fields = [inner for field in fields if isinstance(field.value, list) for inner in field.value]
    return found


def varint(value: int, padding: int = 0) -> bytes:
    """Of the value's lowest 64 bits, with so many bytes more than it takes."""
    value &= (1 << 64) - 1
    coded = bytearray()
    while value >= 0x80:
        coded.append(value & 0x7F | 0x80)
        value >>= 7
    coded.append(value)
    if padding:
        coded[-1] |= 0x80
        coded += b"\x80" * (padding - 1) + b"\x00"
    return bytes(coded)


def numbers(value: bytes) -> list[int]:
    """Of packed varints, those before the end or before what is none."""
    found = []
    position = 0
    with suppress(IndexError):
        while position < len(value):
            number, position = _read_varint(value, position)
            found.append(number)
    return found


def _encode(field: Field) -> bytes:
    raw = varint(field.number << 3 | field.kind, field.padding)
    if isinstance(field.value, int):
        raw += varint(field.value, field.padding)
    else:
        value = encode(field.value) if isinstance(field.value, list) else field.value
        if field.kind == LEN:
            raw += varint(max(0, len(value) + field.lie), field.padding)
        raw += value
    # Not more, whatever has been put into it since the number was drawn: gigabytes otherwise.
    return raw * min(field.repeat, max(1, MAX_REPEATED_BYTES // len(raw)))


def _read_varint(raw: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
