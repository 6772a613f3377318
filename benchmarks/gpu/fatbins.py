"""GPU code in a shared library: fat binaries, each the kernels of one source file for several compute capabilities.

`trimmed` removes the code that a machine never needs: entries for other capabilities, and all entries of fat binaries
whose kernels are not launched. The library keeps its layout. A fat binary without entries is what a file without code
for the GPU is: CUDA loads code when its first kernel is launched, and then reports error 209, no kernel image.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass

FAT_BINARY = struct.Struct("<IHHQ")
"""Magic number, version, bytes of this header, bytes of all entries after it."""
ENTRY = struct.Struct("<HHIQ12xI")
"""Kind (1: PTX, 2: machine code), version, bytes of the entry's header, bytes after it; capability times ten."""
MAGIC, VERSION = 0xBA55ED50, 1
SEGMENT = struct.Struct("<II6Q")
"""A program header of an ELF file: type, flags, offset, address, ..."""
LOADED = 1


@dataclass(frozen=True)
class FatBinary:
    """One fat binary.

    Attributes:
        offset: in the file.
        size: bytes, with its header.
        entries: offset in the file, bytes and capability (90 for 9.0) of each entry.
    """

    offset: int
    size: int
    entries: tuple[tuple[int, int, int], ...]


def fat_binaries(library: bytes) -> Iterator[FatBinary]:
    """All fat binaries of a shared library, in the order of the file."""
    start, magic = 0, struct.pack("<I", MAGIC)
    while (start := library.find(magic, start)) >= 0:
        found = _fat_binary(library, start)
        if found is None:
            start += len(magic)
            continue
        yield found
        start += found.size


def _fat_binary(library: bytes, offset: int) -> FatBinary | None:
    """The fat binary at an offset; None if these bytes only look like one."""
    if offset + FAT_BINARY.size > len(library):
        return None
    _, version, header, size = FAT_BINARY.unpack_from(library, offset)
    if version != VERSION or header != FAT_BINARY.size or offset + header + size > len(library):
        return None
    entries, place, end = [], offset + header, offset + header + size
    while place + ENTRY.size <= end:
        kind, _, own_header, length, capability = ENTRY.unpack_from(library, place)
        if kind not in (1, 2) or own_header < ENTRY.size or place + own_header + length > end:
            return None
        entries.append((place, own_header + length, capability))
        place += own_header + length
    return FatBinary(offset, header + size, tuple(entries)) if place == end else None


def trimmed(library: bytes, capability: int, launched: Collection[int], most_unlaunched: int) -> bytes:
    """A shared library of the same size without GPU code that is not needed.

    Args:
        library: its bytes.
        capability: that of the GPU, times ten; entries for others are removed.
        launched: offsets of the fat binaries whose kernels are launched.
        most_unlaunched: of the other fat binaries those stay whose entries for this capability have at most so many
            bytes, since a GPU may choose kernels that were not launched where the table was made.
    """
    made = bytearray(library)
    for fat in fat_binaries(library):
        kept = [library[start : start + size] for start, size, of in fat.entries if of == capability]
        code = b"".join(kept)
        if fat.offset not in launched and len(code) > most_unlaunched:
            code = b""
        header = FAT_BINARY.pack(MAGIC, VERSION, FAT_BINARY.size, len(code))
        made[fat.offset : fat.offset + fat.size] = (header + code).ljust(fat.size, b"\0")
    return bytes(made)


def file_offset(library: bytes, address: int) -> int:
    """Where in an ELF file the byte lies that is loaded at an address.

    Raises:
        ValueError: if none is.
    """
    first, *_, size, count = struct.unpack_from("<Q8xIHHH", library, 32)
    for index in range(count):
        kind, _, offset, start, _, length, *_ = SEGMENT.unpack_from(library, first + index * size)
        if kind == LOADED and start <= address < start + length:
            return int(offset + address - start)
    raise ValueError(f"address {address:#x}: not in this library")
