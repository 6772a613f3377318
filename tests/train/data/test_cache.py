"""The cache of decoded scans."""

import os
import time
from pathlib import Path

import nibabel
import numpy as np

from parotid_seg.train.data.data_set import open_data_set
from parotid_seg.train.data.patients import load_patients

HU = (-200.0, 300.0)


def test_a_changed_scan_is_read_again(data: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    load_patients(open_data_set(data), ["p0"], cache, HU)
    path = data / "imagesTr" / "p0_0000.nii.gz"
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj) + np.int16(5), image.affine), path)
    again = load_patients(open_data_set(data), ["p0"], cache, HU)[0]
    assert again.volume.voxels.min() == -1019


def test_incomplete_entries_of_killed_processes_are_removed(data: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    killed, written_now = (cache / f"p0-0a.partial-{name}" for name in ("0123456789abcdef", "fedcba9876543210"))
    theirs = cache / "mine.partial-2020"
    for folder in (killed, written_now, theirs):
        folder.mkdir(parents=True)
        (folder / "voxels.npy").write_bytes(b"half")
    two_hours_ago = time.time() - 7200
    for folder in (killed, theirs):
        os.utime(folder, (two_hours_ago, two_hours_ago))
    load_patients(open_data_set(data), ["p0"], cache, HU)
    assert sorted(cache.glob("*.partial-*")) == [theirs, written_now]
