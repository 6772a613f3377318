"""Voxels of a DICOM series: decoded, reduced to the stored bits, and as intensities."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import HTJ2K, JPEG2000, UID, JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless
from scipy import ndimage

from parotid_seg.dicom.phi_safe import phi_safe
from parotid_seg.dicom.read.file import read_dicom
from parotid_seg.dicom.read.frames import DecodedFrame, Frames, Words
from parotid_seg.dicom.read.groups import images_in
from parotid_seg.dicom.read.layout import Layout, layout_of, scaling_of
from parotid_seg.dicom.read.series import Series
from parotid_seg.dicom.read.values import Unusable, integer_of, text_of, values_of
from parotid_seg.errors import ScanError
from parotid_seg.files import size_of
from parotid_seg.flags import Flag, FlagCode
from parotid_seg.scan.foreign import check_room
from parotid_seg.scan.volume import Voxels

ALWAYS_LOSSY = frozenset({JPEGBaseline8Bit, JPEGExtended12Bit})
LOSSY = ALWAYS_LOSSY | {JPEGLSNearLossless, JPEG2000, HTJ2K}
"""Lossy transfer syntaxes, which may change values a little and so move them beyond the stored bits."""
HIGHEST_AIR_HU = -500.0
"""HU below which a CT shows no tissue; voxels with a padding value up to this count as padding wherever they are."""
SMALLEST_PADDING = 0.005
"""Least share of a slice in a region of padding; a corner outside the circle of reconstruction has 0.05."""
BYTES_PER_VOXEL = 7
"""Most bytes of memory per voxel: as int16 and as float32, and its padding mask."""


class Pixels(NamedTuple):
    """Pixels of a series.

    Attributes:
        voxels: intensities (slices, rows, columns), int16 if all are whole and fit, else float32.
        flags: remarks on them.
        decoders: as in `Volume`.
    """

    voxels: Voxels
    flags: tuple[Flag, ...]
    decoders: tuple[str, ...]


def read_voxels(series: Series) -> Pixels:
    """Read the pixels of a series.

    Padding is replaced by the lowest intensity of the other voxels, which is air in a CT. Voxels inside the patient
    that have a padding value stay as they are, see `_outside`.

    Raises:
        ScanError: if a file cannot be read, or has changed since the series was found.
    """
    stored = sum(size_of(path) for path in {each.path for each in series.slices})
    check_room(series.folder, series.voxels, series.voxels * BYTES_PER_VOXEL, stored)
    frames = Frames()
    volume = _read_files(series, frames)
    try:
        if not frames.fit():
            frames = Frames(cut=False)
            volume = _read_files(series, frames)
        voxels, flags = volume.finish()
    except Unusable as error:
        raise ScanError(f"{error}", path=series.folder) from None
    return Pixels(voxels, (*frames.flags(), *flags), frames.decoders())


def _read_files(series: Series, frames: Frames) -> _CollectedVoxels:
    volume = _CollectedVoxels((len(series.slices), series.rows, series.columns), series.modality == "CT")
    frames_by_file: dict[Path, dict[int, int]] = defaultdict(dict)
    for index, each in enumerate(series.slices):
        frames_by_file[each.path][each.frame or 0] = index
    for path, indices in frames_by_file.items():
        with phi_safe(path, "DICOM image"):
            try:
                _read_file(path, series, indices, frames, volume)
            except Unusable as error:
                raise ScanError(f"{error}", path=path) from None
    return volume


def _read_file(path: Path, series: Series, indices: dict[int, int], frames: Frames, volume: _CollectedVoxels) -> None:
    """Read the frames of a file into their slices; `indices` gives the slice of each frame number."""
    file = read_dicom(path, pixels=True)
    expected = series.slices[next(iter(indices.values()))]
    if file is None or text_of(file.header, "SOPInstanceUID") != expected.sop_instance_uid:
        raise Unusable("another image than when the series was found")
    layout = layout_of(file)
    if (layout.rows, layout.columns) != (series.rows, series.columns) or max(indices) >= layout.frames:
        raise Unusable("another size than when the series was found")
    scalings = {number or 0: scaling_of(place, series.modality) for number, place in images_in(file.header)}
    padding = _padding_of(file.header, layout)
    for number, frame in enumerate(frames.of(file, layout)):
        if number in indices:
            values = _significant(frame, layout, file.transfer_syntax)
            volume.put(indices[number], values, *scalings[number], padding, frame.words)
    volume.filled += file.filled
    volume.lossy |= file.transfer_syntax in ALWAYS_LOSSY or text_of(file.header, "LossyImageCompression") == "01"


class _CollectedVoxels:
    """Collects voxels slice by slice.

    Args:
        shape: slices, rows and columns.
        ct: whether the intensities are HU.

    Attributes:
        lossy: whether a slice was compressed with loss.
        filled: files of which an identifier was blank.
    """

    def __init__(self, shape: tuple[int, int, int], ct: bool) -> None:
        self.lossy = False
        self.filled = 0
        self._ct = ct
        self._voxels: Voxels = np.empty(shape, np.int16)
        self._padded: NDArray[np.bool_] | None = None
        self._kept: Counter[str] = Counter()

    def put(
        self, index: int, values: Words, slope: float, intercept: float, padding: _Padding | None, words: Words
    ) -> None:
        """Set a slice from its stored values; `words` still have the unused bits, in which padding may be stored."""
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
            target[...] = values  # modulo 65536, like the next steps; correct because the result fits
            target *= _modulo(slope)
            target += _modulo(intercept)
        else:
            self._voxels = self._voxels.astype(np.float32, copy=False)
            with np.errstate(over="ignore"):  # infinite voxels are refused later
                self._voxels[index] = values.astype(np.float64) * slope + intercept

    def finish(self) -> tuple[Voxels, tuple[Flag, ...]]:
        """The voxels, and flags on them."""
        flags = [Flag(FlagCode.LOSSY_COMPRESSION)] if self.lossy else []
        if self.filled:
            flags.append(Flag(FlagCode.BLANK_IDENTIFIERS, value=self.filled))
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
        """Which voxels of a slice are padding; others with a padding value stay as they are and are counted.

        Values that no tissue has are padding anywhere: those in unused bits, in CT those of air, and in MR those below
        all others. For the rest see `_outside`.
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
        not_padding = int(np.count_nonzero(stated)) - int(np.count_nonzero(padded))
        if not_padding:
            self._kept[str(padding)] += not_padding
        return padded


