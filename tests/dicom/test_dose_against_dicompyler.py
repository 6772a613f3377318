"""Mean doses and points of the dose-volume histogram, against those of dicompyler-core from RTDOSE and RTSTRUCT.

dicompyler-core is no dependency: where it is missing, the tests are skipped. It takes the dose at the points of the
dose grid within the contours, we take it at the voxels of the mask.
"""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

from parotid_seg.dicom.read.dose import read_dose
from parotid_seg.dicom.write.rtstruct import write_rtstruct
from parotid_seg.scan.dose_grid import structure_doses
from tests.dicom.for_writers import LABELS, MODEL, glands, make_series
from tests.dicom.read.dose_files import write_rtdose
from tests.dicom_series import lay

dvhcalc = pytest.importorskip("dicompylercore.dvhcalc", reason="needs dicompyler-core: pip install dicompyler-core")

SHAPE, CT = (30, 70, 90), lay((2.5, 1.0, 1.0))
GRID_SHAPE = (46, 82, 104)
TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def hills(grid: NDArray[np.float64]) -> NDArray[np.float64]:
    """A dose of up to 66 Gy that falls by about 3 Gy a mm, as beside a target (planes, rows, columns)."""
    k, j, i = np.indices(GRID_SHAPE)
    at = np.einsum("ab,bkji->akji", grid[:3], np.stack([k, j, i, np.ones_like(k)]))
    middle = CT[:3] @ np.array([15, 40, 48, 1])
    off = (at - middle[:, None, None, None]) / np.array([1.0, 1.3, 1.6])[:, None, None, None]
    return np.asarray(2 + 64 / (1 + np.exp((np.linalg.norm(off, axis=0) - 18) / 5)))


@pytest.mark.parametrize(
    ("origin", "mean_off", "point_off", "share_off"),
    [
        # Planes lie between the slices; in plane, points of the dose are the voxels, so that both take the same points.
        # Histograms have bins of 0.01 Gy.
        ((-105.0, -125.0, -53.7), 0.01, 0.07, 0.1),
        # Points are half a mm off, half a voxel of the scan.
        ((-105.3, -124.6, -53.7), 0.3, 0.5, 0.6),
    ],
    ids=["same points", "between the voxels"],
)
def test_mean_doses_and_points_of_the_histogram(
    origin: tuple[float, float, float],
    mean_off: float,
    point_off: float,
    share_off: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pydicom.dicomio.read_file", pydicom.dcmread, raising=False)  # its name before pydicom 3
    series, mask, grid = make_series(tmp_path / "ct", SHAPE, CT), glands(SHAPE), lay((2.0, 1.0, 1.0), origin=origin)
    write_rtstruct(series, mask, LABELS, tmp_path / "rt.dcm", model=MODEL)
    path = write_rtdose(tmp_path / "dose.dcm", hills(grid), grid)
    dose, affine = read_dose(path), TO_RAS @ CT
    ours = structure_doses(mask, affine, dose)
    for value in (1, 2):
        theirs = dvhcalc.get_dvh(str(tmp_path / "rt.dcm"), str(path), value)
        assert theirs.volume == pytest.approx((mask == value).sum() * 2.5 / 1000, rel=0.005)
        assert ours[value].mean_gy == pytest.approx(theirs.mean, abs=mean_off)
        gray, inside = dose.at(np.argwhere(mask == value) @ affine[:3, :3].T + affine[:3, 3])
        assert inside.all()
        points = theirs.relative_volume
        for percent in (2, 50, 95):
            found = float(points.statistic(f"D{percent}").value)
            assert np.percentile(gray, 100 - percent) == pytest.approx(found, abs=point_off)
        for gy in (20, 26):
            assert 100 * (gray >= gy).mean() == pytest.approx(points.statistic(f"V{gy}Gy").value, abs=share_off)
