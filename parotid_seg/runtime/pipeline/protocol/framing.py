"""Frames: messages of limited size between the main process and its workers.

    header  20 bytes, little-endian: b"PSEG", bytes of the head (4), 4 zero bytes, bytes of the arrays (8)
    head    MessagePack of a type that the reader expects
    arrays  raw bytes in C order, one array after the other, of types and shapes that the reader expects

Reading never creates an object of another type, and nothing is allocated before its size has been checked.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

HEADER = struct.Struct("<4sI4xQ")
MAGIC = b"PSEG"
MOST_HEAD_BYTES = 4 << 20
"""Most bytes of a worker's head."""


class ProtocolError(Exception):
    """A process sent an invalid message; the text states what was found and expected, in one line."""


def write_frame(stream: IO[bytes], head: bytes, arrays: Sequence[NDArray[Any]] = ()) -> None:
    """Write a frame. The arrays' bytes are sent without being copied first, if they are contiguous."""
    contiguous = [np.ascontiguousarray(array) for array in arrays]
    stream.write(HEADER.pack(MAGIC, len(head), sum(array.nbytes for array in contiguous)) + head)
    for array in contiguous:
        if array.size:
            stream.write(_bytes_of(array))
    stream.flush()


def read_head(stream: IO[bytes], most_bytes: int) -> tuple[bytes, int]:
    """Read a frame up to its arrays.

    Args:
        stream: the connection.
        most_bytes: of the head.

    Returns:
        The head, and how many bytes of arrays follow.

    Raises:
        EOFError: if the stream ends.
        ProtocolError: if it is not a frame, or its head is too long.
    """
    magic, head_bytes, array_bytes = HEADER.unpack(_read(stream, HEADER.size))
    if magic != MAGIC:
        raise ProtocolError("found other bytes than those that a frame begins with")
    if head_bytes > most_bytes:
        raise ProtocolError(f"found a head of {head_bytes} bytes, expected at most {most_bytes}")
    return _read(stream, head_bytes), array_bytes


def read_arrays(
    stream: IO[bytes], found_bytes: int, arrays: Sequence[tuple[type, tuple[int, ...]]]
) -> list[NDArray[Any]]:
    """Read a frame's arrays.

    Args:
        stream: the connection, after `read_head`.
        found_bytes: number of bytes stated in the frame.
        arrays: type and shape of each.

    Raises:
        EOFError: if the stream ends.
        ProtocolError: if the frame's bytes are not those of these arrays; nothing is allocated then.
    """
    expected = sum(np.dtype(kind).itemsize * int(np.prod(shape, dtype=np.int64)) for kind, shape in arrays)
    if found_bytes != expected:
        raise ProtocolError(f"found {found_bytes} bytes of arrays, expected {expected}")
    results: list[NDArray[Any]] = [np.empty(shape, kind) for kind, shape in arrays]
    for array in results:
        if array.size:
            _fill(stream, _bytes_of(array))
    return results


def _read(stream: IO[bytes], count: int) -> bytes:
    content = stream.read(count)
    if len(content) < count:
        raise EOFError
    return content


def _bytes_of(array: NDArray[Any]) -> memoryview:
    """The bytes of a contiguous array, not copied."""
    return array.reshape(-1).view(np.uint8).data


def _fill(stream: Any, buffer: memoryview) -> None:
    if stream.readinto(buffer) < len(buffer):  # a buffered stream returns fewer bytes only at its end
        raise EOFError
