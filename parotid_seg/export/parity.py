"""Compares an exported model with the trained one: both must give the same masks of real scans, within a tolerance."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from parotid_seg.contract import Contract, Grid
from parotid_seg.errors import InputError, ScanError
from parotid_seg.metrics import dice
from parotid_seg.runtime.engines.engine_file import BatchProfile
from parotid_seg.runtime.label_match import Contours
from parotid_seg.runtime.pipeline.discovery import find_scans
from parotid_seg.runtime.pipeline.sources import Scan, place_of, read_scan
from parotid_seg.runtime.tolerance import MaskDifference, Tolerance, difference
from parotid_seg.scan.chunks import Inputs, chunks, segmented
from parotid_seg.scan.intensity import Windows, in_windows
from parotid_seg.scan.other_formats import image_name
from parotid_seg.scan.volume import Mask, Volume, Voxels
from parotid_seg.train.network import ParotidNet

Run = Callable[[Inputs], Mask]
"""One chunk to labels (S, H, W)."""


@dataclass(frozen=True, kw_only=True)
class ScanParity(MaskDifference):
    """Exported against trained model on one scan; the worst structure's figures.

    Attributes:
        scan: name of the scan, see `names_in`.
        size: slices, rows and columns.
        batch_size: samples at once.
        dsc_lost: see `Tolerance`; None without a contour.
        not_finite: number of scores that are NaN or infinite; None if they were not computed.
        passed: whether the comparison is within the tolerance.
        exceeded: the exceeded limits, in words.
    """

    scan: str
    size: tuple[int, int, int]
    batch_size: int
    dsc_lost: float | None = None
    not_finite: int | None = None
    passed: bool = False
    exceeded: tuple[str, ...] = ()

    def judged(self, tolerance: Tolerance) -> ScanParity:
        """A copy with `passed` and `exceeded` set."""
        exceeded = [*tolerance.exceeded(self)]
        if self.dsc_lost is not None and not self.dsc_lost <= tolerance.most_dsc_lost:
            exceeded.append(
                f"DSC against the contour lower by {self.dsc_lost:.4f}, at most {tolerance.most_dsc_lost:g}"
            )
        if self.not_finite:
            exceeded.append(f"{self.not_finite} scores not finite, expected none")
        return replace(self, passed=not exceeded, exceeded=tuple(exceeded))

    def __str__(self) -> str:
        size = " x ".join(map(str, self.size))
        lost = "" if self.dsc_lost is None else f", change of the DSC with the contour {-self.dsc_lost:+z.4f}"
        verdict = "passed" if self.passed else f"FAILED: {'; '.join(self.exceeded)}"
        return f"{self.scan} ({size}), batches of {self.batch_size}: {super().__str__()}{lost}: {verdict}"


class ComparedScan(NamedTuple):
    """A scan at one size, with the trained model's mask."""

    scan: str
    volume: Volume
    windows: Windows
    expected: Mask
    contour: Mask | None


