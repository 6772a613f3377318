"""The format of a DICOM image's pixels and the meaning of their values, checked before any pixel is read."""

from __future__ import annotations

from dataclasses import dataclass

from pydicom.pixels import get_decoder
from pydicom.uid import UID, UID_dictionary

from parotid_seg.dicom.read.decoders import FAMILIES, INSTALL, decoder_for
from parotid_seg.dicom.read.file import DicomFile
from parotid_seg.dicom.read.groups import Place
from parotid_seg.dicom.read.values import NotAnImage, Unusable, integer_of, item_of, number_of, text_of
from parotid_seg.scan.foreign import MOST_VOXELS

LARGEST_SLICE = 1 << 24
"""Most voxels of a slice: 4096 x 4096."""
LONGEST_SIDE = 32767
"""Most voxels along an axis in NIfTI-1."""
ALLOCATED = (8, 16, 32)
HU = ("", "HU", "US", "HU_MOD")
"""Rescale types of CT images in Hounsfield units; US is unspecified (DICOM PS3.3, C.11.1.1.2)."""
MAPS = ("OD", "MGML", "Z_EFF", "ED", "EDW", "PCT")
"""The standard's other rescale types: maps made of CT, such as of electron density."""


@dataclass(frozen=True)
class Layout:
    """How pixels are stored (DICOM PS3.3, C.7.6.3).

    Attributes:
        rows, columns, frames: size.
        allocated, stored: bits of a pixel's word, and the number of bits in use.
        high: index of the highest bit in use, from 0.
        signed: whether values are a two's complement.
    """

    rows: int
    columns: int
    frames: int
    allocated: int
    stored: int
    high: int
    signed: bool


def layout_of(file: DicomFile) -> Layout:
    """How the pixels of a file are stored.

    Raises:
        Unusable: if they are not grey values, have an absurd size, or are fewer than stated in the header; or if no
            decoder is installed for them.
    """
    header = file.header
    samples = integer_of(header, "SamplesPerPixel", 1)
    if samples != 1:
        raise NotAnImage(f"a colour image: found {samples} samples a pixel, expected 1")
    _check_grey(text_of(header, "PhotometricInterpretation").upper())
    stored, sign = integer_of(header, "BitsStored"), integer_of(header, "PixelRepresentation")
    if sign not in (0, 1):
        raise Unusable(f"found PixelRepresentation {sign}, expected 0 (unsigned) or 1 (signed)")
    layout = Layout(
        rows=integer_of(header, "Rows"),
        columns=integer_of(header, "Columns"),
        frames=integer_of(header, "NumberOfFrames", 1),
        allocated=integer_of(header, "BitsAllocated"),
        stored=stored,
        high=integer_of(header, "HighBit", stored - 1),
        signed=sign == 1,
    )
    if layout.allocated not in ALLOCATED or not 1 <= stored <= layout.high + 1 <= layout.allocated:
        raise Unusable(
            f"found {layout.allocated} bits a pixel, {stored} of them stored, the highest {layout.high}; expected "
            f"{' or '.join(map(str, ALLOCATED))}"
        )
    check_size(layout.frames, layout.rows, layout.columns)
    _check_decoder(file.transfer_syntax)
    words = layout.frames * layout.rows * layout.columns
    needed = 1 if file.transfer_syntax.is_encapsulated else words * layout.allocated // 8
    if file.bytes_left < needed:
        raise Unusable(f"cut off: found {file.bytes_left} bytes of pixel data, expected {needed}")
    return layout


def check_size(slices: int, rows: int, columns: int) -> None:
    """Raise Unusable if a volume has no voxels, or more than a scan may have."""
    sides, voxels = (slices, rows, columns), slices * rows * columns
    if min(sides) < 1 or max(sides) > LONGEST_SIDE or rows * columns > LARGEST_SLICE or voxels > MOST_VOXELS:
        raise Unusable(
            f"found {slices} images of {rows} x {columns} voxels, expected at most {LARGEST_SLICE} an image, "
            f"{MOST_VOXELS} in all and {LONGEST_SIDE} along a side"
        )


def scaling_of(place: Place, modality: str) -> tuple[float, float]:
    """Slope and intercept from stored values to intensities: HU for CT (DICOM PS3.3, C.11.1).

    Raises:
        Unusable: if a CT has none or is not in HU.
    """
    holder = place("PixelValueTransformationSequence")
    slope, intercept = number_of(holder, "RescaleSlope"), number_of(holder, "RescaleIntercept")
    if modality == "CT":
        rescale_type = text_of(holder, "RescaleType").upper()
        if rescale_type in MAPS:
            raise NotAnImage("not in Hounsfield units (RescaleType)")
        if rescale_type not in HU:
            raise Unusable("a RescaleType that DICOM does not define, expected HU")
        if slope is None or intercept is None:
            raise Unusable("no RescaleSlope and RescaleIntercept, which make Hounsfield units of a CT's stored values")
    if slope == 0:
        raise Unusable("RescaleSlope is 0")
    if item_of(holder, "ModalityLUTSequence") is not None:
        raise Unusable("a table (ModalityLUTSequence), expected RescaleSlope and RescaleIntercept")
    return 1.0 if slope is None else slope, 0.0 if intercept is None else intercept


def _check_grey(photometric: str) -> None:
    """MONOCHROME1 is refused.

    By the standard it affects the display only, and the values stay as they are. But some software inverts the values,
    too, and nothing in the file shows this; a wrong guess would turn air into bone.
    """
    if not photometric:
        raise Unusable("no PhotometricInterpretation, expected MONOCHROME2")
    if photometric == "MONOCHROME1":
        raise Unusable("MONOCHROME1, of which some software inverts the values; expected MONOCHROME2")
    if photometric != "MONOCHROME2":
        raise NotAnImage("not grey values (PhotometricInterpretation), expected MONOCHROME2")


def _check_decoder(syntax: UID) -> None:
    if syntax in FAMILIES:
        if decoder_for(syntax) is None:
            raise Unusable(
                f"compressed as {syntax.name}, for which no decoder is installed: {INSTALL[FAMILIES[syntax]]}"
            )
        return
    try:
        get_decoder(syntax)
    except NotImplementedError:
        is_known_syntax = str(syntax) in UID_dictionary
        raise Unusable(
            f"stored as {syntax.name if is_known_syntax else 'something unknown'}, which cannot be read"
        ) from None
