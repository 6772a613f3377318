"""Compressed images: the properties in their own codestream's header, and the packages that decode them.

A decoder gets the properties in the codestream's own header and nothing of the DICOM header, so that the two cannot
contradict each other inside the decoder; `frames` interprets its values. Packages, in order of preference:

- JPEG 2000 and HTJ2K: pylibjpeg's decoder, pylibjpeg-openjpeg (MIT; OpenJPEG: BSD-2-Clause).
- JPEG-LS: pyjpegls (MIT; CharLS: BSD-3-Clause).
- JPEG: pylibjpeg's decoder if one is installed, else python-gdcm (BSD-3-Clause), which can crash the process on damaged
  images. The only such decoder, pylibjpeg-libjpeg, has the GPL-3 licence and is therefore not a dependency.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import metadata
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
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
INSTALL = {
    JPEG_2000: "pip install pylibjpeg pylibjpeg-openjpeg",
    JPEG_LS: "pip install pyjpegls",
    JPEG: "pip install python-gdcm",
}
"""The command that installs a decoder for each family."""


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


class Decoder(NamedTuple):
    """A package that decodes.

    Attributes:
        package: its name for pip.
        decode: a codestream's pixels as little-endian words of 1, 2 or 4 bytes, the smallest that holds its bits.
    """

    package: str
    decode: Callable[[Codestream], bytes | bytearray]


def title_of(package: str) -> str:
    """Package and version."""
    return f"{package} {metadata.version(package)}"


def decoder_for(syntax: UID) -> Decoder | None:
    """The decoder for a transfer syntax of `FAMILIES`; None if none is installed."""
    family = FAMILIES[syntax]
    if family == JPEG_LS:
        return Decoder("pyjpegls", _with_pyjpegls) if find_spec("jpeg_ls") else None
    plugins = _pylibjpeg_plugins().get(str(syntax))
    if plugins:
        name, decode = min(plugins.items())
        return Decoder(f"pylibjpeg-{name}", lambda image: decode(image.content, version=2))
    if family == JPEG and find_spec("gdcm"):
        return Decoder("python-gdcm", functools.partial(_with_gdcm, syntax))
    return None


def decoded(decoder: Decoder, image: Codestream) -> NDArray[np.unsignedinteger]:
    """Stored values (rows, columns) of a codestream; negative ones as a two's complement of its bits.

    Raises:
        Exception: of any type, if the codestream is damaged.
    """
    size = 1 if image.bits <= 8 else 2 if image.bits <= 16 else 4
    words = np.frombuffer(decoder.decode(image), f"<u{size}").reshape(image.rows, image.columns)
    patterns: NDArray[np.unsignedinteger] = words & words.dtype.type((1 << image.bits) - 1)
    return patterns


@functools.cache
def _pylibjpeg_plugins() -> dict[str, dict[str, Callable[..., bytearray]]]:
    """Decoders that pylibjpeg's packages offer, by transfer syntax and name; none if it is not installed."""
    if find_spec("pylibjpeg") is None:
        return {}
    from pylibjpeg.utils import get_pixel_data_decoders

    plugins: dict[str, dict[str, Callable[..., bytearray]]] = get_pixel_data_decoders(version=2)
    return plugins


def _with_pyjpegls(image: Codestream) -> bytes | bytearray:
    import jpeg_ls

    pixels: bytearray = jpeg_ls.decode_pixel_data(image.content)[0]
    return pixels


def _with_gdcm(syntax: UID, image: Codestream) -> bytes:
    import gdcm

    fragment, fragments = gdcm.Fragment(), gdcm.SequenceOfFragments.New()
    fragment.SetByteStringValue(image.content)
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    gdcm_image = gdcm.Image()
    gdcm_image.SetNumberOfDimensions(2)
    gdcm_image.SetDimensions((image.columns, image.rows, 1))
    gdcm_image.SetDataElement(element)
    gdcm_image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.MONOCHROME2))
    gdcm_image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str(syntax))))
    gdcm_image.SetPixelFormat(gdcm.PixelFormat(1, 8 if image.bits <= 8 else 16, image.bits, image.bits - 1, 0))
    pixels: bytes = gdcm_image.GetBuffer().encode("utf-8", "surrogateescape")  # GDCM returns a char* as str
    return pixels