def _outside(values: Words, stated: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which voxels of a slice are padding, where tissue may have the same values.

    Padding fills the area outside the circle of reconstruction: regions of one value that reach the border of the slice
    and are larger than regions of equal values in tissue. All other voxels are image.

    Args:
        values: stored values (rows, columns).
        stated: which of them are in the file's padding range.
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


def _significant(frame: DecodedFrame, layout: Layout, syntax: UID) -> Words:
    """Stored values without the unused bits (DICOM PS3.5, 8.1.1).

    Codestreams mostly have the stored bits only. If a lossy one has more bits, values that it moved out of the range
    are clipped to it; dropping their high bits would turn the brightest into the darkest."""
    words = frame.words
    above, unused = layout.allocated - 1 - layout.high, layout.allocated - layout.stored
    if unused == 0 or frame.bits <= layout.high:
        return words
    if syntax in LOSSY and layout.high == layout.stored - 1:
        lowest = -(1 << layout.stored - 1) if layout.signed else 0
        return words.clip(lowest, lowest + (1 << layout.stored) - 1)
    return (words << above) >> unused


class _Padding(NamedTuple):
    """Stored values from `low` to `high` are padding; values of whole words if they need more than the stored bits."""

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
    if layout.signed:  # often written with the other signedness
        ends = [end - full if half <= end < full else end for end in ends]
    else:
        ends = [end + full if -half <= end < 0 else end for end in ends]
    lowest = -(1 << layout.stored - 1) if layout.signed else 0
    fits = all(lowest <= end < lowest + (1 << layout.stored) for end in ends)
    return _Padding(min(ends), max(ends), not fits)
