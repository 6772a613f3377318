"""Size and precision of a compressed image, from its own codestream's header, independent of the DICOM header."""

from __future__ import annotations

from typing import NamedTuple

from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
)

JPEG_2000, JPEG_LS, JPEG = "JPEG 2000", "JPEG-LS", "JPEG"
FAMILIES: dict[UID, str] = {
    **dict.fromkeys((JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1), JPEG),
    **dict.fromkeys((JPEGLSLossless, JPEGLSNearLossless), JPEG_LS),
    **dict.fromkeys((JPEG2000Lossless, JPEG2000, HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K), JPEG_2000),
}
"""The family of codestreams of each transfer syntax; only these can be read."""
J2K = b"\xff\x4f\xff\x51"
"""The first two markers of a JPEG 2000 codestream (ISO/IEC 15444-1, A.4 and A.5)."""
JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of the JPEG header with the image's size (ISO/IEC 10918-1, B.1.1.3)."""
JPEG_LS_FRAME = 0xF7
"""The same in JPEG-LS (ISO/IEC 14495-1, C.1.1)."""
START_OF_IMAGE, START_OF_SCAN = b"\xff\xd8", 0xDA
"""Markers at the beginning of a JPEG or JPEG-LS image, and before its pixels."""


class Codestream(NamedTuple):
    """A compressed image with the properties from its own header.

    Attributes:
        family: one of `FAMILIES`' values.
        rows, columns: size.
        components: values a pixel; 1 for grey.
        bits: precision, the bits of a value.
        signed: whether the values are signed; None where the family cannot state it (JPEG and JPEG-LS).
        content: its bytes, without a file format around them.
    """

    family: str
    rows: int
    columns: int
    components: int
    bits: int
    signed: bool | None
    content: bytes


def codestream_of(content: bytes) -> Codestream | None:
    """The compressed image in one frame's bytes; None if they do not begin as one."""
    return _j2k(content) or _jpeg(content)


def _j2k(content: bytes) -> Codestream | None:
    at = content.find(J2K, 0, 512)  # some files wrap it as JP2
    if at < 0 or len(content) < at + 43:
        return None
    right, bottom, left, top = (int.from_bytes(content[at + each : at + each + 4]) for each in (8, 12, 16, 20))
    components, depth = int.from_bytes(content[at + 40 : at + 42]), content[at + 42]
    size = (bottom - top, right - left, components)
    return Codestream(JPEG_2000, *size, (depth & 0x7F) + 1, bool(depth & 0x80), content[at:])


def _jpeg(content: bytes) -> Codestream | None:
    """A JPEG or JPEG-LS image whose header is complete up to its pixels."""
    if not content.startswith(START_OF_IMAGE):
        return None
    codestream, at = None, 2
    while at + 10 <= len(content) and content[at] == 0xFF and content[at + 1] >= 0xC0:
        marker = content[at + 1]
        if marker == 0xFF:  # any number of these may come before a marker
            at += 1
            continue
        if marker == START_OF_SCAN:
            return codestream
        if marker in JPEG_FRAMES or marker == JPEG_LS_FRAME:
            rows, columns = (int.from_bytes(content[at + each : at + each + 2]) for each in (5, 7))
            family = JPEG_LS if marker == JPEG_LS_FRAME else JPEG
            codestream = Codestream(family, rows, columns, content[at + 9], content[at + 4], None, content)
        at += 2 + int.from_bytes(content[at + 2 : at + 4])
    return None
