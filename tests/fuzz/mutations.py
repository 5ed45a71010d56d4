"""Turns a good message into a bad or an unusual one. Seeded: the same numbers give the same bytes."""

import random
import struct
from collections.abc import Callable, Sequence

from tests.fuzz.wire import (
    END_GROUP,
    I32,
    I64,
    LEN,
    START_GROUP,
    VARINT,
    Field,
    copy,
    depth,
    encode,
    numbers,
    varint,
    walk,
)

# However long a message has become, it is cut off here.
CUT_BYTES = 600_000
# A tree of this depth is made no deeper: Python has to copy it and write it down.
DEEP = 100
# Shares of the messages; the others have their fields changed.
UNCHANGED = 0.12
BYTES_ONLY = 0.2

INTEGERS = (
    *(0, 1, 2, 5, 6, 127, 128, 255, 1 << 14, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 53),
    *((1 << 62) - 1, 1 << 62, (1 << 63) - 1, 1 << 63, -1, -2, -5, -(1 << 31)),
)
DIMENSIONS = (0, 1, 2, 50, 60, 64, 65, 1 << 31, 1 << 32, 1 << 40, (1 << 63) - 1, -1, -50, -(1 << 63))
TEXTS = (
    *(b"", b" ", b"\x00", b"1", b"0", b"-1", b"01", b"1.0", b" 1", b"1e3", b"999999999999", b"9" * 5000),
    *(b"nan", b"None", b"true", b"../../etc", b"%s%n{}{0}", b"window", b"features", b"sp500_direction"),
    *(b"FP32", b"INT64", b"BYTES", b"HIGH", b"real_time_trading", b"a\nb\r\n\tc", b"\x1b[31m", b"\"'\\"),
    *("ü€😀".encode(), "٣".encode(), "²".encode(), "\u202e\u200b".encode(), b"x" * 129, b"y" * 70_000),
    *(b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"good\xfe", b"\xe2\x82"),
)
FLOATS = (
    *(float("nan"), float("inf"), float("-inf"), 3.4e38, -3.4e38, 1e-45, -0.0, 0.0, 1e30, -1e30, 65504.0),
    *(1.0, 1e10),
)

Change = Callable[[random.Random, list[Field]], None]


def mutate(rng: random.Random, seed: list[Field], other: bytes) -> bytes:
    """A message made of `seed`, perhaps with a part of `other`; at most CUT_BYTES."""
    return _mutate(rng, seed, other)[:CUT_BYTES]


def _mutate(rng: random.Random, seed: list[Field], other: bytes) -> bytes:
    kind = rng.random()
    if kind < UNCHANGED:
        return encode(seed)
    if kind < UNCHANGED + BYTES_ONLY:
        return _change_bytes(rng, encode(seed), other)
    fields = copy(seed)
    for _ in range(rng.choice((1, 1, 1, 1, 2, 4))):
        rng.choice(_CHANGES)(rng, fields)
    raw = encode(fields)
    return _change_bytes(rng, raw, other) if rng.random() < 0.1 else raw


def _change_bytes(rng: random.Random, raw: bytes, other: bytes) -> bytes:
    """Without a look at what they mean."""
    at, to = sorted((rng.randint(0, len(raw)), rng.randint(0, len(raw))))
    match rng.randrange(9):
        case 0:
            changed = bytearray(raw)
            for _ in range(rng.choice((1, 1, 2, 8, 64)) if raw else 0):
                # Names, shapes and lengths are at the two ends; the middle is mostly numbers.
                ends = min(len(raw), 64)
                place = rng.choice((rng.randrange(len(raw)), rng.randrange(ends), -1 - rng.randrange(ends)))
                changed[place] ^= 1 << rng.randrange(8)
            return bytes(changed)
        case 1:
            return raw[:at]
        case 2:
            return raw[:64][: rng.randint(0, 64)]
        case 3:
            return raw + rng.randbytes(rng.choice((1, 2, 10, 1000)))
        case 4:
            return raw[:at] + raw[to:]
        case 5:
            return raw[:to] + raw[at:]
        case 6:
            return raw[:at] + other[rng.randint(0, len(other)) :]
        case 7:
            return rng.randbytes(rng.choice((0, 1, 2, 3, 9, 100, 5000)))
        case _:
            return raw[:at] + rng.randbytes(rng.choice((1, 4, 9))) + raw[at:]


