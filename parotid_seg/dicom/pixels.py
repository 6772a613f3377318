"""Voxels of a DICOM series: decoded, cut to the bits that count, and as intensities."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels import get_decoder
from pydicom.uid import UID, RLELossless
from scipy import ndimage

from parotid_seg.dicom.discreet import discreet
from parotid_seg.dicom.file import DicomFile, read_dicom
from parotid_seg.dicom.groups import images_in
from parotid_seg.dicom.layout import Layout, layout_of, scaling_of
from parotid_seg.dicom.series import Series
from parotid_seg.dicom.values import Unusable, integer_of, text_of, values_of
from parotid_seg.errors import ScanError
from parotid_seg.flags import Flag, FlagCode
from parotid_seg.scan.volume import Voxels

Words = NDArray[np.integer]
J2K = b"\xff\x4f\xff\x51"
"""The first two markers of a JPEG 2000 codestream (ISO/IEC 15444-1, A.4 and A.5)."""
JPEG_FRAMES = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
"""Markers of the header that names the size, in JPEG (ISO/IEC 10918-1, B.1.1.3) and JPEG-LS (14495-1, C.1.1)."""

START_OF_SCAN = 0xDA
"""Marker after which a JPEG's or JPEG-LS's pixels come."""


HIGHEST_AIR_HU = -500.0
"""No tissue of a CT is darker, so voxels of a padding value up to this may all count as air."""
SMALLEST_PADDING = 0.005
"""Share of a slice that a region of padding has at least; a corner outside a circle has 0.05."""


def read_voxels(series: Series) -> tuple[Voxels, tuple[Flag, ...]]:
    """Intensities (slices, rows, columns) of a series, int16 if all are whole and fit, else float32; and flags on them.

    Padding becomes the lowest intensity of the rest, which is air in a CT. Voxels that have a padding value but lie in
    the patient stay as they are, see `_outside`.

    Raises:
        ScanError: if a file cannot be read, or is no longer what it was when the series was found.
    """
    volume = _Volume((len(series.slices), series.rows, series.columns), series.modality == "CT")
    wanted: dict[Path, dict[int, int]] = defaultdict(dict)
    for index, each in enumerate(series.slices):
        wanted[each.path][each.frame or 0] = index
    for path, indices in wanted.items():
        with discreet(path, "DICOM image"):
            try:
                _read_file(path, series, indices, volume)
            except Unusable as error:
                raise ScanError(f"{error}", path=path) from None
    try:
        return volume.finish()
    except Unusable as error:
        raise ScanError(f"{error}", path=series.folder) from None


def _read_file(path: Path, series: Series, indices: dict[int, int], volume: _Volume) -> None:
    """Put the frames of a file where they belong; `indices` are their slices by frame number."""
    file = read_dicom(path, pixels=True)
    expected = series.slices[next(iter(indices.values()))]
    if file is None or text_of(file.header, "SOPInstanceUID") != expected.sop_instance_uid:
        raise Unusable("another image than when the series was found")
    layout = layout_of(file)
    if (layout.rows, layout.columns) != (series.rows, series.columns) or max(indices) >= layout.frames:
        raise Unusable("another size than when the series was found")
    scalings = {number or 0: scaling_of(place, series.modality) for number, place in images_in(file.header)}
    padding = _padding_of(file.header, layout)
    for number, words in enumerate(_decoded(file, layout)):
        if number in indices:
            values = _significant(words, layout, file.transfer_syntax)
            volume.put(indices[number], values, *scalings[number], padding, words)
    volume.lossy |= text_of(file.header, "LossyImageCompression") == "01"


class _Volume:
    """Voxels as they come in, slice by slice.

    Args:
        shape: slices, rows and columns.
        ct: whether the intensities are HU.

    Attributes:
        lossy: whether a slice was compressed with loss.
    """

    def __init__(self, shape: tuple[int, int, int], ct: bool) -> None:
        self.lossy = False
        self._ct = ct
        self._voxels: Voxels = np.empty(shape, np.int16)
        self._padded: NDArray[np.bool_] | None = None
        self._kept: Counter[str] = Counter()

    def put(
        self, index: int, values: Words, slope: float, intercept: float, padding: _Padding | None, words: Words
    ) -> None:
        """Set a slice from its stored values; `words` have the bits that do not count, which padding may use."""
        padded = None if padding is None else self._padding_in(values, slope, intercept, padding, words)
        if padded is not None and padded.any():
            if self._padded is None:
                self._padded = np.zeros(self._voxels.shape, np.bool_)
            self._padded[index] = padded
            if padded.all():
                self._voxels[index] = 0  # until the lowest is known
                return
            values = np.where(padded, values[~padded].min(), values)
        ends = [float(end) * slope + intercept for end in (values.min(), values.max())]
        fits = min(ends) >= -32768 and max(ends) <= 32767
        if self._voxels.dtype == np.int16 and fits and slope.is_integer() and intercept.is_integer():
            target = self._voxels[index]
            target[...] = values  # modulo 65536, as what follows: it comes out right since the result fits
            target *= _modulo(slope)
            target += _modulo(intercept)
        else:
            self._voxels = self._voxels.astype(np.float32, copy=False)
            with np.errstate(over="ignore"):  # infinite voxels are refused later
                self._voxels[index] = values.astype(np.float64) * slope + intercept

    def finish(self) -> tuple[Voxels, tuple[Flag, ...]]:
        """The voxels, and flags on them."""
        flags = [Flag(FlagCode.LOSSY_COMPRESSION)] if self.lossy else []
        if self._padded is not None:
            if self._padded.all():
                raise Unusable("every voxel is padding, expected an image")
            lowest = self._voxels[~self._padded].min()
            self._voxels[self._padded] = lowest
            flags.append(Flag(FlagCode.PADDING, value=float(self._padded.mean()), detail=f"{lowest:g}"))
        for stated, count in self._kept.items():
            flags.append(Flag(FlagCode.PADDING_IN_BODY, value=count / self._voxels.size, detail=stated))
        return self._voxels, tuple(flags)

    def _padding_in(
        self, values: Words, slope: float, intercept: float, padding: _Padding, words: Words
    ) -> NDArray[np.bool_]:
        """Which voxels of a slice are padding; others that have a padding value stay as they are and are counted.

        Values that no tissue has are padding wherever they are: in bits that do not count, of a CT those of air, and of
        MR those below all others. For the rest see `_outside`.
        """
        stated = padding.among(words, values)
        if not stated.any() or padding.whole:
            return stated
        if not self._ct and not stated.all() and values[stated].max() < values[~stated].min():
            return stated
        highest = max(float(end) * slope + intercept for end in (values[stated].min(), values[stated].max()))
        if self._ct and highest <= HIGHEST_AIR_HU:
            return stated
        padded = _outside(values, stated)
        kept = int(np.count_nonzero(stated)) - int(np.count_nonzero(padded))
        if kept:
            self._kept[str(padding)] += kept
        return padded


def _outside(values: Words, stated: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which voxels of a slice are padding, where tissue may have the same values.

    Padding fills what lies outside the circle of reconstruction: regions of one value that reach the border of the
    slice and are larger than neighbouring voxels of tissue happen to agree. All other voxels are image.

    Args:
        values: stored values (rows, columns).
        stated: which of them are in the range that the file calls padding.
    """
    padded = np.zeros_like(stated)
    edge = np.zeros_like(stated)
    edge[[0, -1]] = edge[:, [0, -1]] = True
    for value in np.unique(values[stated & edge]):
        regions, count = ndimage.label(stated & (values == value))
        sizes = np.bincount(regions.ravel(), minlength=count + 1)
        touching = np.unique(regions[edge])
        chosen = [each for each in touching if each and sizes[each] >= SMALLEST_PADDING * stated.size]
        padded |= np.isin(regions, chosen)
    return padded


