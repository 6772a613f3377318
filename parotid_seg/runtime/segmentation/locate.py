"""Finds the structures in a scan: first a sparse search, then only their surroundings.

The glands lie in a fifth of a head scan's slices, and not always in the middle of its field of view. The model
therefore computes every n-th sample first. The grid is placed where a structure is found, and the samples around it are
computed until one is empty. A structure is reported as missing only after a search of the whole scan."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from parotid_seg.contract import Contract
from parotid_seg.flags import Flag
from parotid_seg.runtime.segmentation.batching import Prediction
from parotid_seg.runtime.segmentation.segmentation_options import DEFAULTS, SegmentationOptions
from parotid_seg.scan.chunks import CroppedScan, crop_to_grid, sample_step
from parotid_seg.scan.components import Box, clean_labels, label_boxes
from parotid_seg.scan.grid import body_centre, tissue_centre, used
from parotid_seg.scan.intensity import Windows
from parotid_seg.scan.labels import side_of
from parotid_seg.scan.volume import Mask, Volume

SPARSE_MM = 24.0
"""Distance in mm between the samples of the sparse search. Of the 480 structures that the packaged model finds in the
243 scans of the data set two, of one patient, are 3 and 20 mm high, and all others 32 mm or more
(benchmarks/quality/locate.py)."""
MOVED_MM = (10.0, 15.0)
"""Distances in mm from front to back and from right to left: the grid stays centred on the median of all tissue unless
the head's middle is further away. The model is most accurate where it was trained, so these distances are larger than
in any scan of the data set (benchmarks/quality/locate.py)."""
HEAD_MM = (200.0, 120.0)
"""Distances in mm below and above the structures within which tissue counts for the middle of the head from front to
back: they include as much of neck and shoulders as a usual scan."""
ASIDE_MM = 200.0
"""Distance in mm from the structures within a slice in which tissue counts."""
SLAB_MM = 30.0
"""Distances in mm below and above for the middle between right and left, which shoulders must not shift."""

Ask = Callable[[CroppedScan], Prediction]
"""Computes the model's prediction for a scan."""
Place = tuple[int, int]
"""Row and column of the grid's middle in a scan."""


@dataclass(frozen=True)
class Prepared:
    """A scan prepared for the model.

    Attributes:
        volume, windows: see `scan.intensity.in_windows`.
        contract: the model's.
    """

    volume: Volume
    windows: Windows
    contract: Contract

    @property
    def flags(self) -> tuple[Flag, ...]:
        """Flags on the scan."""
        return self.volume.flags

    def crop_to_grid(self, place: Place | None = None) -> CroppedScan:
        """Crop the scan to the grid, which is centred on the tissue unless a place is given."""
        return crop_to_grid(self.volume, self.windows, self.contract.grid, place)


def labels_of_scan(
    prepared: Prepared, ask: Ask, options: SegmentationOptions = DEFAULTS
) -> tuple[CroppedScan, Prediction]:
    """Label a scan.

    The sparse search is used if all structures of the model have a side in their names, and with clean-up: then each is
    one piece, and a small piece that the search misses would have been removed anyway. Models of structures that can
    occur several times, such as tumours, search the whole scan.

    Args:
        prepared: the scan.
        ask: the model.
        options: which search, and whether only the largest piece of each structure is kept.

    Returns:
        The scan cropped to the final grid, and its labels.
    """
    labels = prepared.contract.labels
    if options.search == "full" or not options.clean_up or not all(map(side_of, labels[1:])):
        cropped = prepared.crop_to_grid()
        return cropped, ask(cropped)
    return _Search(prepared, ask, keep=not options.tta).labels()


@dataclass(frozen=True)
class _Found:
    """Result of the sparse search with the grid at one place.

    Attributes:
        place: of the grid.
        cropped: the scan cropped to the grid.
        computed: labels (h, w) of the computed samples.
        found: samples with a structure.
        slices: slices of the computed samples (S,).
        labels: of these slices (S, h, w), the largest piece of each structure.
        boxes: of each structure in them, None if it was not found.
        cut: whether a structure reaches the grid's edge.
    """

    place: Place
    cropped: CroppedScan
    computed: dict[int, Mask]
    found: tuple[int, ...]
    slices: NDArray[np.intp]
    labels: Mask
    boxes: tuple[Box | None, ...]
    cut: bool

    @property
    def complete(self) -> bool:
        """Whether all structures are found, and complete."""
        return all(self.boxes) and not self.cut

    def rank(self) -> tuple[int, bool, int]:
        """Sort key: larger is better."""
        return sum(box is not None for box in self.boxes), not self.cut, int(np.count_nonzero(self.labels))


