"""Explicit little-endian DICOM files taken apart into elements, and put together again with one thing changed."""

from __future__ import annotations

import random
import struct

LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
"""Value representations whose length takes four bytes (DICOM PS3.5, 7.1.2)."""
VRS = (*LONG, b"AT", b"CS", b"DS", b"FD", b"IS", b"LO", b"PN", b"SS", b"TM", b"UI", b"UL", b"US", b"ZZ", b"\0\0")
LENGTHS = (0, 1, 3, 255, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1)
VALUES = (
    b"", b"nan", b"inf\\inf\\inf", b"1e999", b"-1", b"0", b"99999999999999999999", b"\xff" * 8, b"1\\2", b"\\" * 40,
    b"=1+1\n", b"../../x", b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.4.90", b"1.2.840.10008.1.2.4.80",
    b"1.2.840.10008.1.2.5",
    b"ISO 2022 IR 87", b"ISO_IR 192\\", b"x" * 70000,
)  # fmt: skip

Element = tuple[bytes, bytes, bytes]
"""Tag, value representation and value, as bytes."""


def elements_of(content: bytes) -> tuple[bytes, list[Element]]:
    """What is before the first element, and the elements of the top level; of pixels of undefined length the rest."""
    at, found = 132, []
    while at + 8 <= len(content):
        tag, vr = content[at : at + 4], content[at + 4 : at + 6]
        size, begin = (
            (struct.unpack_from("<I", content, at + 8)[0], at + 12)
            if vr in LONG
            else (struct.unpack_from("<H", content, at + 6)[0], at + 8)
        )
        end = len(content) if size == 2**32 - 1 else begin + size
        found.append((tag, vr, content[begin:end]))
        at = end
    return content[:132], found


def encoded(element: Element, length: int | None = None) -> bytes:
    """An element as bytes; its length may be a lie."""
    tag, vr, value = element
    size = len(value) if length is None else length
    if vr in LONG:
        return tag + vr + b"\0\0" + struct.pack("<I", size % 2**32) + value
    return tag + vr + struct.pack("<H", size % 2**16) + value


def changed(content: bytes, chance: random.Random) -> bytes:
    """A file with one to three of its elements changed: value, length, kind, place, or nested in a sequence."""
    start, elements = elements_of(content)
    pieces = [encoded(each) for each in elements]
    if pieces and elements[-1][0] == b"\xe0\x7f\x10\x00" and len(elements[-1][2]) % 2 == 0:
        end = elements[-1][2][-8:] == b"\xfe\xff\xdd\xe0\0\0\0\0"
        pieces[-1] = encoded(elements[-1], 2**32 - 1 if end else None)
    for _ in range(chance.randint(1, 3)):
        number = chance.randrange(len(pieces))
        tag, vr, value = elements[number]
        way = chance.randrange(7)
        if way == 0:
            pieces[number] = encoded((tag, vr, chance.choice(VALUES)))
        elif way == 1:
            pieces[number] = encoded((tag, vr, value), chance.choice(LENGTHS))
        elif way == 2:
            pieces[number] = encoded((tag, chance.choice(VRS), value))
        elif way == 3:
            pieces[number] = b""
        elif way == 4:
            other = chance.randrange(len(pieces))
            pieces[number], pieces[other] = pieces[other], pieces[number]
        elif way == 5:
            item = b"\xfe\xff\x00\xe0" + struct.pack("<I", chance.choice((len(pieces[number]), 2**32 - 1, 0)))
            nested = item * chance.choice((1, 3, 3000)) + pieces[number]
            pieces[number] = encoded((tag, b"SQ", nested), chance.choice((len(nested), 2**32 - 1)))
        else:
            place = chance.randrange(len(value) + 1)
            pieces[number] = encoded((tag, vr, value[:place] + chance.randbytes(2) + value[place + 2 :]))
    return start + b"".join(pieces)
