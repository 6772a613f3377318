"""Frames of a DICOM file as stored words, decoded and with the right sign.

A codestream's header states how many bits its values have, and in JPEG 2000 whether they are signed. The DICOM header
states both, too (BitsStored, PixelRepresentation), and in many files the two contradict each other. Values are read as
in an uncompressed file with the same DICOM header:

1. The decoder gets nothing of the DICOM header. Its values are bit patterns of the codestream's precision.
2. PixelRepresentation decides whether they are signed. If it is signed and the codestream is not, the patterns are a
   two's complement of the codestream's precision; if only the codestream is signed, the values are unsigned.
3. If the codestream has more bits than BitsStored, the additional bits are ignored, as in an uncompressed file.
4. Signed values in an unsigned codestream of fewer bits than BitsStored are ambiguous: either a truncated two's
   complement, or values of 0 and more, for which the encoder used no more bits than needed. The series' pixels decide:
   among pairs of neighbours of which only one has the highest bit, most must be closer together in one reading than in
   the other. This is flagged, and a series in which fewer than `CLEAR` of the pairs agree is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels import get_decoder
from pydicom.uid import RLELossless

from parotid_seg.dicom.read.decoders import (
    FAMILIES,
    JPEG_2000,
    Codestream,
    codestream_of,
    decoded,
    decoder_for,
    title_of,
)
from parotid_seg.dicom.read.file import DicomFile
from parotid_seg.dicom.read.layout import Layout
from parotid_seg.dicom.read.values import Unusable
from parotid_seg.flags import Flag, FlagCode

Words = NDArray[np.integer]
CLEAR = 0.6
"""Least share of pairs of neighbours that must agree on the reading of their values."""


class DecodedFrame(NamedTuple):
    """One image.

    Attributes:
        words: (rows, columns), of BitsAllocated bits, signed as in the DICOM header.
        bits: number of stored bits, from the lowest on.
    """

    words: Words
    bits: int


class Frames:
    """Reads the frames of a series' files, and records how.

    Args:
        cut: reading by rule 4: True for a truncated two's complement, False for values of 0 and more.
    """

    def __init__(self, *, cut: bool = True) -> None:
        self._packages: set[str] = set()
        self._cut = cut
        self._pairs, self._pairs_cut = 0, 0

    def of(self, file: DicomFile, layout: Layout) -> Iterator[DecodedFrame]:
        """The frames of a file, in their order.

        Raises:
            Unusable: if they cannot be decoded, or contradict the header.
        """
        if "PixelData" not in file.header:
            raise Unusable("no PixelData")
        if file.transfer_syntax in FAMILIES:
            return self._compressed(file, layout)
        if file.transfer_syntax == RLELossless:
            self._packages.add("pydicom")
        return _plain(file, layout)

    def decoders(self) -> tuple[str, ...]:
        """Packages, with their versions, that decoded the files; none if they were not compressed."""
        return tuple(map(title_of, sorted(self._packages)))

    def fit(self) -> bool:
        """Whether the pixels read so far fit the chosen reading of rule 4; if not, read them again with the other one.

        Raises:
            Unusable: if the pixels fit both readings about equally well.
        """
        if self._pairs == 0:
            return True
        share = self._pairs_cut / self._pairs
        if 1 - CLEAR < share < CLEAR:
            raise Unusable(
                "signed pixels in unsigned compressed images of fewer bits: it is unclear whether they are a two's "
                f"complement; found {share:.0%} of the pairs of neighbours that fit one, expected at least {CLEAR:.0%} "
                f"or at most {1 - CLEAR:.0%}"
            )
        return (share > 0.5) == self._cut

    def flags(self) -> list[Flag]:
        """Flags on the decoding."""
        reading = "a two's complement" if self._cut else "values of 0 and more"
        return [Flag(FlagCode.SIGN_FROM_PIXELS, detail=reading)] if self._pairs else []

    def _compressed(self, file: DicomFile, layout: Layout) -> Iterator[DecodedFrame]:
        syntax = file.transfer_syntax
        decoder = decoder_for(syntax)
        assert decoder is not None, "checked by `layout_of`"
        self._packages.add(decoder.package)
        for image in _codestreams(file.header, layout):
            _check(image, FAMILIES[syntax], layout)
            try:
                patterns = decoded(decoder, image)
            except Exception:
                raise Unusable(
                    f"pixels that cannot be decoded as {syntax.name} by {title_of(decoder.package)}"
                ) from None
            yield DecodedFrame(self._signed(patterns, image, layout), image.bits)

    def _signed(self, patterns: NDArray[np.unsignedinteger], image: Codestream, layout: Layout) -> Words:
        """Bit patterns of a codestream as words of the header's type, by the rules of this module."""
        words = patterns.astype(f"u{layout.allocated // 8}")
        if not layout.signed:
            return words
        signed: Words = words.view(f"i{layout.allocated // 8}")
        if not image.signed and image.bits < layout.stored:
            steps = _steps(patterns, image.bits)
            self._pairs += steps.size
            self._pairs_cut += int(np.count_nonzero(steps > 1 << (image.bits - 1)))
            if not self._cut:
                return signed
        above = layout.allocated - image.bits
        return (signed << above) >> above


