"""What several tests need: the example scan, scans made from it, and the way to run the command."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest

from parotid_seg.models import example_folder

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory) -> Iterator[None]:
    """Choices of engines are kept for the time of the tests, and not among the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def example() -> nibabel.Nifti1Image:
    return nibabel.load(next((example_folder() / "imagesTr").glob("*.nii.gz")))


@pytest.fixture(scope="session")
def example_labels() -> nibabel.Nifti1Image:
    return nibabel.load(next((example_folder() / "labelsTr").glob("*.nii.gz")))


@pytest.fixture(scope="session")
def head(example, example_labels) -> nibabel.Nifti1Image:
    """The example scan's slices around the glands, to be quick."""
    shown = np.flatnonzero(np.asarray(example_labels.dataobj).any(axis=(0, 1)))
    return example.slicer[:, :, max(0, shown[0] - 2) : shown[-1] + 3]


@pytest.fixture
def scans(tmp_path, head) -> Path:
    """A folder with one good scan."""
    folder = tmp_path / "scans"
    folder.mkdir()
    nibabel.save(head, folder / "good_0000.nii.gz")
    return folder


@pytest.fixture(scope="session")
def command() -> Run:
    def run(*arguments: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "parotid_seg", *map(str, arguments)]
        return subprocess.run(words, capture_output=True, text=True, timeout=timeout, check=False)

    return run
