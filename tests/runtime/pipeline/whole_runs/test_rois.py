"""`infer --only`, `--roi-name` and `--roi-colour`."""

from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pydicom
import pytest

from parotid_seg.errors import OptionError
from parotid_seg.runtime.formats.slicer import is_own_segmentation, write_seg_nrrd
from parotid_seg.runtime.pipeline.infer_options import InferOptions
from parotid_seg.runtime.pipeline.ownership import LABELS
from parotid_seg.runtime.pipeline.run import Outcome, infer_at
from parotid_seg.runtime.report.results import read_results
from parotid_seg.scan.nifti import read_nifti
from parotid_seg.version import VERSION
from tests.command_line import Run
from tests.dicom_series import lay, write_series
from tests.runtime.report.drawn import Here, drawn_voxels

pytestmark = pytest.mark.slow


def run(scans: Path, out: Path, **options: Any) -> Outcome:
    outcomes: list[Outcome] = []
    infer_at(Here(), [scans], out, InferOptions(**options), progress=outcomes.append)
    (outcome,) = outcomes
    return outcome


@pytest.fixture(scope="module")
def ct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scans") / "ct"
    write_series(folder, drawn_voxels(), lay((5.0, 5.0, 5.0)))
    return folder


def test_one_structure_with_a_name_and_a_colour_of_its_own(ct: Path, tmp_path: Path) -> None:
    formats = ("nifti", "nrrd", "rtstruct", "seg")
    every = run(ct, tmp_path / "every", formats=formats)
    chosen = run(
        ct,
        tmp_path / "chosen",
        formats=formats,
        only=("parotid_right",),
        roi_names=("parotid_right = PG re",),
        roi_colours=("parotid_right=#0102fF",),
    )
    assert set(every.entry.volumes_ml) == {"parotid_left", "parotid_right"}
    assert chosen.entry.volumes_ml == {"parotid_right": every.entry.volumes_ml["parotid_right"]}
    masks = [np.asarray(nibabel.load(tmp_path / name / "ct.nii.gz").dataobj) for name in ("every", "chosen")]
    assert np.array_equal(masks[1], np.where(masks[0] == 2, 2, 0)), "values are those of the model"
    (roi,) = pydicom.dcmread(tmp_path / "chosen" / "ct.rtstruct.dcm").StructureSetROISequence
    (segment,) = pydicom.dcmread(tmp_path / "chosen" / "ct.seg.dcm").SegmentSequence
    header = nrrd.read_header(str(tmp_path / "chosen" / "ct.seg.nrrd"))
    assert {roi.ROIName, segment.SegmentLabel, header["Segment0_Name"]} == {"PG re"}
    assert roi.ROIGenerationDescription == f"parotid-seg {VERSION}, model {Here.model_sha256[:12]}"
    assert (header["Segment0_LabelValue"], header["Segment0_Color"]) == ("2", "0.0039 0.0078 1.0000")
    assert "Segment1_Name" not in header
    assert (tmp_path / "chosen" / LABELS).read_text().splitlines()[1:] == ['2 1 2 255 1 1 1 "PG re"']
    (case,) = read_results(tmp_path / "chosen" / "results.json").cases
    assert [each.name for each in case.structures] == ["parotid_right"]


def test_a_case_is_done_again_for_another_choice_only(ct: Path, tmp_path: Path) -> None:
    assert run(ct, tmp_path).status == "done"
    assert run(ct, tmp_path).status == "skipped"
    for options in (
        {"only": ("parotid_left",)},
        {"roi_names": ("parotid_left=a",)},
        {"roi_colours": ("parotid_left=#000000",)},
    ):
        assert [run(ct, tmp_path, **options).status for _ in range(2)] == ["done", "skipped"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"roi_names": ("parotid_left",)}, "--roi-name: found 'parotid_left', expected a label, = and a name of 1 to"),
        ({"roi_names": ("parotid_left=",)}, "--roi-name: found 'parotid_left=', expected a label, = and a name of 1"),
        ({"roi_names": ("a=" + 65 * "b",)}, "--roi-name: found 'a=bbb"),
        ({"roi_names": ("a=b\\c",)}, "--roi-name: found 'a=b"),
        ({"roi_names": ("=b",)}, "--roi-name: found '=b', expected a label"),
        ({"roi_names": ("a=b", "a=c")}, "--roi-name: found a twice, expected once"),
        ({"roi_colours": ("a=red",)}, "--roi-colour: found 'a=red', expected a label, = and a colour as #RRGGBB"),
        ({"roi_colours": ("a=#12345",)}, "--roi-colour: found 'a=#12345'"),
    ],
)
def test_a_choice_that_cannot_be_read(options: dict[str, Any], text: str) -> None:
    with pytest.raises(OptionError) as caught:
        InferOptions(**options)
    assert str(caught.value).startswith(text)


def test_a_label_that_the_model_has_not_is_one_line(command: Run, scans: Path, tmp_path: Path) -> None:
    done = command("infer", scans, "--out", tmp_path / "out", "--only", "parotid")
    assert done.returncode == 2
    assert done.stderr.strip().endswith("--only: found 'parotid', expected one of: parotid_left, parotid_right")
    assert not (tmp_path / "out").exists()


def test_names_beyond_ascii_are_in_every_format(tmp_path: Path) -> None:
    """pynrrd alone would write ASCII, and raise for others."""
    name = "Glande gauche é 腺"
    written = tmp_path / "a.seg.nrrd"
    mask = np.zeros((4, 5, 6), np.uint8)
    mask[1:3, 1:3, 1:3] = 1
    scan = nibabel.Nifti1Image(np.arange(120, dtype=np.int16).reshape(6, 5, 4), np.diag([-5.0, -5.0, 6.0, 1.0]))
    nibabel.save(scan, tmp_path / "a.nii.gz")
    write_seg_nrrd(mask, read_nifti(tmp_path / "a.nii.gz"), ("background", name), written)
    assert f"\nSegment0_Name:={name}\n".encode() in written.read_bytes().partition(b"\n\n")[0] + b"\n"
    voxels, header = nrrd.read(str(written))
    assert header["Segment0_LabelValue"] == "1"
    assert np.array_equal(voxels.transpose(2, 1, 0), mask)
    assert is_own_segmentation(written)