class Parity:
    """The trained model's masks of some scans, computed once, to compare any number of exports with.

    The first scan is compared at three native sizes and at every batch size of the profile, the others at their own
    size and the usual batch size.

    Args:
        net: the trained model, in FP32.
        contract: of the export.
        place: folder of scans, optionally with contours in `labelsTr` or `labelsTs` beside `imagesTr` or `imagesTs`.
        batch: numbers of samples at once.

    Raises:
        InputError: if there is no scan to compare on, or labels of contours cannot be matched with the model's by name.
        ScanError: if a scan cannot be read, or is a CT that is not in HU.
    """

    def __init__(self, net: ParotidNet, contract: Contract, place: Path, batch: BatchProfile) -> None:
        self.contract, self.batch = contract, batch
        scans = scans_in(place, contract.channels)
        self.comparisons: list[ComparedScan] = []
        for number, (name, sources) in enumerate(zip(names_in(place, scans), scans, strict=True)):
            scan, first = read_scan(sources), sources[0]
            try:
                volume, windows = in_windows(scan.volume, contract.channels, contract.windows)
            except ScanError as error:
                raise ScanError(error.reason, path=place_of(first)) from error
            contour_file = contour_of(first) if isinstance(first, Path) else None
            contour = Contours(contract.labels, contour_file.parent).read(contour_file, scan) if contour_file else None
            for each, outline in _sizes(volume, contour, batch.opt) if number == 0 else [(volume, contour)]:
                expected = torch_labels(net, each, windows, contract.grid)
                self.comparisons.append(ComparedScan(name, each, windows, expected, outline))

    def never_found(self) -> list[str]:
        """Labels that the trained model finds in none of the scans: equal masks prove nothing about them."""
        found = {int(value) for each in self.comparisons for value in np.unique(each.expected)}
        return [name for value, name in enumerate(self.contract.labels) if value and value not in found]

    def usual_chunk(self) -> Inputs:
        """The first chunk of the first scan at the usual batch size, for timing and counting."""
        first = self.comparisons[0]
        return next(chunks(first.volume, first.windows, self.contract.grid, self.batch.opt)).inputs

    def calibration(self) -> list[Inputs]:
        """Of each scan the chunk in which the trained model finds most."""
        richest: list[Inputs] = []
        for each in self.comparisons:
            scan_chunks = chunks(each.volume, each.windows, self.contract.grid, self.batch.opt)
            most = max(scan_chunks, key=lambda chunk: np.count_nonzero(each.expected[chunk.slices]))
            richest.append(most.inputs)
        return richest

    def check(
        self, run: Run, gate: Tolerance, scores: Callable[[Inputs], NDArray[np.float32]] | None = None
    ) -> list[ScanParity]:
        """Compare an export on every scan, size and batch size, with shorter last batches.

        Args:
            scores: computes the scores of the labels, to check the first scan for NaN.
        """
        rows = []
        for number, comparison in enumerate(self.comparisons):
            sizes = (self.batch.min, self.batch.opt, self.batch.max) if number == 0 else (self.batch.opt,)
            for batch_size in dict.fromkeys(sizes):
                row = self._compared(run, comparison, batch_size)
                if scores is not None and number == 0 and batch_size == self.batch.opt:
                    row = replace(row, not_finite=self._not_finite(scores, comparison))
                rows.append(row.judged(gate))
        return rows

    def quick(self, run: Run, gate: Tolerance) -> ScanParity:
        """The first scan at the usual batch size only, to choose between many exports."""
        return self._compared(run, self.comparisons[0], self.batch.opt).judged(gate)

    def labels_of(self, run: Run, row: ScanParity) -> tuple[ComparedScan, Mask]:
        """A compared scan again with the export's labels, to show where they differ."""
        same = (each for each in self.comparisons if (each.scan, each.volume.shape) == (row.scan, row.size))
        comparison = next(same)
        return comparison, self._segmented(run, comparison, row.batch_size)

    def _compared(self, run: Run, comparison: ComparedScan, batch_size: int) -> ScanParity:
        labels = self._segmented(run, comparison, batch_size)
        return compare(comparison, labels, batch_size, len(self.contract.labels))

    def _segmented(self, run: Run, comparison: ComparedScan, batch_size: int) -> Mask:
        return segmented(comparison.volume, comparison.windows, self.contract.grid, batch_size, run)

    def _not_finite(self, scores: Callable[[Inputs], NDArray[np.float32]], comparison: ComparedScan) -> int:
        scan_chunks = chunks(comparison.volume, comparison.windows, self.contract.grid, self.batch.opt)
        return sum(int(np.count_nonzero(~np.isfinite(scores(each.inputs)))) for each in scan_chunks)