def _modulo(number: float) -> np.int16:
    """A whole number modulo 65536."""
    return np.int16((int(number) + 32768) % 65536 - 32768)


def _significant(words: Words, layout: Layout, syntax: UID) -> Words:
    """Stored values without the bits that do not count, whatever is in them (DICOM PS3.5, 8.1.1)."""
    above, unused = layout.allocated - 1 - layout.high, layout.allocated - layout.stored
    if unused == 0 or (syntax.is_encapsulated and syntax != RLELossless):  # other codecs store only what counts
        return words
    return (words << above) >> unused


class _Padding(NamedTuple):
    """Stored values from `low` to `high` are no image; of whole words if they need more bits than those that count."""

    low: int
    high: int
    whole: bool

    def among(self, words: Words, values: Words) -> NDArray[np.bool_]:
        compared = words if self.whole else values
        return (compared >= self.low) & (compared <= self.high)

    def __str__(self) -> str:
        return f"{self.low}" if self.low == self.high else f"{self.low} to {self.high}"


def _padding_of(header: Dataset, layout: Layout) -> _Padding | None:
    """PixelPaddingValue and PixelPaddingRangeLimit (DICOM PS3.3, C.7.5.1.1.2); None if there are none."""
    if not values_of(header, "PixelPaddingValue"):
        return None
    value = integer_of(header, "PixelPaddingValue")
    ends = [value, integer_of(header, "PixelPaddingRangeLimit", value)]
    half, full = 1 << layout.allocated - 1, 1 << layout.allocated
    if layout.signed:  # often written as if it were of the other kind
        ends = [end - full if half <= end < full else end for end in ends]
    else:
        ends = [end + full if -half <= end < 0 else end for end in ends]
    lowest = -(1 << layout.stored - 1) if layout.signed else 0
    fits = all(lowest <= end < lowest + (1 << layout.stored) for end in ends)
    return _Padding(min(ends), max(ends), not fits)


