"""Reads protocol buffer messages from bytes: fields without a schema, and without copies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types (protobuf.dev/programming-guides/encoding)."""
FIXED = {FIXED64: 8, FIXED32: 4}
MOST_FIELDS = 200_000
"""Most fields of a message. Real models have a few thousand; in a hostile file each byte could be one."""


class Field(NamedTuple):
    """One field of a message.

    Attributes:
        number: the field's number.
        value: its bytes if it is length-delimited, else its integer value.
        begin, end: its position in the message, key included.
    """

    number: int
    value: memoryview | int
    begin: int
    end: int


def fields(message: bytes | memoryview) -> Iterator[Field]:
    """The fields of a message in their order.

    Raises:
        ValueError: if it is not a message, is cut off, or has more than `MOST_FIELDS`.
    """
    view, at, count = memoryview(message), 0, 0
    while at < len(view):
        begin, count = at, count + 1
        key, at = _varint(view, at)
        number, wire = key >> 3, key & 7
        value: memoryview | int
        if wire == VARINT:
            value, at = _varint(view, at)
        elif wire == BYTES:
            size, at = _varint(view, at)
            value, at = view[at : at + size], at + size
        elif wire in FIXED:
            value, at = int.from_bytes(view[at : at + FIXED[wire]], "little"), at + FIXED[wire]
        else:
            raise ValueError("not a protocol buffer")
        if at > len(view) or not number or count > MOST_FIELDS:
            raise ValueError("not a protocol buffer, or cut off")
        yield Field(number, value, begin, at)


def messages(message: bytes | memoryview, number: int) -> list[memoryview]:
    """The values of a message's length-delimited fields with a number.

    Raises:
        ValueError: as `fields`.
    """
    return [each.value for each in fields(message) if each.number == number and isinstance(each.value, memoryview)]


def text(message: bytes | memoryview, number: int) -> str:
    """A text field of a message; empty if it has none.

    Raises:
        ValueError: as `fields`; if it occurs twice, or is not text.
    """
    fields = messages(message, number)
    if len(fields) > 1:
        raise ValueError("a field is there twice")
    return bytes(fields[0]).decode() if fields else ""


def encoded(number: int, value: bytes) -> bytes:
    """A length-delimited field."""
    return _as_varint(number << 3 | BYTES) + _as_varint(len(value)) + value


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        if at >= len(view):
            break
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("not a protocol buffer, or cut off")


def _as_varint(value: int) -> bytes:
    digits = []
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])
