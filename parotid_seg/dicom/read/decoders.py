"""The packages that decode compressed images, and how to call them.

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
from pydicom.uid import UID

from parotid_seg.dicom.read.codestream import FAMILIES, JPEG, JPEG_2000, JPEG_LS, Codestream

INSTALL = {
    JPEG_2000: "pip install pylibjpeg pylibjpeg-openjpeg",
    JPEG_LS: "pip install pyjpegls",
    JPEG: "pip install python-gdcm",
}
"""The command that installs a decoder for each family."""


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
