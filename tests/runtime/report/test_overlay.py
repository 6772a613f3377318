"""The picture of a case: every structure from end to end, sides are the viewer's, edges of the scan do no harm."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from parotid_seg.runtime.report.overlay import (
    FIELD_MM,
    GAP_PX,
    INK,
    PANEL_PX,
    TICK_PX,
    TITLE_PX,
    draw_case,
    save_picture,
)
from parotid_seg.scan.codes import COLOURS
from parotid_seg.scan.volume import Orientation, Volume

LABELS = ("background", "parotid_left", "parotid_right")
SPACING = (3.0, 2.0, 2.0)
ROWS = ("axial", "first", "middle", "last", "coronal", "sagittal")


def volume(shape: tuple[int, int, int] = (40, 64, 64), spacing: tuple[float, float, float] = SPACING) -> Volume:
    voxels = np.full((1, *shape), -1000, np.int16)
    voxels[:, 2:-2, 8:-8, 8:-8] = 40
    return Volume(voxels, spacing, Orientation((0, 1, 2), (False, False, False)))


def drawn(
    mask: NDArray[np.uint8], names: tuple[str, ...] = LABELS, spacing: tuple[float, float, float] = SPACING
) -> np.ndarray:
    return np.asarray(draw_case(volume(mask.shape, spacing), (-160, 240), mask, names, {}, "a case"))


def panel(pixels: NDArray[Any], row: str, column: int) -> NDArray[Any]:
    """The panel of a row of `ROWS`, without its frame."""
    number = ROWS.index(row)
    top = TITLE_PX * (2 if number else 1) + number * (PANEL_PX + GAP_PX)
    left = GAP_PX + column * (PANEL_PX + GAP_PX)
    return pixels[top : top + PANEL_PX, left : left + PANEL_PX]


def coloured(pixels: NDArray[Any], value: int, off: int = 150) -> NDArray[np.bool_]:
    return np.abs(pixels.astype(int) - COLOURS[value - 1]).sum(axis=-1) < off


def size(pixels: NDArray[Any], value: int) -> tuple[int, int]:
    """Width and height of a structure's outline."""
    rows, columns = np.nonzero(coloured(pixels, value))
    return int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1


def test_a_column_a_gland_the_patients_right_one_first() -> None:
    mask = np.zeros((40, 64, 64), np.uint8)
    mask[10:20, 20:30, 40:50] = 1
    mask[12:22, 20:30, 12:20] = 2
    pixels = drawn(mask)
    for row in ROWS[1:]:
        assert coloured(panel(pixels, row, 0), 2).sum() > 100
        assert coloured(panel(pixels, row, 1), 1).sum() > 100
    for column in (0, 1):
        whole = panel(pixels, "axial", column)
        left, right = (np.nonzero(coloured(whole, value))[1] for value in (1, 2))
        assert right.max() < PANEL_PX / 2 < left.min(), "both are in both views of the first row, right on the left"


def test_first_middle_and_last_slice_of_a_gland() -> None:
    """A gland that is narrow at its lower end and wide at its upper one; half of its voxels lie above the middle."""
    mask = np.zeros((40, 64, 64), np.uint8)
    for at, width in zip(range(10, 21), range(4, 26, 2), strict=True):
        mask[at, 20:24, 30 : 30 + width] = 1
    pixels = drawn(mask)
    millimetres = PANEL_PX / (2 * round(FIELD_MM / 2 / 2) + 1) / 2
    widths = [size(panel(pixels, row, 0), 1)[0] / millimetres for row in ROWS[1:4]]
    assert widths == [pytest.approx(mm, abs=3) for mm in (2 * 4, 2 * 18, 2 * 24)]


@pytest.mark.parametrize("row", ["coronal", "sagittal"])
def test_those_slices_are_marked_where_the_gland_ends(row: str) -> None:
    mask = np.zeros((40, 64, 64), np.uint8)
    mask[10:20, 20:30, 24:40] = 1
    shown = panel(drawn(mask), row, 0)
    marks = np.flatnonzero((np.abs(shown[:, 1:TICK_PX].astype(int) - INK).sum(axis=-1) < 30).all(axis=1))
    rows = np.flatnonzero(coloured(shown, 1).any(axis=1))
    slice_px = PANEL_PX / (2 * round(FIELD_MM / 2 / 3) + 1)
    assert len(marks) == 3
    assert marks[0] - rows[0] == pytest.approx(slice_px / 2, abs=2), "in the middle of the uppermost slice"
    assert rows[-1] - marks[-1] == pytest.approx(slice_px / 2, abs=2)


