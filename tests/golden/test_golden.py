"""Masks change only together with `RULES_VERSION`, so that an upgrade does the cases again that it changes."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from parotid_seg.models import DEFAULT_MODEL, example_folder
from parotid_seg.runtime.engines.load import load_backend
from parotid_seg.runtime.segmentation.segment import segment_volume
from parotid_seg.runtime.segmentation.segmentation_options import RULES_VERSION
from parotid_seg.scan.nifti import read_nifti
from tests import golden

WHAT_TO_DO = (
    "reading, resampling or clean-up gives another result than before. If that is not meant, it is a bug. If it is, "
    "raise RULES_VERSION in parotid_seg/runtime/segmentation/segmentation_options.py, so that a rerun does the cases "
    "of older versions again, and add the new results with: python -m tests.golden"
)


def test_results_change_only_with_the_rules_version() -> None:
    known = json.loads(golden.GOLDEN.read_text())
    assert str(RULES_VERSION) in known, "RULES_VERSION is new: add its results with: python -m tests.golden"
    found = json.loads(json.dumps(golden.results()))
    for scan, expected in known[str(RULES_VERSION)].items():
        assert found[scan] == expected, f"{scan}: {WHAT_TO_DO}"
    assert found.keys() == known[str(RULES_VERSION)].keys()


def test_versions_are_added_and_never_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golden, "GOLDEN", tmp_path / "golden.json")
    monkeypatch.setattr(golden, "write_example_mask", lambda: None)
    monkeypatch.setattr(golden, "results", lambda: {"scan": "first"})
    golden.main()
    monkeypatch.setattr(golden, "results", lambda: {"scan": "second"})
    with pytest.raises(SystemExit, match="raise RULES_VERSION first"):
        golden.main()
    monkeypatch.setattr(golden, "RULES_VERSION", RULES_VERSION + 1)
    golden.main()
    assert json.loads((tmp_path / "golden.json").read_text()) == {
        str(RULES_VERSION): {"scan": "first"},
        str(RULES_VERSION + 1): {"scan": "second"},
    }


def test_the_packaged_model_marks_what_it_marked() -> None:
    """Up to the few voxels in which processors and onnxruntime's versions differ."""
    scan = read_nifti(next((example_folder() / "imagesTr").glob("*.nii.gz")))
    found = segment_volume(load_backend(DEFAULT_MODEL, "onnxruntime", "cpu"), scan.volume)
    labels = np.asarray(nibabel.load(golden.MASK).dataobj)
    expected = scan.volume.orientation.to_canonical(labels)
    for value, size in enumerate(found.volumes_ml.values(), start=1):
        one, other = found.mask == value, expected == value
        dsc = 2 * (one & other).sum() / (one.sum() + other.sum())
        assert dsc >= 0.999, WHAT_TO_DO
        assert size == pytest.approx(other.sum() * np.prod(scan.volume.spacing_mm) / 1000, rel=0.002), WHAT_TO_DO
