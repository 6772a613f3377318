"""The example of docs/onnx.md: the model file on plain onnxruntime gives the masks that `infer` gives."""

import runpy
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from parotid_seg.models import DEFAULT_MODEL
from tests.command_line import Run

pytestmark = pytest.mark.slow


EXAMPLE = Path(__file__).parents[2] / "docs" / "onnx" / "segment.py"


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_the_example_gives_the_mask_of_infer(
    head: nibabel.Nifti1Image,
    order: tuple[int, int, int],
    command: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    axes = np.array([[axis, 1 - 2 * (axis % 2)] for axis in order])
    scan, mask, out = tmp_path / "scan.nii.gz", tmp_path / "mask.nii.gz", tmp_path / "out"
    nibabel.save(head.as_reoriented(axes), scan)
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), str(DEFAULT_MODEL), str(scan), str(mask)])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    done = command("infer", scan, "--out", out, "--search", "full", "--backend", "onnxruntime", "--no-report")
    assert done.returncode == 0, done.stderr
    ours, plain = nibabel.load(out / "scan.nii.gz"), nibabel.load(mask)
    np.testing.assert_array_equal(np.asarray(plain.dataobj), np.asarray(ours.dataobj))
    np.testing.assert_allclose(plain.affine, ours.affine, atol=1e-4)
    assert set(np.unique(plain.dataobj)) == {0, 1, 2}


def test_the_example_is_as_short_as_the_page_says() -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 60