def test_a_large_and_a_small_gland_are_both_whole_in_the_first_row() -> None:
    mask = np.zeros((60, 90, 130), np.uint8)
    mask[10:50, 20:70, 90:120] = 1  # 100 x 60 mm, 180 to 240 mm from the left edge
    mask[20:24, 40:50, 6:16] = 2  # 20 x 20 mm, 12 to 32 mm
    whole = panel(drawn(mask), "axial", 0)
    millimetres = PANEL_PX / (228 + 16)  # the glands reach over 228 mm
    assert size(whole, 1) == pytest.approx((60 * millimetres, 100 * millimetres), abs=6)
    assert size(whole, 2) == pytest.approx((20 * millimetres, 20 * millimetres), abs=6)


def test_a_long_gland_is_whole() -> None:
    mask = np.zeros((60, 90, 130), np.uint8)
    mask[5:55, 20:80, 90:100] = 1  # 150 mm high, 120 mm deep
    mask[20:24, 40:50, 6:16] = 2
    field_mm = 150 + 16
    width, height = size(panel(drawn(mask), "sagittal", 1), 1)
    assert width == pytest.approx(120 / field_mm * PANEL_PX, abs=8)
    assert height == pytest.approx(150 / field_mm * PANEL_PX, abs=8)


@pytest.mark.parametrize("spacing", [SPACING, (0.5, 4.4, 4.4), (8.0, 0.4, 0.4)])
def test_at_the_scans_corner_and_none_at_all(spacing: tuple[float, float, float]) -> None:
    mask = np.zeros((40, 64, 64), np.uint8)
    assert len(drawn(mask, spacing=spacing)) < 2 * PANEL_PX, "the scan without columns"
    mask[0, 0, 0] = mask[-1, -1, -1] = 1
    assert len(drawn(mask, spacing=spacing)) > 6 * PANEL_PX


def test_names_of_both_sides_or_none_stand_between() -> None:
    mask = np.zeros((40, 64, 64), np.uint8)
    mask[10:20, 20:30, 12:22], mask[10:20, 20:30, 26:36], mask[10:20, 20:30, 42:52] = 3, 1, 2
    pixels = drawn(mask, ("background", "left_and_right", "left", "right"))
    for value, column in ((3, 0), (1, 1), (2, 2)):
        outlines = [coloured(panel(pixels, "sagittal", at), value, 90).sum() > 50 for at in range(3)]
        assert outlines == [at == column for at in range(3)]


def test_letters_can_be_read_on_bone() -> None:
    """Around the first row's letters is a dark ground, however bright the scan is."""
    bright = Volume(np.full((1, 40, 64, 64), 3000, np.int16), SPACING, Orientation((0, 1, 2), (False, False, False)))
    mask = np.zeros((40, 64, 64), np.uint8)
    mask[10:20, 20:30, 24:40] = 1
    pixels = np.asarray(draw_case(bright, (-160, 240), mask, LABELS, {}, ""))
    corner = panel(pixels, "first", 0)[4:19, 4:30]
    dark = (corner.max(axis=-1) < 60).mean()
    assert 0.3 < dark < 0.95, "light letters on a dark ground"


def test_both_files_are_of_the_same_picture(tmp_path: Path) -> None:
    mask = np.zeros((40, 64, 64), np.uint8)
    mask[10:20, 20:30, 40:50] = 1
    picture = draw_case(volume(), (-160, 240), mask, LABELS, {"parotid_left": 12.0}, "a")
    for name in ("a.png", "a.webp"):
        save_picture(picture, tmp_path / name)
    png, webp = (np.asarray(Image.open(tmp_path / name).convert("RGB")).astype(int) for name in ("a.png", "a.webp"))
    assert (png == np.asarray(picture)).all()
    assert png.shape == webp.shape
    assert np.abs(png - webp).mean() < 6
    assert (tmp_path / "a.webp").stat().st_size < 90_000


def test_a_reference_is_outlined_in_white_from_its_own_end_to_end() -> None:
    mask, reference = np.zeros((2, 40, 64, 64), np.uint8)
    mask[10:20, 20:30, 24:40] = 1
    reference[4:20, 20:30, 24:34] = 1
    with_it = np.asarray(draw_case(volume(), (-160, 240), mask, LABELS, {}, "a case", reference))
    first, middle, alone = panel(with_it, "first", 0), panel(with_it, "middle", 0), panel(drawn(mask), "first", 0)
    inside = (slice(40, 200), slice(40, 200))  # without letters and scale
    white = (np.abs(first[inside].astype(int) - INK).sum(axis=-1) < 30).sum()
    assert white > 60
    assert not coloured(first, 1).any(), "the mask begins higher"
    assert coloured(alone, 1).any()
    assert coloured(middle, 1).any()
    assert (np.abs(middle[inside].astype(int) - INK).sum(axis=-1) < 30).sum() > 60