def scans_in(
    place: Path, channels: Sequence[str], *, option: str = "--verify", ignore: Sequence[Path] = ()
) -> list[Scan]:
    """The scans of a folder, without nnU-Net's label folders.

    Args:
        place: the folder.
        channels: the model's.
        option: the option that names the folder, for errors.
        ignore: other folders without scans.

    Raises:
        InputError: if there is none, or a file cannot be a scan.
    """
    scans, errors = find_scans([place], channels, ignore=[*place.glob("**/labelsT[rs]"), *ignore])
    if errors or not scans:
        raise InputError(f"{option}: {errors[0] if errors else f'{place}: no scan in this folder'}")
    return scans


def names_in(place: Path, scans: Sequence[Scan]) -> list[str]:
    """Different names of the scans of a folder: of the first channel's file, with its folders where two have the
    same."""
    paths = [place_of(scan[0]) for scan in scans]
    names = Counter(path.name for path in paths)
    return [path.name if names[path.name] == 1 else os.path.relpath(path, place.resolve()) for path in paths]


def contour_of(scan: Path) -> Path | None:
    """The contour that belongs to a scan in nnU-Net's raw layout, if there is one."""
    if not scan.parent.name.startswith("imagesT"):
        return None
    name = image_name(scan)
    contour = f"{name.removesuffix('_0000')}{scan.name.removeprefix(name)}"
    path = scan.parent.with_name(scan.parent.name.replace("images", "labels")) / contour
    return path if path.is_file() else None


def compare(comparison: ComparedScan, labels: Mask, batch_size: int, count: int) -> ScanParity:
    """Compare one export's labels (D, H, W) with the trained model's; `passed` is not set yet."""
    lost = None
    if comparison.contour is not None:
        lost = max(
            dice(comparison.expected == value, comparison.contour == value)
            - dice(labels == value, comparison.contour == value)
            for value in range(1, count)
        )
    return ScanParity(
        scan=comparison.scan,
        size=comparison.volume.shape,
        batch_size=batch_size,
        dsc_lost=lost,
        **asdict(difference(comparison.expected, labels, comparison.volume.spacing_mm, count)),
    )


def resized(voxels: Voxels, factor: float) -> Voxels:
    """Voxels (C, D, H, W) linearly resampled to more or fewer rows and columns, like a scan with another matrix
    size."""
    zoom = (1.0, 1.0, factor, factor)
    finer = ndimage.zoom(voxels.astype(np.float32), zoom, order=1, grid_mode=True, mode="nearest")
    return finer.round().astype(np.int16) if voxels.dtype == np.int16 else finer


def _sizes(volume: Volume, contour: Mask | None, batch: int) -> Iterator[tuple[Volume, Mask | None]]:
    """A scan unchanged, finer, and cropped to fewer rows than columns; one slice shorter if all batches would be
    full."""
    stop = volume.shape[0] - (volume.shape[0] % batch == 0 and volume.shape[0] > 1)
    voxels, contour = volume.voxels[:, :stop], None if contour is None else contour[:stop]
    whole = replace(volume, voxels=voxels)
    yield whole, contour
    finer = resized(voxels, 1.5)
    spacing_z, spacing_y, spacing_x = volume.spacing_mm
    _, _, rows, columns = finer.shape
    spacing_mm = (spacing_z, spacing_y * volume.shape[1] / rows, spacing_x * volume.shape[2] / columns)
    yield replace(volume, voxels=finer, spacing_mm=spacing_mm), None
    rows, columns = volume.shape[1] // 8, volume.shape[2] // 16
    inside = np.s_[..., rows : volume.shape[1] - rows, columns : volume.shape[2] - columns]
    yield replace(volume, voxels=voxels[inside]), None if contour is None else contour[inside]


@torch.no_grad()
def torch_labels(net: ParotidNet, volume: Volume, windows: Windows, grid: Grid) -> Mask:
    """The trained model's labels in FP32."""

    def run(inputs: Inputs) -> Mask:
        labels: Mask = net(**{name: torch.from_numpy(array) for name, array in inputs.items()}).numpy()
        return labels

    return segmented(volume, windows, grid, 16, run)