def _decoded(file: DicomFile, layout: Layout) -> Iterator[Words]:
    """The frames of a file (rows, columns) as stored, in their order."""
    if "PixelData" not in file.header:
        raise Unusable("no PixelData")
    if not file.transfer_syntax.is_encapsulated:
        _check_excess(file, layout)
    elif file.transfer_syntax != RLELossless:
        _check_codestreams(file.header, layout)
    frames = get_decoder(file.transfer_syntax).iter_array(
        file.header,
        raw=True,
        correct_unused_bits=False,
        allow_excess_frames=False,
        view_only=True,
        decoding_plugin=_plugin_for(file.transfer_syntax),
    )
    for _ in range(layout.frames):
        try:
            words, _properties = next(frames)
        except Exception:
            raise Unusable(f"pixels that cannot be decoded as {file.transfer_syntax.name}") from None
        yield words


def _plugin_for(syntax: UID) -> str:
    """The decoder to take, as pydicom calls it; empty for the first that is installed.

    GDCM ends the process at run lengths that it does not expect, and at some of odd sizes that are right.
    """
    return "pydicom" if syntax == RLELossless else ""


def _check_excess(file: DicomFile, layout: Layout) -> None:
    """Raise Unusable if there are more pixels than the header says, by a row or more: a few bytes are padding."""
    row = layout.columns * layout.allocated // 8
    expected = layout.frames * layout.rows * row
    if file.bytes_left >= expected + row:
        raise Unusable(f"found {file.bytes_left} bytes of pixel data, expected {expected}")


def _check_codestreams(header: Dataset, layout: Layout) -> None:
    """Raise Unusable unless compressed images begin as such and are of the header's size.

    A decoder makes room for what they say, and one ends the process if they say nonsense.
    """
    offsets = [header.get(name) for name in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")]
    extended = (offsets[0], offsets[1]) if all(offsets) else None
    codestreams = generate_frames(header.PixelData, number_of_frames=layout.frames, extended_offsets=extended)
    for codestream in itertools.islice(codestreams, layout.frames):
        found = _begin_j2k(codestream) or _begin_jpeg(codestream)
        if found is None or not 1 <= found.bits <= layout.allocated:
            raise Unusable("a compressed image does not begin as one")
        if (found.rows, found.columns) != (layout.rows, layout.columns):
            raise Unusable(
                f"found a compressed image of {found.rows} x {found.columns}, expected {layout.rows} x {layout.columns}"
            )


class _Beginning(NamedTuple):
    """What a codestream says of its image."""

    rows: int
    columns: int
    bits: int


def _begin_j2k(codestream: bytes) -> _Beginning | None:
    """Beginning of a JPEG 2000 codestream; None if it is none."""
    at = codestream.find(J2K, 0, 512)  # some files wrap it
    if at < 0 or len(codestream) < at + 43:
        return None
    right, bottom, left, top = (int.from_bytes(codestream[at + each : at + each + 4]) for each in (8, 12, 16, 20))
    return _Beginning(bottom - top, right - left, (codestream[at + 42] & 0x7F) + 1)


def _begin_jpeg(codestream: bytes) -> _Beginning | None:
    """Beginning of a JPEG or JPEG-LS codestream, whole up to where the pixels begin; None if it is none."""
    found, at = None, 2
    while at + 10 <= len(codestream) and codestream[at] == 0xFF and 0xC0 <= codestream[at + 1] < 0xFF:
        if codestream[at + 1] == START_OF_SCAN:
            return found
        if codestream[at + 1] in JPEG_FRAMES:
            rows, columns = (int.from_bytes(codestream[at + each : at + each + 2]) for each in (5, 7))
            found = _Beginning(rows, columns, codestream[at + 4])
        at += 2 + int.from_bytes(codestream[at + 2 : at + 4])
    return None
