"""The picture of a case: every structure from end to end, sides are the viewer's, edges of the scan do no harm."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from parotid_seg.runtime.report.overlay import FIELD_MM, INK, PAPER, TICK_PX, draw_case, save_picture
from parotid_seg.runtime.report.sheet import (
    COLUMNS,
    OVERVIEW,
    PANEL_PX,
    SLICES,
    TITLE_PX,
    corner,
    rows_of,
    sheet_size,
    webp_size,
)
from parotid_seg.scan.codes import COLOURS, Rois
from parotid_seg.scan.volume import Orientation, Volume

LABELS = ("background", "parotid_left", "parotid_right")
SPACING = (3.0, 2.0, 2.0)
CORONAL, SAGITTAL = SLICES, SLICES + 1
"""Columns of a structure's views across its slices; in the first row, projections are in columns 0 and 1."""
AXIAL = 2
"""Column of all structures in an axial slice, in the first row."""


def volume(shape: tuple[int, int, int] = (40, 64, 64), spacing: tuple[float, float, float] = SPACING) -> Volume:
    voxels = np.full((1, *shape), -1000, np.int16)
    voxels[:, 2:-2, 8:-8, 8:-8] = 40
    return Volume(voxels, spacing, Orientation((0, 1, 2), (False, False, False)))


def drawn(
    mask: NDArray[np.uint8], names: tuple[str, ...] = LABELS, spacing: tuple[float, float, float] = SPACING
) -> np.ndarray:
    return np.asarray(draw_case(volume(mask.shape, spacing), (-160, 240), mask, names, {}, "a case"))


def panel(pixels: NDArray[Any], row: int, column: int) -> NDArray[Any]:
    """A view: those of the whole scan are in row 0, those of the nth structure in row n."""
    left, top = corner(row, column)
    return pixels[top : top + PANEL_PX, left : left + PANEL_PX]


def coloured(pixels: NDArray[Any], value: int, off: int = 150) -> NDArray[np.bool_]:
    return np.abs(pixels.astype(int) - COLOURS[value - 1]).sum(axis=-1) < off


def size(pixels: NDArray[Any], value: int) -> tuple[int, int]:
    """Width and height of a structure's outline."""
    rows, columns = np.nonzero(coloured(pixels, value))
    return int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1


def test_a_row_a_gland_the_patients_right_one_first() -> None:
    mask = np.zeros((40, 64, 64), np.uint8)
    mask[10:20, 20:30, 40:50] = 1
    mask[12:22, 20:30, 12:20] = 2
    pixels = drawn(mask)
    assert (pixels[:TITLE_PX].min(axis=-1) > 200).sum() > 40, "the title"
    assert (pixels[:TITLE_PX] == PAPER).all(axis=-1).mean() > 0.9, "alone"
    for column in range(COLUMNS):
        assert coloured(panel(pixels, 1, column), 2).sum() > 100
        assert coloured(panel(pixels, 2, column), 1).sum() > 100
    for column in range(OVERVIEW):
        whole = panel(pixels, 0, column)
        left, right = (np.nonzero(coloured(whole, value))[1] for value in (1, 2))
        if column == 1:  # from the side
            assert abs(np.median(left) - np.median(right)) < 6
        else:
            assert right.max() < PANEL_PX / 2 < left.min(), "right on the left"