class _Search:
    """The search in one scan.

    Args:
        prepared, ask: see `labels_of_scan`.
        keep: whether labels of the sparse search may be part of the result. With thin slices they are not, because
            slices between two samples need the scores of both.
    """

    def __init__(self, prepared: Prepared, ask: Ask, *, keep: bool) -> None:
        self._prepared, self._ask = prepared, ask
        self._volume, self._grid = prepared.volume, prepared.contract.grid
        self._middle = body_centre(prepared.volume, prepared.windows)
        distance_mm = prepared.volume.spacing_mm[0]
        self._step = sample_step(distance_mm, self._grid)
        every = max(1, int(SPARSE_MM / (self._step * distance_mm) + 1e-6))
        self._sparse = range(0, -(-prepared.volume.shape[0] // self._step), every)
        self._keep = keep and self._step == 1
        self._seconds, self._computed = 0.0, 0

    def labels(self) -> tuple[CroppedScan, Prediction]:
        """See `labels_of_scan`."""
        view = self._settled(self._search_at(self._middle, self._sparse[::2]))
        if not view.complete:
            view = max(view, self._settled(self._search_at(view.place, self._sparse)), key=_Found.rank)
        for place in () if view.complete else self._tiles():
            view = max(view, self._settled(self._search_at(place, self._sparse[::2])), key=_Found.rank)
            if view.complete:
                break
        if view.complete:
            known = view.computed if self._keep else {}
            cropped = replace(view.cropped, samples=view.found, grow=True, known=tuple(known))
            labelled = self._labels_from_model(cropped)
            for sample, labels in known.items():
                labelled.labels[sample] = labels
            if self._is_whole(labelled.labels):
                return cropped, self._total(labelled)
        return view.cropped, self._total(self._labels_from_model(view.cropped))

    def _labels_from_model(self, cropped: CroppedScan) -> Prediction:
        labelled = self._ask(cropped)
        self._seconds += labelled.seconds
        self._computed += labelled.computed
        return labelled

    def _total(self, labelled: Prediction) -> Prediction:
        """A prediction with the cost of the whole search."""
        return replace(labelled, seconds=self._seconds, computed=self._computed)

    def _search_at(self, place: Place, samples: Sequence[int]) -> _Found:
        """Compute some samples with the grid at a place, and the sparse samples next to those with a structure."""
        cropped = self._prepared.crop_to_grid(place)
        labels = self._labels_of(cropped, samples)
        with_structure = [sample for sample, mask in labels.items() if mask.any()]
        near = {
            each for each in self._sparse if any(abs(each - sample) <= self._sparse.step for sample in with_structure)
        }
        labels |= self._labels_of(cropped, sorted(near - set(labels)))
        labels = dict(sorted(labels.items()))
        names = self._prepared.contract.labels
        with_structure = [sample for sample, mask in labels.items() if mask.any()]
        pieces = clean_labels(np.stack(list(labels.values())), names)
        boxes = tuple(label_boxes(pieces, len(names) - 1))
        spacing, contract = self._volume.spacing_mm, self._prepared.contract
        cut = any(box and is_cut_in_plane(box, cropped, spacing, contract) for box in boxes)
        slices = self._step * np.array(list(labels), np.intp)
        return _Found(place, cropped, labels, tuple(with_structure), slices, pieces, boxes, cut)

    def _labels_of(self, cropped: CroppedScan, samples: Sequence[int]) -> dict[int, Mask]:
        """Labels (h, w) of single samples, by index."""
        if not samples:
            return {}
        labels = self._labels_from_model(replace(cropped, samples=tuple(samples))).labels
        return {sample: labels[sample * self._step] for sample in samples}

    def _settled(self, view: _Found) -> _Found:
        """Centre the grid on the head around the structures found, and search again if that moves it."""
        for _ in range(3):
            place = self._head_around(view)
            if place == view.place:
                break
            view = self._search_at(place, view.found)
        return view

    def _head_around(self, view: _Found) -> Place:
        """The middle of the head around the structures found; the present place if there are none."""
        boxes = [box for box in view.boxes if box]
        if not boxes:
            return view.place
        distance_mm, row_mm, column_mm = self._volume.spacing_mm
        middle = float(np.average(view.slices, weights=np.count_nonzero(view.labels, axis=(1, 2))))
        row = view.cropped.rows.start + _middle_of([box[1] for box in boxes])
        column = view.cropped.columns.start + _middle_of([box[2] for box in boxes])
        half_mm = self._grid.size * self._grid.spacing_mm / 2
        below, above = (length / distance_mm for length in HEAD_MM)
        around_row, around_column = (_around(at, ASIDE_MM / step) for at, step in ((row, row_mm), (column, column_mm)))
        slab = SLAB_MM / distance_mm
        near_row, near_column = (_around(at, half_mm / step) for at, step in ((row, row_mm), (column, column_mm)))
        tissue = (self._volume, self._prepared.windows)
        of_head, _ = tissue_centre(*tissue, (_span(middle - below, middle + above), around_row, around_column))
        _, of_slab = tissue_centre(*tissue, (_span(middle - slab, middle + slab), near_row, near_column))
        row, column = self._middle
        return (
            of_head if abs(of_head - row) * row_mm > MOVED_MM[0] else row,
            of_slab if abs(of_slab - column) * column_mm > MOVED_MM[1] else column,
        )

    def _tiles(self) -> list[Place]:
        """Places of the grid that cover all tissue, half a grid apart, the middle ones first."""
        tissue = self._volume.voxels[0] > float(self._prepared.windows[0, 0])
        half_mm = self._grid.size * self._grid.spacing_mm / 2
        rows, columns = (
            _spread(np.flatnonzero(tissue.any(axis=axes)), half_mm / step)
            for axes, step in zip(((0, 2), (0, 1)), self._volume.spacing_mm[1:], strict=True)
        )
        middle = (float(np.mean(rows)), float(np.mean(columns))) if rows and columns else (0.0, 0.0)
        return sorted(itertools.product(rows, columns), key=lambda place: math.dist(place, middle))

    def _is_whole(self, labels: Mask) -> bool:
        """Whether every structure was found and is higher than the gaps of the sparse search, so that there is probably
        no larger piece between its samples."""
        names = self._prepared.contract.labels
        boxes = label_boxes(clean_labels(labels, names), len(names) - 1)
        least = SPARSE_MM / self._volume.spacing_mm[0]
        return all(box is not None and box[0].stop - box[0].start >= least for box in boxes)


def is_cut_in_plane(box: Box, cropped: CroppedScan, spacing_mm: tuple[float, float, float], contract: Contract) -> bool:
    """Whether a structure reaches the edge of the scan, or of the part within the grid, in a slice.

    Resampling may move an outline there by a pixel of the grid or a voxel, so structures within that distance of the
    edge count, too.

    Args:
        box: of the structure in the labels (D, h, w) within the grid.
        cropped, contract: the scan and the model.
        spacing_mm: of the scan's slices, rows and columns.
    """
    for name, side, step_mm in zip(("rows_back", "columns_back"), box[1:], spacing_mm[1:], strict=True):
        reach, margin = used(cropped.in_plane[name].T), math.ceil(contract.grid.spacing_mm / step_mm)
        if side.start - reach.start <= margin or reach.stop - side.stop <= margin:
            return True
    return False


def _middle_of(sides: list[slice]) -> float:
    return float(min(side.start for side in sides) + max(side.stop for side in sides) - 1) / 2


def _span(first: float, last: float) -> slice:
    return slice(max(0, round(first)), max(0, round(last)) + 1)


def _around(middle: float, reach: float) -> slice:
    return _span(middle - reach, middle + reach)


def _spread(places: NDArray[np.intp], half: float) -> list[int]:
    """Positions at most `half` apart, from `half` after the first of some indices to `half` before the last."""
    if not len(places):
        return []
    first, last = float(places[0]) + half, float(places[-1]) - half
    if last <= first:
        return [round((first + last) / 2)]
    return [round(each) for each in np.linspace(first, last, 1 + math.ceil((last - first) / half))]
