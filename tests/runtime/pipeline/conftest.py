"""Cases that the pipeline runs."""

import nibabel
import numpy as np
import pytest

from parotid_seg.runtime.pipeline.discovery import Case
from tests.scan.test_chunks import scan_at


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    folder = tmp_path_factory.mktemp("scans")
    made = []
    for number in range(5):
        voxels = scan_at(70 + number, 75).voxels[0]
        affine = np.diag([-2.4, -2.4, 3.0, 1.0])
        path = folder / f"s{number}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(voxels.transpose(2, 1, 0), affine), path)
        made.append(Case(f"s{number}", (path,)))
    return made