@pytest.mark.parametrize("spacing", [(2.0, 4.688, 4.688), (5.0, 0.98, 0.98), (4.0, 3.0, 3.0), (7.0, 1.0, 1.0)])
def test_proportions_are_true(spacing: tuple[float, float, float]) -> None:
    """Each voxel takes the share of the panel that it has of the field, whatever its size."""
    slices, rows, columns = (round(42 / step) for step in spacing)
    shape = tuple(round(200 / step) for step in spacing)
    mask = np.zeros(shape, np.uint8)
    first = [count // 3 for count in shape]
    mask[first[0] : first[0] + slices, first[1] : first[1] + rows, first[2] : first[2] + columns] = 1
    pixels = drawn(mask, LABELS[:2], spacing)
    true = [count * step * PANEL_PX / FIELD_MM for count, step in zip((slices, rows, columns), spacing, strict=True)]
    for column, expected in ((1, true[:0:-1]), (CORONAL, (true[2], true[0])), (SAGITTAL, (true[1], true[0]))):
        assert size(panel(pixels, 1, column), 1) == pytest.approx(expected, abs=2)


def test_letters_that_the_font_lacks_are_replaced() -> None:
    mask = np.zeros((40, 64, 64), np.uint8)
    mask[10:20, 20:30, 40:50] = 1
    plain, accented, other = (
        np.asarray(draw_case(volume(), (-160, 240), mask, LABELS, {}, title))
        for title in ("Muller", "Müller", "M腮ller")
    )
    assert np.array_equal(plain, accented)
    assert not np.array_equal(plain, other)


def test_five_slices_from_the_lower_end_to_the_upper() -> None:
    """A gland that is wider in each slice; slice 15 has none of it."""
    mask = np.zeros((40, 64, 64), np.uint8)
    for at, width in zip(range(10, 21), range(4, 26, 2), strict=True):
        mask[at, 20:24, 26 : 26 + width] = 1
    mask[15] = 0
    pixels = drawn(mask)
    millimetres = PANEL_PX / (2 * round(FIELD_MM / 2 / 2) + 1) / 2
    widths = [size(panel(pixels, 1, column), 1)[0] / millimetres for column in range(SLICES)]
    slices = [10, 12, 14, 18, 20]
    assert widths == [pytest.approx(2 * (4 + 2 * (at - 10)), abs=3) for at in slices]


@pytest.mark.parametrize("slices", [1, 3])
def test_a_thin_gland_has_each_of_its_slices_once(slices: int) -> None:
    mask = np.zeros((40, 64, 64), np.uint8)
    mask[10 : 10 + slices, 20:30, 24:40] = 1
    pixels = drawn(mask)
    shown = [bool(coloured(panel(pixels, 1, column), 1).sum() > 50) for column in range(COLUMNS)]
    assert shown == [True] * (slices + 2) + [False] * (SLICES - slices)


@pytest.mark.parametrize("column", [CORONAL, SAGITTAL])
def test_those_slices_are_marked_where_the_gland_ends(column: int) -> None:
    mask = np.zeros((40, 64, 64), np.uint8)
    mask[10:19, 20:30, 24:40] = 1
    shown = panel(drawn(mask), 1, column)
    marks = np.flatnonzero((np.abs(shown[:, 1:TICK_PX].astype(int) - INK).sum(axis=-1) < 30).all(axis=1))
    rows = np.flatnonzero(coloured(shown, 1).any(axis=1))
    slice_px = PANEL_PX / (2 * round(FIELD_MM / 2 / 3) + 1)
    assert len(marks) == SLICES
    assert np.diff(marks) == pytest.approx(2 * slice_px, abs=1)
    assert marks[0] - rows[0] == pytest.approx(slice_px / 2, abs=2), "in the middle of the uppermost slice"
    assert rows[-1] - marks[-1] == pytest.approx(slice_px / 2, abs=2)


@pytest.mark.parametrize(("column", "axis"), [(0, 2), (1, 1)])
def test_a_box_in_the_projections_shows_where_on_the_scan_a_gland_lies(column: int, axis: int) -> None:
    """The scan is 200 x 128 x 96 mm; its height fills the view, which is in the middle."""
    mask = np.zeros((100, 64, 48), np.uint8)
    mask[10:30, 40:50, 30:40] = 1
    voxels = np.where(mask, 240, 0)[None].astype(np.int16)
    scan = Volume(voxels, (2.0, 2.0, 2.0), Orientation((0, 1, 2), (False, False, False)))
    pixels = panel(np.asarray(draw_case(scan, (-160, 240), mask, LABELS, {}, "")), 0, column)
    rows, columns = np.nonzero(coloured(pixels, 1, 60))
    across, begin, end = {2: (48, 30, 40), 1: (64, 40, 50)}[axis]
    scale = PANEL_PX / 100
    left = (PANEL_PX - across * scale) / 2
    assert (rows.min(), rows.max()) == (pytest.approx(70 * scale, abs=2), pytest.approx(90 * scale, abs=2))
    assert (columns.min(), columns.max()) == (
        pytest.approx(left + begin * scale, abs=2),
        pytest.approx(left + end * scale, abs=2),
    )
    within = pixels[rows.min() + 4 : rows.max() - 4, columns.min() + 4 : columns.max() - 4]
    beside = pixels[rows.min() + 4 : rows.max() - 4, columns.max() + 4 : columns.max() + 8]
    assert within.mean() > beside.mean() + 40, "the box is around what is bright"


def test_the_users_names_and_colours() -> None:
    mask = np.zeros((40, 64, 64), np.uint8)
    mask[10:20, 20:30, 40:50] = 1
    rois = Rois(names={"parotid_left": "GL"}, colours={"parotid_left": (255, 0, 0)})
    usual = drawn(mask)
    own = np.asarray(draw_case(volume(), (-160, 240), mask, LABELS, {}, "a case", rois=rois))
    headings = [pixels[corner(1, 0)[1] - TITLE_PX : corner(1, 0)[1]].astype(int) for pixels in (usual, own)]
    named = [np.flatnonzero((heading[..., 0] - heading[..., 2] > 100).any(axis=0)).max() for heading in headings]
    assert named[1] < named[0] - 40, "GL is shorter than left parotid"
    for column in (0, 1, 2, 3):
        assert not coloured(panel(own, 0, column), 1, 60).any()
        assert (np.abs(panel(own, 0, column).astype(int) - (255, 0, 0)).sum(axis=-1) < 60).sum() > 30
    assert (np.abs(panel(own, 1, 2).astype(int) - (255, 0, 0)).sum(axis=-1) < 60).sum() > 100


def test_a_large_and_a_small_gland_are_both_whole_in_the_first_row() -> None:
    mask = np.zeros((60, 90, 130), np.uint8)
    mask[10:50, 20:70, 90:120] = 1  # 100 x 60 mm, 180 to 240 mm from the left edge
    mask[20:24, 40:50, 6:16] = 2  # 20 x 20 mm, 12 to 32 mm
    whole = panel(drawn(mask), 0, AXIAL)
    millimetres = PANEL_PX / (228 + 16)  # the glands reach over 228 mm
    assert size(whole, 1) == pytest.approx((60 * millimetres, 100 * millimetres), abs=6)
    assert size(whole, 2) == pytest.approx((20 * millimetres, 20 * millimetres), abs=6)


def test_a_long_gland_is_whole() -> None:
    mask = np.zeros((60, 90, 130), np.uint8)
    mask[5:55, 20:80, 90:100] = 1  # 150 mm high, 120 mm deep
    mask[20:24, 40:50, 6:16] = 2
    field_mm = 150 + 16
    width, height = size(panel(drawn(mask), 2, SAGITTAL), 1)
    assert width == pytest.approx(120 / field_mm * PANEL_PX, abs=8)
    assert height == pytest.approx(150 / field_mm * PANEL_PX, abs=8)


@pytest.mark.parametrize("spacing", [SPACING, (0.5, 4.4, 4.4), (8.0, 0.4, 0.4)])
def test_at_the_scans_corner_and_none_at_all(spacing: tuple[float, float, float]) -> None:
    mask = np.zeros((40, 64, 64), np.uint8)
    assert drawn(mask, spacing=spacing).shape[1::-1] == sheet_size(0)
    mask[0, 0, 0] = mask[-1, -1, -1] = 1
    assert drawn(mask, spacing=spacing).shape[1::-1] == sheet_size(1)


def test_structures_of_one_organ_are_together() -> None:
    mask = np.zeros((40, 64, 64), np.uint8)
    for value in range(1, 5):
        mask[10:20, 20:30, 14 * value - 8 : 14 * value] = value
    pixels = drawn(mask, ("background", "cord", "parotid_left", "eye_left", "parotid_right"))
    shown = [int(np.argmax([coloured(panel(pixels, row, SAGITTAL), value, 90).sum() for value in range(1, 5)])) + 1
             for row in range(1, 5)]  # fmt: skip
    assert shown == [1, 4, 2, 3]


def test_the_page_knows_where_each_view_is() -> None:
    size = sheet_size(2)
    whole, *structures = rows_of(size, 2)
    assert [len(whole), *map(len, structures)] == [OVERVIEW, COLUMNS, COLUMNS]
    left, top = corner(2, 6)
    assert structures[1][6] == f"{left} {top} {PANEL_PX} {PANEL_PX}"
    assert (left + PANEL_PX < size[0], top + PANEL_PX < size[1]) == (True, True)
    assert rows_of(size, 1) == rows_of((492, 1512), 2) == rows_of((0, 0), 0) == []
    assert len(rows_of(sheet_size(6), 9)) == 7, "the first six of more"


def test_letters_can_be_read_on_bone() -> None:
    """Letters have a dark rim, however bright the scan is."""
    bright = Volume(np.full((1, 40, 64, 64), 3000, np.int16), SPACING, Orientation((0, 1, 2), (False, False, False)))
    mask = np.zeros((40, 64, 64), np.uint8)
    mask[10:20, 20:30, 24:40] = 1
    pixels = np.asarray(draw_case(bright, (-160, 240), mask, LABELS, {}, ""))
    name = panel(pixels, 1, 0)[4:19, 4:60]
    light, dark = ((name.min(axis=-1) > 200).mean(), (name.max(axis=-1) < 60).mean())
    assert dark > 0.3, "a dark rim"
    assert light > 0.1, "around light letters"


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
    assert webp_size((tmp_path / "a.webp").read_bytes()) == picture.size
    assert webp_size((tmp_path / "a.png").read_bytes()) == webp_size(b"RIFF") == (0, 0)


def test_a_reference_is_outlined_in_white_from_its_own_end_to_end() -> None:
    mask, reference = np.zeros((2, 40, 64, 64), np.uint8)
    mask[10:20, 20:30, 24:40] = 1
    reference[4:20, 20:30, 24:34] = 1
    with_it = np.asarray(draw_case(volume(), (-160, 240), mask, LABELS, {}, "a case", reference=reference))
    first, middle, alone = panel(with_it, 1, 0), panel(with_it, 1, 3), panel(drawn(mask), 1, 0)
    inside = (slice(30, 150), slice(30, 150))  # without letters and scale
    white = (np.abs(first[inside].astype(int) - INK).sum(axis=-1) < 30).sum()
    assert white > 60
    assert not coloured(first, 1).any(), "the mask begins higher"
    assert coloured(alone, 1).any()
    assert coloured(middle, 1).any()
    assert (np.abs(middle[inside].astype(int) - INK).sum(axis=-1) < 30).sum() > 60
