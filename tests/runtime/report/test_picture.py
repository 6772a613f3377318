"""The overlay picture and the report's views show every structure whole, however unequal and far apart they are."""

import numpy as np
import pytest
from PIL import Image

from parotid_seg.runtime.report.closeups import FIELD_MM, GAP_PX, PANEL_PX, TITLE_PX, draw_views
from parotid_seg.runtime.report.overlay import COLOURS, PX_PER_MM, draw_overlay
from parotid_seg.scan.volume import Orientation, Volume

LABELS = ("background", "parotid_left", "parotid_right")
SPACING = (3.0, 2.0, 2.0)


def volume(shape):
    return Volume(np.full((1, *shape), 40, np.int16), SPACING, Orientation((0, 1, 2), (False, False, False)))


def boxes(pixels, colour, off=90):
    """Width and height of what has a colour."""
    rows, columns = np.nonzero(np.abs(pixels.astype(int) - colour).sum(axis=-1) < off)
    return int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1


def overlay(mask, path):
    draw_overlay(volume(mask.shape), (-160, 240), mask, {"parotid_left": 30.0, "parotid_right": 1.0}, "", path)
    return np.asarray(Image.open(path).convert("RGB"))[40:]


def test_a_large_and_a_small_gland_are_both_whole(tmp_path):
    mask = np.zeros((60, 90, 130), np.uint8)
    mask[10:50, 20:70, 90:120] = 1  # 100 x 60 mm, 180 to 240 mm from the left edge
    mask[20:24, 40:50, 6:16] = 2  # 20 x 20 mm, 12 to 32 mm
    pixels = overlay(mask, tmp_path / "a.png")
    axial = pixels[:, : round((228 + 30) * PX_PER_MM) + 10]  # the glands reach over 228 mm
    assert boxes(axial, COLOURS[1]) == (pytest.approx(40, abs=4), pytest.approx(40, abs=4))
    assert boxes(axial, COLOURS[0]) == (pytest.approx(120, abs=4), pytest.approx(200, abs=4))


def test_glands_that_share_no_slice_have_one_each(tmp_path):
    mask = np.zeros((60, 90, 110), np.uint8)
    mask[5:15, 20:40, 70:90] = 1
    mask[40:50, 50:70, 10:30] = 2
    shared = np.zeros_like(mask)
    shared[5:15, 20:40, 70:90], shared[5:15, 20:40, 10:30] = 1, 2
    assert overlay(mask, tmp_path / "a.png").shape[1] > overlay(shared, tmp_path / "b.png").shape[1] + 200


def test_a_long_gland_is_whole_in_the_reports_views(tmp_path):
    mask = np.zeros((60, 90, 130), np.uint8)
    mask[5:55, 20:80, 90:100] = 1  # 150 mm high, 120 mm deep
    mask[20:24, 40:50, 6:16] = 2
    draw_views(volume(mask.shape), (-160, 240), mask, LABELS, tmp_path / "a.webp")
    pixels = np.asarray(Image.open(tmp_path / "a.webp").convert("RGB"))
    left = pixels[:, GAP_PX + PANEL_PX + GAP_PX :]
    sagittal = left[TITLE_PX + 2 * (PANEL_PX + GAP_PX) : TITLE_PX + 3 * (PANEL_PX + GAP_PX)]
    field_mm = 150 + 16
    assert field_mm > FIELD_MM
    width, height = boxes(sagittal, COLOURS[0], 150)
    assert width == pytest.approx(120 / field_mm * PANEL_PX, abs=8)
    assert height == pytest.approx(150 / field_mm * PANEL_PX, abs=8)