def _duplicate(rng: random.Random, fields: list[Field]) -> None:
    if place := _anywhere(rng, fields):
        siblings, index = place
        siblings.insert(rng.randint(0, len(siblings)), siblings[index].copy())


def _delete(rng: random.Random, fields: list[Field]) -> None:
    if place := _anywhere(rng, fields):
        siblings, index = place
        del siblings[index]


def _swap(rng: random.Random, fields: list[Field]) -> None:
    """Two fields, or what two of them hold."""
    if depth(fields) > DEEP:
        return
    if (one := _anywhere(rng, fields)) and (two := _anywhere(rng, one[0])):
        (first, i), (second, j) = one, two
        if rng.random() < 0.5:
            first[i], second[j] = second[j].copy(), first[i].copy()
        elif first[i].kind == second[j].kind:
            first[i].value, second[j].value = second[j].copy().value, first[i].copy().value


def _renumber(rng: random.Random, fields: list[Field]) -> None:
    if field := _any_field(rng, fields):
        field.number = rng.choice((0, 1, 2, 3, 4, 5, 6, 7, 15, 16, 19_000, (1 << 29) - 1, 1 << 29, 1 << 40))


def _retype(rng: random.Random, fields: list[Field]) -> None:
    """Another wire type, with or without the bytes that belong to it."""
    if field := _any_field(rng, fields):
        field.kind = rng.randrange(8)
        if rng.random() < 0.5:
            sizes = {I64: 8, I32: 4}
            field.value = (
                rng.getrandbits(64) if field.kind == VARINT else rng.randbytes(sizes.get(field.kind, 0))
            )


def _lie(rng: random.Random, fields: list[Field]) -> None:
    """About a length."""
    if field := _any_field(rng, fields, LEN):
        field.lie = rng.choice((-1000, -2, -1, 1, 2, 127, 10_000, 1 << 31, (1 << 32) - 1, (1 << 63) - 1))


def _pad(rng: random.Random, fields: list[Field]) -> None:
    """Varints of up to 100 bytes."""
    if field := _any_field(rng, fields):
        field.padding = rng.choice((1, 2, 5, 8, 9, 10, 100))


def _repeat(rng: random.Random, fields: list[Field]) -> None:
    # Once in a message: one of these in another would be gigabytes.
    if (field := _any_field(rng, fields)) and not _has_repeated(fields):
        field.repeat = rng.choice((2, 3, 100, 5000, 50_000))


def _extreme_integer(rng: random.Random, fields: list[Field]) -> None:
    if field := _any_field(rng, fields, VARINT):
        field.value = rng.choice(INTEGERS)


def _packed(rng: random.Random, fields: list[Field]) -> None:
    """A list of numbers: another shape, or typed contents."""
    if field := _packed_field(rng, fields):
        field.value = _packed_value(rng, field.packed or 0, _raw(field))


def _packed_value(rng: random.Random, kind: int, old: bytes) -> bytes:
    count = rng.choice((0, 1, 2, 3, 4, 8, 65, 1000))
    if kind == I32:
        return b"".join(struct.pack("<f", rng.choice(FLOATS)) for _ in range(count))
    if kind == I64:
        return b"".join(struct.pack("<d", rng.choice(FLOATS)) for _ in range(count))
    values = numbers(old) if rng.random() < 0.7 else [rng.choice(DIMENSIONS) for _ in range(count)]
    for _ in range(rng.choice((0, 1, 1, 2)) if values else 0):
        values[rng.randrange(len(values))] = rng.choice(DIMENSIONS)
    if rng.random() < 0.2:
        values.append(rng.choice(DIMENSIONS))
    if rng.random() < 0.1 and len(values) < 10:  # not what is long already, again
        values *= rng.choice((2, 30, 1000))
    return b"".join(varint(value, rng.choice((0, 0, 0, 3))) for value in values)


def _unpack(rng: random.Random, fields: list[Field]) -> None:
    """A list of varints as one field for each of them."""
    places = [
        (siblings, index)
        for siblings, index in walk(fields)
        if siblings[index].packed == VARINT and isinstance(siblings[index].value, bytes)
    ]
    if places:
        siblings, index = rng.choice(places)
        field = siblings[index]
        siblings[index : index + 1] = [
            Field(field.number, VARINT, value, field.name) for value in numbers(_raw(field))
        ]


