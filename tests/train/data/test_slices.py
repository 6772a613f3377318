"""Training scans with slices that do not fit their neighbours are named."""

from pathlib import Path

import nibabel
import numpy as np

from parotid_seg.train.data.checks import warnings
from parotid_seg.train.data.data_set import open_data_set
from parotid_seg.train.data.patients import load_patients


def test_a_scan_with_slices_that_do_not_fit_is_named_and_trained_on(data: Path, tmp_path: Path) -> None:
    path = data / "imagesTr" / "p0_0000.nii.gz"
    image = nibabel.load(path)
    voxels = np.asarray(image.dataobj).copy()
    voxels[:, :, 12] = voxels[:, :, 11]
    nibabel.save(nibabel.Nifti1Image(voxels, image.affine), path)
    patients = load_patients(open_data_set(data), ["p0", "p1"], tmp_path / "cache", (-200.0, 300.0))
    in_hu, fitting = warnings(patients)
    assert "slices" not in in_hu
    assert fitting == (
        "warning: slices of 1 of 2 scans do not fit their neighbours: p0 (slices_repeated: 13 of 24, counted from the "
        "patient's feet); are they damaged, repeated, or in another order?"
    )
    assert len(warnings(patients[1:])) == 1
