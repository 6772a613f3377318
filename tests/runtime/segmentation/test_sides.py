"""Names of glands in any language say the same side to flags, reports and clean-up."""

import numpy as np
import pytest

from parotid_seg.contract import Contract, Grid
from parotid_seg.flags import Flag, FlagCode
from parotid_seg.runtime.segmentation.segment import Segmentation, postprocess, prepare
from parotid_seg.scan.labels import ratio_of_sides
from parotid_seg.scan.volume import Orientation, Volume

GRID = Grid(size=16, spacing_mm=12.0, offsets_mm=(0,), slice_step_mm=1.0)
NAMES = [("parotid_left", "parotid_right"), ("Parotis li.", "Parotis re."), ("Parótida izq", "Parótida der")]


def segmented(names: tuple[str, str], left: int, right: int, *, height: int = 4) -> Segmentation:
    """Two glands of 8 ml that begin at these columns; columns run to the patient's left. The left one may be higher."""
    rng = np.random.default_rng(0)
    block = np.full((1, 10, 30, 30), -1000, np.float32)
    block[:, :, 5:25, 5:25] = rng.normal(-105, 15, (10, 20, 20))
    block[:, :, 7:23, 7:23] = rng.normal(40, 15, (10, 16, 16))
    volume = Volume(block, (5.0, 5.0, 5.0), Orientation((0, 1, 2), (False, False, False)))
    contract = Contract(("background", *names), ("CT",), ((-200.0, 300.0),), GRID)
    mask = np.zeros((10, 30, 30), np.uint8)
    for value, column in enumerate((left, right), start=1):
        mask[3 : 3 + (height if value == 1 else 4), 12:16, column : column + 4] = value
    covered = prepare(volume, contract).crop_to_grid()
    return postprocess(mask[:, covered.rows, covered.columns], covered, volume, contract)


def flags_of(names: tuple[str, str], left: int, right: int) -> list[FlagCode]:
    return [flag.code for flag in segmented(names, left, right).flags]


@pytest.mark.parametrize("names", NAMES)
def test_swapped_glands_are_flagged(names: tuple[str, str]) -> None:
    assert FlagCode.SIDES_SWAPPED in flags_of(names, left=8, right=18)
    assert FlagCode.SIDES_SWAPPED not in flags_of(names, left=18, right=8)


@pytest.mark.parametrize("kept", NAMES[0])
def test_swapped_glands_are_flagged_if_only_one_of_them_is_written(kept: str) -> None:
    labels = ("background", *NAMES[0])
    assert FlagCode.SIDES_SWAPPED in {flag.code for flag in segmented(NAMES[0], 8, 18).only([kept], labels).flags}


def test_other_flags_on_a_structure_that_is_not_written_are_left_out() -> None:
    labels, both = ("background", *NAMES[0]), segmented(NAMES[0], 18, 8, height=7)
    end = Flag(FlagCode.CUT_BY_SCAN_END, NAMES[0][0])
    assert end in both.flags
    assert end not in both.only(NAMES[0][1:], labels).flags


@pytest.mark.parametrize("names", NAMES)
def test_sides_that_differ_are_a_flag_of_the_segmentation(names: tuple[str, str]) -> None:
    assert Flag(FlagCode.SIDES_DIFFER, value=1.75) in segmented(names, 18, 8, height=7).flags
    assert FlagCode.SIDES_DIFFER not in flags_of(names, 18, 8)


@pytest.mark.parametrize("names", NAMES)
def test_glands_of_unequal_size_are_compared(names: tuple[str, str]) -> None:
    assert ratio_of_sides({names[0]: 10.0, names[1]: 25.0, "tumour": 1.0}) == 2.5