def _steps(patterns: NDArray[np.unsignedinteger], bits: int) -> NDArray[np.int64]:
    """Differences of neighbours of which only one has the highest bit, read as values of 0 and more.

    Read as a two's complement, the differences are 2 ** bits minus these.
    """
    high, values = patterns >> (bits - 1) == 1, patterns.astype(np.int64)
    steps = (np.abs(np.diff(values, axis=axis)[np.diff(high, axis=axis)]) for axis in (0, 1))
    return np.concatenate(list(steps))


def _plain(file: DicomFile, layout: Layout) -> Iterator[DecodedFrame]:
    """Frames that are not compressed, or are by RLE, which stores whole words.

    RLE is decoded by pydicom's own decoder: GDCM crashes the process on unexpected run lengths, and on some valid odd
    sizes.
    """
    if file.transfer_syntax != RLELossless:
        _check_excess(file, layout)
    # `layout_of` has checked both; pydicom takes no other spelling, and no file that does not state them
    file.header.SamplesPerPixel, file.header.PhotometricInterpretation = 1, "MONOCHROME2"
    frames = get_decoder(file.transfer_syntax).iter_array(
        file.header,
        raw=True,
        correct_unused_bits=False,
        allow_excess_frames=False,
        view_only=True,
        decoding_plugin="pydicom" if file.transfer_syntax == RLELossless else "",
    )
    for _ in range(layout.frames):
        try:
            words, _properties = next(frames)
        except Exception:
            raise Unusable(f"pixels that cannot be decoded as {file.transfer_syntax.name}") from None
        yield DecodedFrame(words, layout.allocated)


def _check_excess(file: DicomFile, layout: Layout) -> None:
    """Raise Unusable if there are at least a row more pixels than in the header; a few more bytes are padding."""
    row = layout.columns * layout.allocated // 8
    expected = layout.frames * layout.rows * row
    if file.bytes_left >= expected + row:
        raise Unusable(f"found {file.bytes_left} bytes of pixel data, expected {expected}")


def _codestreams(header: Dataset, layout: Layout) -> Iterator[Codestream]:
    """The compressed images of a file, one for each frame; fewer are refused."""
    offsets = [header.get(name) for name in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")]
    extended = (offsets[0], offsets[1]) if all(offsets) else None
    contents = generate_frames(header.PixelData, number_of_frames=layout.frames, extended_offsets=extended)
    for number in range(layout.frames):
        content = next(contents, None)
        if content is None:
            raise Unusable(f"found {number} compressed images, expected {layout.frames}")
        codestream = codestream_of(content)
        if codestream is None:
            raise Unusable("a compressed image does not begin as one")
        yield codestream


def _check(image: Codestream, family: str, layout: Layout) -> None:
    """Raise Unusable unless a compressed image agrees with the DICOM header.

    A decoder allocates memory by the codestream's header, and one crashes the process on invalid values.
    """
    if image.family != family:
        raise Unusable(f"found a {image.family} image, expected {family} (TransferSyntaxUID)")
    most = layout.allocated if family == JPEG_2000 else min(layout.allocated, 16)
    if not 1 <= image.bits <= most:
        raise Unusable(f"found a compressed image of {image.bits} bits a pixel, expected at most {most}")
    if image.components != 1:
        raise Unusable(f"found a compressed image of {image.components} values a pixel, expected 1")
    if (image.rows, image.columns) != (layout.rows, layout.columns):
        raise Unusable(
            f"found a compressed image of {image.rows} x {image.columns}, expected {layout.rows} x {layout.columns}"
        )