def _text(rng: random.Random, fields: list[Field]) -> None:
    texts = [field for field in _all(fields) if field.is_text]
    if texts:
        rng.choice(texts).value = rng.choice(TEXTS)


def _data(rng: random.Random, fields: list[Field]) -> None:
    """The bytes of a tensor: special values, another length."""
    blobs = [
        field
        for field in _all(fields)
        if isinstance(field.value, bytes) and field.kind == LEN and not field.is_text and field.packed is None
    ]
    if not blobs:
        return
    field = rng.choice(blobs)
    value = bytearray(_raw(field))
    match rng.randrange(6):
        case 0 | 1:
            for _ in range(rng.choice((1, 1, 2, 100))):
                at = rng.randrange(max(1, len(value) // 4)) * 4
                value[at : at + 4] = struct.pack("<f", rng.choice(FLOATS))
        case 2:
            value[:] = struct.pack("<f", rng.choice(FLOATS)) * (len(value) // 4)
        case 3:
            del value[rng.randint(0, len(value)) :]
        case 4:
            value += rng.randbytes(rng.choice((1, 3, 4, 12_000)))
        case _:
            value[:] = rng.randbytes(len(value))
    field.value = bytes(value)


def _groups(rng: random.Random, fields: list[Field]) -> None:
    """Unknown groups in each other, closed or not; what reads them may use its stack."""
    if _has_repeated(fields):
        return
    begun = rng.choice((1, 50, 99, 100, 101, 10_000, 60_000))
    number = rng.choice((1, 4, 15))
    ended = begun if rng.random() < 0.5 else rng.randint(0, begun)
    siblings, index = _anywhere(rng, fields) or (fields, 0)
    siblings[index:index] = [
        Field(number, START_GROUP, b"", repeat=begun),
        Field(number, END_GROUP, b"", repeat=max(1, ended)),
    ]


def _nest(rng: random.Random, fields: list[Field]) -> None:
    """A message in itself, as the field that it is."""
    places = [(siblings, index) for siblings, index in walk(fields) if siblings[index].kind == LEN]
    if places and not _has_repeated(fields) and depth(fields) <= DEEP:
        siblings, index = rng.choice(places)
        field = siblings[index]
        for _ in range(rng.choice((1, 2, 10, 99, 120, 150))):
            field = Field(field.number, LEN, [field], field.name)
        siblings[index] = field


def _unknown(rng: random.Random, fields: list[Field]) -> None:
    """A field that no version of the message has."""
    siblings, index = _anywhere(rng, fields) or (fields, 0)
    value: int | bytes = (
        rng.getrandbits(64) if rng.random() < 0.5 else rng.randbytes(rng.choice((0, 1, 1000)))
    )
    siblings.insert(
        index, Field(rng.choice((50, 1000, 99_999)), VARINT if isinstance(value, int) else LEN, value)
    )


_CHANGES: Sequence[Change] = (
    *(
        _duplicate,
        _delete,
        _swap,
        _renumber,
        _retype,
        _lie,
        _pad,
        _repeat,
        _extreme_integer,
        _extreme_integer,
    ),
    *(_packed, _packed, _unpack, _text, _text, _text, _data, _data, _groups, _nest, _unknown),
)


def _has_repeated(fields: list[Field]) -> bool:
    return any(field.repeat > 1 for field in _all(fields))


def _all(fields: list[Field]) -> list[Field]:
    return [siblings[index] for siblings, index in walk(fields)]


def _any_field(rng: random.Random, fields: list[Field], kind: int | None = None) -> Field | None:
    found = [field for field in _all(fields) if kind in (None, field.kind)]
    return rng.choice(found) if found else None


def _packed_field(rng: random.Random, fields: list[Field]) -> Field | None:
    found = [field for field in _all(fields) if field.packed is not None and isinstance(field.value, bytes)]
    return rng.choice(found) if found else None


def _anywhere(rng: random.Random, fields: list[Field]) -> tuple[list[Field], int] | None:
    places = list(walk(fields))
    return rng.choice(places) if places else None


def _raw(field: Field) -> bytes:
    assert isinstance(field.value, bytes)
    return field.value
