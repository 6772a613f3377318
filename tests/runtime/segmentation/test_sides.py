"""Names of glands in any language say the same side to flags, reports and clean-up."""

import numpy as np
import pytest

from parotid_seg.contract import Contract, Grid
from parotid_seg.flags import FlagCode
from parotid_seg.runtime.report.results import ratio_of_sides
from parotid_seg.runtime.segmentation.segment import postprocess, prepare
from parotid_seg.scan.volume import Orientation, Volume

GRID = Grid(size=16, spacing_mm=12.0, offsets_mm=(0,), slice_step_mm=1.0)
NAMES = [("parotid_left", "parotid_right"), ("Parotis li.", "Parotis re."), ("Parótida izq", "Parótida der")]


def flags_of(names: tuple[str, str], left: int, right: int) -> list[FlagCode]:
    """Flags on two glands of 8 ml that begin at these columns; columns run to the patient's left."""
    rng = np.random.default_rng(0)
    block = np.full((1, 10, 30, 30), -1000, np.float32)
    block[:, :, 5:25, 5:25] = rng.normal(-105, 15, (10, 20, 20))
    block[:, :, 7:23, 7:23] = rng.normal(40, 15, (10, 16, 16))
    volume = Volume(block, (5.0, 5.0, 5.0), Orientation((0, 1, 2), (False, False, False)))
    contract = Contract(("background", *names), ("CT",), ((-200.0, 300.0),), GRID)
    mask = np.zeros((10, 30, 30), np.uint8)
    for value, column in enumerate((left, right), start=1):
        mask[3:7, 12:16, column : column + 4] = value
    covered = prepare(volume, contract).crop_to_grid()
    return [flag.code for flag in postprocess(mask[:, covered.rows, covered.columns], covered, volume, contract).flags]


@pytest.mark.parametrize("names", NAMES)
def test_swapped_glands_are_flagged(names: tuple[str, str]) -> None:
    assert FlagCode.SIDES_SWAPPED in flags_of(names, left=8, right=18)
    assert FlagCode.SIDES_SWAPPED not in flags_of(names, left=18, right=8)


@pytest.mark.parametrize("names", NAMES)
def test_glands_of_unequal_size_are_compared(names: tuple[str, str]) -> None:
    assert ratio_of_sides({names[0]: 10.0, names[1]: 25.0, "tumour": 1.0}) == 2.5
