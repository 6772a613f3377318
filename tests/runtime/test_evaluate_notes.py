"""`parotid-seg evaluate` says what was found: exchanged sides, a file that is no mask, masks without a partner."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.command_line import Run

AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])


def save(path: Path, labels: NDArray[Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(labels, AFFINE), path)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    reference = np.zeros((10, 10, 10), np.uint8)
    reference[2:4, 2:4, 2:6], reference[6:8, 2:4, 2:6] = 1, 2
    for place in ("references", "predictions"):
        for case in "ab":
            save(tmp_path / place / f"{case}.nii.gz", reference)
    return tmp_path


def test_a_single_file_is_named_by_what_it_is(command: Run, folders: Path) -> None:
    text = folders / "notes.txt"
    text.write_text("no mask")
    done = command("evaluate", text, folders / "references")
    assert done.stderr == (
        f"parotid-seg: {text}: found a file that is no mask by its name, expected one ending in .nii or .nii.gz\n"
    )
    mask = folders / "predictions" / "a.nii.gz"
    done = command("evaluate", mask, folders / "references")
    assert f"{mask}: no prediction for b of {folders / 'references'}; found masks of a\n" in done.stderr


@pytest.mark.parametrize("cases", ["a", "ab"])
def test_exchanged_sides_are_named(command: Run, folders: Path, cases: str) -> None:
    for case in cases:
        reference = np.asarray(nibabel.load(folders / "references" / f"{case}.nii.gz").dataobj)
        save(folders / "predictions" / f"{case}.nii.gz", np.array([0, 2, 1], np.uint8)[reference])
    done = command("evaluate", folders / "predictions", folders / "references")
    names = {"a": "1 case (a)", "ab": "2 cases (a, b)"}[cases]
    told = "left and right seem exchanged between predictions and references, DSC 0.00, 1.00 when exchanged: "
    assert told + names in " ".join(done.stdout.split())
    assert "exchanged" not in command("evaluate", folders / "references", folders / "references").stdout
