"""Structures are located on sparse samples; what is segmented around them is what looking everywhere gives."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from parotid_seg.contract import Contract, Grid
from parotid_seg.errors import InputError
from parotid_seg.runtime.engines.base import Backend, Done
from parotid_seg.runtime.segmentation.batching import Prediction
from parotid_seg.runtime.segmentation.locate import Prepared, labels_of_scan
from parotid_seg.runtime.segmentation.segment import asking
from parotid_seg.runtime.segmentation.segmentation_options import SegmentationOptions
from parotid_seg.scan.chunks import CroppedScan, Inputs
from parotid_seg.scan.components import keep_largest_components
from parotid_seg.scan.labels import side_of
from parotid_seg.scan.volume import Volume
from tests.scan.test_grid import HU, volume_of

LEFT, RIGHT = 200, 250
PAROTIDS = ("background", "parotid_left", "parotid_right")


class ByIntensity(Backend):
    """A model that knows each gland by its intensity, and sees what its grid covers.

    Attributes:
        computed: number of samples so far.
        samples: the slice of each.
    """

    def __init__(self, labels: tuple[str, str, str] = PAROTIDS, most_slices: int = 10**9) -> None:
        self.contract = Contract(labels, ("CT",), ((-200.0, 300.0),), Grid())
        self.most_slices = most_slices
        self.computed = 0
        self.samples: list[bytes] = []

    def fits(self, inputs: Inputs) -> bool:
        return inputs["slices"].shape[1] <= self.most_slices

    def start(self, inputs: Inputs) -> Done:
        assert self.fits(inputs)
        self.computed += len(inputs["neighbours"])
        own = inputs["neighbours"][:, self.contract.grid.offsets_mm.index(0.0)]
        slices = np.einsum("sd,dhw->shw", inputs["slices_back"] @ own, inputs["slices"][0].astype(np.float32))
        self.samples += [plane.tobytes() for plane in slices]
        covered = (inputs["rows_back"].sum(axis=1) > 0.5)[:, None] & (inputs["columns_back"].sum(axis=1) > 0.5)
        labels = np.where(slices > (LEFT + RIGHT) / 2, 2, np.where(slices > LEFT - 25, 1, 0))
        return Done(np.where(covered, labels, 0).astype(np.uint8))


def head(
    distance_mm: float = 3.0,
    aside_mm: float = 0.0,
    below_mm: float = 0.0,
    heights_mm: tuple[float, float] = (45.0, 45.0),
) -> Volume:
    """A head 160 mm wide with its two glands, aside of the middle of a field of view of 700 mm, above a torso."""
    depth, size, step = round((240 + below_mm) / distance_mm), 140, 5.0
    z = (np.arange(depth) * distance_mm - below_mm)[:, None, None]
    y, x = ((np.arange(size) - size / 2) * step)[:, None], (np.arange(size) - size / 2) * step
    voxels = np.full((depth, size, size), -1000, np.int16)
    voxels[((x - aside_mm) / 80) ** 2 + (y / 100) ** 2 + 0 * z < 1] = 40
    voxels[((x / 180) ** 2 + (y / 110) ** 2 < 1) & (z < 0)] = 20
    for side, height_mm, value in zip((1, -1), heights_mm, (LEFT, RIGHT), strict=True):
        gland = (abs(x - aside_mm - 60 * side) < 12) & (abs(y + 20) < 16) & (abs(z - 150) < height_mm / 2)
        voxels[gland] = value
    return volume_of(voxels, (distance_mm, step, step))


def segmented(volume: Volume, backend: ByIntensity | None = None, **options: Any) -> tuple[NDArray[np.uint8], int]:
    backend = backend or ByIntensity()
    prepared = Prepared(volume, HU, backend.contract)
    covered, labelled = labels_of_scan(prepared, asking(backend, 16), SegmentationOptions(**options))
    assert labelled.computed == backend.computed
    mask = np.zeros(volume.shape, np.uint8)
    mask[:, covered.rows, covered.columns] = labelled.labels
    return keep_largest_components(mask, backend.contract.labels), labelled.computed


def glands(volume: Volume) -> NDArray[Any]:
    found = np.select([volume.voxels[0] == LEFT, volume.voxels[0] == RIGHT], [1, 2], 0)
    assert all((found == value).any() for value in (1, 2))
    return found


@pytest.mark.parametrize("distance_mm", [0.7, 1.0, 1.5, 2.5, 3.0, 5.0])
def test_a_third_is_computed_and_nothing_changes(distance_mm: float) -> None:
    volume = head(distance_mm)
    everywhere, all_samples = segmented(volume, search="full")
    found, computed = segmented(volume)
    np.testing.assert_array_equal(found, everywhere)
    assert computed < 0.5 * all_samples
    if distance_mm >= 3.0:
        np.testing.assert_array_equal(found, glands(volume))


@pytest.mark.parametrize("distance_mm", [2.5, 3.0, 5.0, 8.0, 12.0, 24.0, 30.0])
def test_no_sample_is_computed_twice(distance_mm: float) -> None:
    volume = head(distance_mm, heights_mm=(70.0, 80.0))
    volume.voxels[0, :, 70, 70] = -900 + np.arange(volume.shape[0])  # no two slices are equal
    backend = ByIntensity()
    found, computed = segmented(volume, backend)
    np.testing.assert_array_equal(found, segmented(volume, search="full")[0])
    assert computed == len(set(backend.samples))


def test_test_time_augmentation_computes_every_sample_of_the_result_anew() -> None:
    backend = ByIntensity()
    volume = head()
    asked: list[CroppedScan] = []

    def ask(covered: CroppedScan) -> Prediction:
        asked.append(covered)
        return asking(backend, 16)(covered)

    labels_of_scan(Prepared(volume, HU, backend.contract), ask, SegmentationOptions(tta=True))
    assert asked[-1].grow
    assert not asked[-1].known


@pytest.mark.parametrize("aside_mm", [-160.0, -85.0, -40.0, 0.0, 25.0, 60.0, 120.0])
def test_a_head_is_found_wherever_it_lies(aside_mm: float) -> None:
    volume = head(aside_mm=aside_mm, below_mm=600)
    found, computed = segmented(volume)
    np.testing.assert_array_equal(found, glands(volume))
    assert computed < 0.5 * len(volume.voxels[0])


@pytest.mark.parametrize("columns", [4, 8, 20, 60])
def test_a_strip_of_0_hu_beside_the_patient_moves_nothing(columns: int) -> None:
    volume = head()
    wider = np.pad(volume.voxels[0], ((0, 0), (0, 0), (0, columns)))
    found, _ = segmented(volume_of(wider, volume.spacing_mm))
    np.testing.assert_array_equal(found[:, :, :-columns], segmented(volume)[0])


def test_everywhere_is_looked_before_a_gland_is_called_missing() -> None:
    """One gland lies between two sparse samples; another patient has only one."""
    volume = head(heights_mm=(45.0, 9.0))
    found, computed = segmented(volume)
    np.testing.assert_array_equal(found, glands(volume))
    voxels = volume.voxels[0].copy()
    voxels[voxels == RIGHT] = 40
    found, computed = segmented(volume_of(voxels, volume.spacing_mm))
    np.testing.assert_array_equal(found == 1, voxels == LEFT)
    assert computed > len(voxels)


def test_a_scan_without_a_head_is_looked_at_everywhere() -> None:
    voxels = np.where(head().voxels[0] > -500, 40, -1000).astype(np.int16)
    found, computed = segmented(volume_of(voxels, (3.0, 5.0, 5.0)))
    assert not found.any()
    assert computed > len(voxels)
    air = volume_of(np.full((30, 60, 60), -1000, np.int16), (3.0, 5.0, 5.0))
    assert not segmented(air)[0].any()


def test_a_larger_piece_elsewhere_in_the_gland_s_slices_is_kept() -> None:
    """What is found beside the gland counts, as it does everywhere."""
    volume = head()
    voxels = volume.voxels[0].copy()
    voxels[20:70, 78:84, 66:74] = LEFT
    volume = volume_of(voxels, volume.spacing_mm)
    np.testing.assert_array_equal(segmented(volume)[0], segmented(volume, search="full")[0])


@pytest.mark.parametrize(
    ("labels", "options"),
    [(("background", "gland", "tumour"), {}), (PAROTIDS, {"clean_up": False}), (PAROTIDS, {"search": "full"})],
)
def test_all_is_computed_where_small_pieces_count(labels: tuple[str, str, str], options: dict[str, bool | str]) -> None:
    volume = head()
    assert all(map(side_of, labels[1:])) == bool(options)
    found, computed = segmented(volume, ByIntensity(labels), **options)
    assert computed == len(volume.voxels[0])
    np.testing.assert_array_equal(found, glands(volume))


def test_an_engine_gets_no_more_slices_than_it_takes() -> None:
    volume = head()
    found, _ = segmented(volume, ByIntensity(most_slices=40))
    np.testing.assert_array_equal(found, glands(volume))


def test_an_unknown_search_is_refused() -> None:
    with pytest.raises(InputError, match="--search: found 'fast', expected one of: auto, full"):
        SegmentationOptions(search="fast")  # type: ignore[arg-type]
