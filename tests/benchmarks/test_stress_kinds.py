"""Kinds of stress: each changes what it says and keeps scan and contours together."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "quality"))

from stress_kinds import KINDS, LEFT, NO_DATA, RIGHT, Scan


@pytest.fixture(scope="module")
def scan() -> Scan:
    """A head of tissue with fat and bone, 24 slices of 40 x 40 voxels of 3 x 5 x 5 mm."""
    z, y, x = np.indices((24, 40, 40))
    hu = np.where((y - 20) ** 2 + (x - 20) ** 2 < 15**2, 40 + (3 * z + 5 * y + 7 * x) % 30, NO_DATA)
    hu[:, 18:22, 18:22] = 700
    contours = np.zeros(hu.shape, np.uint8)
    contours[8:16, 18:26, 26:32], contours[8:16, 18:26, 8:14] = LEFT, RIGHT
    return Scan(hu.astype(np.int16), contours, (3.0, 5.0, 5.0), np.random.default_rng(0))


@pytest.mark.parametrize("kind", KINDS)
def test_each_strength_gives_another_scan_with_its_contours(kind: str, scan: Scan) -> None:
    assert len(KINDS[kind].words) == len(KINDS[kind].strengths) == 3
    seen = [scan]
    for strength in KINDS[kind].strengths:
        made = KINDS[kind].change(replace(scan, rng=np.random.default_rng(1)), strength)
        assert made.hu.shape == made.contours.shape
        assert [str(each.dtype) for each in (made.hu, made.contours)] == ["int16", "uint8"]
        assert made.hu.min() >= NO_DATA
        for other in seen:
            assert made.spacing_mm != other.spacing_mm or not np.array_equal(made.hu, other.hu)
        seen.append(made)


def made(kind: str, strength: int, scan: Scan) -> Scan:
    return KINDS[kind].change(replace(scan, rng=np.random.default_rng(1)), KINDS[kind].strengths[strength])


def test_contours_follow_the_contents(scan: Scan) -> None:
    marked = replace(scan, hu=np.where(scan.contours > 0, 200 * scan.contours.astype(int), scan.hu).astype(np.int16))
    for kind in ("wrong axes", "mirrored"):
        for strength in range(3):
            changed = made(kind, strength, marked)
            for label in (LEFT, RIGHT):
                assert set(changed.hu[changed.contours == label]) == {200 * label}
    thick = made("thick slices", 0, marked)
    assert thick.spacing_mm[0] == 6.0
    assert np.count_nonzero(thick.contours) == np.count_nonzero(marked.contours) / 2
    turned = made("turned", 1, marked)
    inside = turned.hu[turned.contours == LEFT]
    assert np.mean(abs(inside.astype(int) - 200) < 100) > 0.8


def test_what_is_cut_away_has_no_contours(scan: Scan) -> None:
    for kind, strength, left in (("gland removed", 1, 0.0), ("narrow view", 1, 0.6)):
        changed = made(kind, strength, scan)
        kept = np.count_nonzero(changed.contours == LEFT) / np.count_nonzero(scan.contours == LEFT)
        assert kept == pytest.approx(left, abs=0.15)
        assert np.array_equal(changed.contours == RIGHT, scan.contours == RIGHT)
    assert not made("head cut off", 2, scan).contours.any()


def test_bolus_lies_on_the_skin(scan: Scan) -> None:
    one, both = made("bolus", 1, scan), made("bolus", 2, scan)
    for changed in (one, both):
        new = (changed.hu > NO_DATA) & (scan.hu == NO_DATA)
        assert new[..., :20].any()
        assert new[..., 20:].any()
        assert np.array_equal(changed.hu[scan.hu > NO_DATA], scan.hu[scan.hu > NO_DATA])
    left = (made("bolus", 0, replace(scan, spacing_mm=(3.0, 3.0, 3.0))).hu > NO_DATA) & (scan.hu == NO_DATA)
    assert left[..., 20:].sum() > left[..., :20].sum()


def test_nothing_is_painted_beside_what_remains_of_a_table(scan: Scan) -> None:
    remnant = scan.hu.copy()
    remnant[:4] = NO_DATA
    remnant[:4, 35, 10:30] = -500
    table = made("surroundings", 0, replace(scan, hu=remnant)).hu
    assert np.array_equal(table[:4], remnant[:4])
    assert (table[4:] != remnant[4:]).any(axis=(1, 2)).all()
