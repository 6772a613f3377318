"""The report's pictures: every gland is met, sides are the viewer's, edges of the scan do no harm."""

import numpy as np
import pytest
from PIL import Image

from parotid_seg.runtime.report.closeups import PANEL_PX, draw_views
from parotid_seg.runtime.report.overlay import COLOURS
from parotid_seg.scan.volume import Orientation, Volume

LABELS = ("background", "parotid_left", "parotid_right")


def volume(shape=(40, 64, 64), spacing=(3.0, 2.0, 2.0)) -> Volume:
    voxels = np.full((1, *shape), -1000, np.int16)
    voxels[:, 2:-2, 8:-8, 8:-8] = 40
    return Volume(voxels, spacing, Orientation((0, 1, 2), (False, False, False)))


def coloured(pixels: np.ndarray, colour) -> np.ndarray:
    return np.abs(pixels.astype(int) - colour).sum(axis=-1) < 90


def test_a_column_a_gland_the_patients_right_one_first(tmp_path):
    mask = np.zeros((40, 64, 64), np.uint8)
    mask[10:20, 20:30, 40:50] = 1
    mask[12:22, 20:30, 12:20] = 2
    draw_views(volume(), (-160, 240), mask, LABELS, tmp_path / "a.webp")
    pixels = np.asarray(Image.open(tmp_path / "a.webp").convert("RGB"))
    left, right = (coloured(pixels, colour) for colour in COLOURS[:2])
    assert np.flatnonzero(right.any(axis=0)).min() < PANEL_PX / 2, "its title and outline are in the first column"
    half = pixels.shape[1] // 2
    assert left[30:, half:].sum() > left[30:, :half].sum() > 0
    assert (tmp_path / "a.webp").stat().st_size < 60_000


@pytest.mark.parametrize("spacing", [(3.0, 2.0, 2.0), (0.5, 4.4, 4.4), (8.0, 0.4, 0.4)])
def test_at_the_scans_corner_and_none_at_all(tmp_path, spacing):
    mask = np.zeros((40, 64, 64), np.uint8)
    draw_views(volume(spacing=spacing), (-160, 240), mask, LABELS, tmp_path / "none.webp")
    mask[0, 0, 0] = mask[-1, -1, -1] = 1
    draw_views(volume(spacing=spacing), (-160, 240), mask, LABELS, tmp_path / "corner.webp")
    assert Image.open(tmp_path / "corner.webp").size[1] > 3 * PANEL_PX


def test_names_of_both_sides_or_none_stand_between(tmp_path):
    mask = np.zeros((40, 64, 64), np.uint8)
    mask[10:20, 20:30, 12:22], mask[10:20, 20:30, 26:36], mask[10:20, 20:30, 42:52] = 3, 1, 2
    names = ("background", "left_and_right", "left", "right")
    draw_views(volume(), (-160, 240), mask, names, tmp_path / "a.webp")
    pixels = np.asarray(Image.open(tmp_path / "a.webp").convert("RGB"))
    sagittal = pixels[-PANEL_PX:, :732]
    for value, column in ((3, 0), (1, 1), (2, 2)):
        outlines = np.split(coloured(sagittal, COLOURS[value - 1]), 3, axis=1)
        assert [outline.sum() > 50 for outline in outlines] == [at == column for at in range(3)]
