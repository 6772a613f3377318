"""Batches: scans share them, whatever comes in comes out right, and a small memory makes them smaller."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from parotid_seg.contract import Contract, Grid
from parotid_seg.errors import DeviceMemoryError, ScanError
from parotid_seg.runtime.engines.base import Backend, Done
from parotid_seg.runtime.segmentation.batching import Batcher, Prediction
from parotid_seg.scan.chunks import Inputs, crop_to_grid, segmented
from parotid_seg.scan.volume import Volume
from tests.scan.test_chunks import scan_at, threshold
from tests.scan.test_grid import HU, volume_of

GRID = Grid()


class Threshold(Backend):
    """A backend of bright voxels that remembers how many looks it was given at once."""

    def __init__(
        self,
        most: int | None = None,
        memory: int = 10**9,
        queue_depth: int = 1,
        run: Callable[..., NDArray[np.float32]] = threshold,
        labels: tuple[str, ...] = ("background", "gland"),
    ) -> None:
        self.contract = Contract(labels, ("CT",), ((-200.0, 300.0),), GRID)
        self.largest_batch, self.memory, self.queue_depth, self._run = most, memory, queue_depth, run
        self.looks: list[int] = []
        self.most_slices = 10**9

    def fits(self, inputs: Inputs) -> bool:
        return inputs["slices"].shape[1] <= self.most_slices

    def start(self, inputs: Inputs) -> Done:
        if len(inputs["neighbours"]) > self.memory:
            raise DeviceMemoryError("the GPU's memory is full")
        self.looks.append(len(inputs["neighbours"]))
        return Done(self._run(inputs))


def run(backend: Threshold, scans: Sequence[Volume], batch_size: int, **options: Any) -> dict[int, Prediction]:
    batches: Batcher[Any] = Batcher(backend, batch_size, **options)
    for number, scan in enumerate(scans):
        batches.add(number, crop_to_grid(scan, HU, GRID))
    found: dict[Any, Any] = {}
    while batches.busy:
        found.update(batches.step())
    return found


def expected(scan: Volume) -> NDArray[np.uint8]:
    covered = crop_to_grid(scan, HU, GRID)
    return segmented(scan, HU, GRID, 64, threshold)[:, covered.rows, covered.columns]


@pytest.fixture(scope="module")
def scans() -> list[Volume]:
    """Three of one spacing, one of another, one of thin slices."""
    coarse = volume_of(scan_at(80, 70).voxels[0], (3.0, 2.5, 2.4))
    thin = volume_of(scan_at(80, 70, (13, 160, 150)).voxels[0], (1.0, 2.4, 2.4))
    return [scan_at(80, 70), scan_at(75, 80), coarse, scan_at(81, 72), thin]


@pytest.mark.parametrize("queue_depth", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 3, 5, 100])
def test_every_scan_gets_its_own_labels(scans: list[Volume], batch_size: int, queue_depth: int) -> None:
    backend = Threshold(queue_depth=queue_depth)
    found = run(backend, scans, batch_size)
    assert sorted(found) == list(range(len(scans)))
    for number, scan in enumerate(scans):
        assert found[number].labels.any()
        np.testing.assert_array_equal(found[number].labels, expected(scan), err_msg=str(number))
        assert found[number].seconds > 0
        assert found[number].agreement == {}
    assert max(backend.looks) <= batch_size + 1


def test_scans_of_one_spacing_share_batches_and_others_do_not(scans: list[Volume]) -> None:
    backend = Threshold()
    run(backend, scans[:4], 16)
    assert backend.looks == [16, 7, 5], "21 slices of one spacing and 7 of another"


def test_no_more_is_joined_than_the_engine_takes(scans: list[Volume]) -> None:
    backend = Threshold()
    backend.most_slices = 10
    found = run(backend, scans[:2], 16)
    assert backend.looks == [7, 7]
    np.testing.assert_array_equal(found[1].labels, expected(scans[1]))


def test_a_single_look_is_computed_even_if_the_engine_would_rather_have_less(scans: list[Volume]) -> None:
    backend = Threshold()
    backend.most_slices = 1
    found = run(backend, scans[:1], 16)
    assert backend.looks == [1] * 7
    np.testing.assert_array_equal(found[0].labels, expected(scans[0]))


@pytest.mark.parametrize(("apart", "together"), [(5, True), (60, False)])
def test_runs_of_one_scan_that_need_the_same_slices_have_them_once(apart: int, together: bool) -> None:
    """A slice needs the 8 below and above it."""
    voxels = np.full((1, 100, 40, 40), -1000, np.int16)
    voxels[:, [15, 15 + apart]] = 250
    covered = crop_to_grid(volume_of(voxels[0], (3.0, 4.0, 4.0)), HU, GRID)
    slices: list[int] = []

    def seen(inputs: Inputs) -> NDArray[np.float32]:
        slices.append(inputs["slices"].shape[1])
        return threshold(inputs)

    backend = Threshold(run=seen)
    batches: Batcher[Any] = Batcher(backend, 16)
    known = (15, 15 + apart)
    batches.add(0, replace(covered, samples=known, grow=True, known=known))
    ((_, found),) = batches.step()
    assert isinstance(found, Prediction)
    around = sorted({sample + by for sample in known for by in (-3, -2, -1, 1, 2, 3)} - {*known})
    assert backend.looks == [len(around)]
    one_run = 7 + 2 * 8
    assert slices[0] == (one_run + apart if together else 2 * one_run)


def test_the_engine_bounds_the_batch(scans: list[Volume]) -> None:
    backend = Threshold(most=2)
    run(backend, scans[:1], 16)
    assert backend.looks == [2, 2, 2, 1]


@pytest.mark.parametrize("queue_depth", [1, 3])
def test_a_batch_that_does_not_fit_into_memory_is_halved_and_done_again(scans: list[Volume], queue_depth: int) -> None:
    said: list[str] = []
    backend = Threshold(memory=3, queue_depth=queue_depth)
    found = run(backend, scans, 12, say=said.append)
    for number, scan in enumerate(scans):
        np.testing.assert_array_equal(found[number].labels, expected(scan))
    assert said == [f"the GPU's memory is full; going on with batches of {size}" for size in (6, 3, 1)][: len(said)]
    assert len(said) >= 2


def test_not_even_one_slice_fits(scans: list[Volume]) -> None:
    with pytest.raises(DeviceMemoryError, match="memory is full"):
        run(Threshold(memory=0), scans[:1], 4)


def test_a_scan_that_the_engine_cannot_take_is_given_back_with_the_reason(scans: list[Volume]) -> None:
    class Picky(Threshold):
        def start(self, inputs: Inputs) -> Done:
            if len(inputs["rows_back"]) == expected(scans[2]).shape[1]:
                raise ScanError("rows of a chunk: found too many")
            return super().start(inputs)

    found = run(Picky(queue_depth=2), scans, 3)
    assert isinstance(found[2], ScanError)
    for number in (0, 1, 3, 4):
        np.testing.assert_array_equal(found[number].labels, expected(scans[number]))


def sides(inputs: Inputs) -> NDArray[Any]:
    """Left of the grid's middle is 1, right of it 2; and so for any image."""
    labels = threshold(inputs)
    columns = np.argmax(inputs["columns_back"], axis=1)
    side = np.where(columns < GRID.size // 2, 1, 2).astype(np.uint8)
    return labels * side[None, None, :]


def test_mirror_images_swap_sides_and_their_agreement_is_measured(scans: list[Volume]) -> None:
    labels = ("background", "parotid_left", "parotid_right")
    plain = run(Threshold(run=sides, labels=labels), scans[:1], 4)[0]
    flipped = run(Threshold(run=sides, labels=labels), scans[:1], 4, tta=True)[0]
    np.testing.assert_array_equal(flipped.labels, plain.labels)
    assert flipped.agreement["parotid_left"] > 0.9
    assert flipped.agreement["parotid_right"] > 0.9

    def one_sided(inputs: Inputs) -> NDArray[Any]:
        return np.where(sides(inputs) == 1, 1, 0).astype(np.uint8)

    found = run(Threshold(run=one_sided, labels=labels), scans[:1], 4, tta=True)[0]
    assert found.agreement == {"parotid_left": 0.0, "parotid_right": 0.0}


def test_test_time_augmentation_averages_probabilities(scans: list[Volume]) -> None:
    """A model that says 60 % left in the plain look and 90 % right of the same place in the mirror."""
    calls = []

    def shares(inputs: Inputs) -> NDArray[np.float32]:
        shape = (len(inputs["slices_back"]), len(inputs["rows_back"]), len(inputs["columns_back"]))
        calls.append(shape)
        values = (0.1, 0.6, 0.3) if len(calls) % 2 else (0.0, 0.9, 0.1)
        return np.broadcast_to(np.array(values, np.float32)[None, :, None, None], (shape[0], 3, *shape[1:])).copy()

    labels = ("background", "parotid_left", "parotid_right")
    found = run(Threshold(run=shares, labels=labels), scans[:1], 4, tta=True)[0]
    assert (found.labels == 2).all(), "0.3 + 0.9 for the right, 0.6 + 0.1 for the left"
    assert found.agreement["parotid_left"] == 0.0


def test_sparse_samples_take_no_more_slices_than_neighbouring_ones_of_thin_slices() -> None:
    shapes = []

    def noting(inputs: Inputs) -> NDArray[Any]:
        shapes.append((len(inputs["neighbours"]), inputs["slices"].shape[1]))
        return threshold(inputs)

    scan = crop_to_grid(volume_of(scan_at(80, 70, (200, 160, 150)).voxels[0], (1.0, 2.4, 2.4)), HU, GRID)
    batches: Batcher[Any] = Batcher(Threshold(run=noting), 8)
    batches.add(0, replace(scan, samples=tuple(range(0, 66, 8))))
    found: dict[Any, Any] = {}
    while batches.busy:
        found.update(batches.step())
    assert max(slices for _, slices in shapes) <= 8 * 6 + 2 * 54 + 1
    assert sum(samples for samples, _ in shapes) == 9 == found[0].computed
    assert found[0].labels[::24].any(axis=(1, 2)).all()
    assert not np.delete(found[0].labels, np.s_[::24], axis=0).any()
