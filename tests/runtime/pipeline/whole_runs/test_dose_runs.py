"""`infer --dose`: the mean dose of each structure, from the dose that is the scan's, or one line that says why not."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from parotid_seg.commands.terminal import outcome_text
from parotid_seg.errors import OptionError, ScanError
from parotid_seg.flags import FlagCode
from parotid_seg.runtime.pipeline.infer_options import InferOptions
from parotid_seg.runtime.pipeline.journal import Entry
from parotid_seg.runtime.pipeline.run import Outcome, Summary, infer_at
from parotid_seg.runtime.report.results import read_results
from tests.command_line import Run
from tests.dicom.read.dose_files import linear, ramp, set_to, write_rtdose
from tests.dicom_example import slices_of_image, write_image
from tests.dicom_series import lay, uid, write_series
from tests.runtime.report.drawn import AFFINE, Here, drawn_voxels, write
from tests.small_files import summary_rows, touch

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Invalid value for VR")]

LAID = lay((5.0, 5.0, 5.0))
GRID = lay((7.0, 6.0, 4.0), origin=(-110.0, -130.0, -60.0))
GRID_SHAPE = (22, 40, 62)
"""Around the whole scan, on other voxels."""
LEFT, RIGHT = (np.array([-100, -120, -50]) + 5 * (np.array([x, 18, 10]) + 2) for x in (30, 8))
"""Middles of the glands of `drawn_voxels` in LPS."""


@dataclass
class Ran:
    """How a run went: outcomes by case, and what was said."""

    summary: Summary
    outcomes: dict[str, Outcome]
    lines: list[str]

    @property
    def entries(self) -> dict[str, Entry]:
        return {case: each.entry for case, each in self.outcomes.items()}

    @property
    def statuses(self) -> dict[str, str]:
        return {case: each.status for case, each in self.outcomes.items()}


def run(scans: Path | list[Path], out: Path, dose: Path | None, **options: Any) -> Ran:
    outcomes: list[Outcome] = []
    asked = InferOptions(pictures=False, report=options.pop("report", False), dose=dose, **options)
    places = scans if isinstance(scans, list) else [scans]
    lines: list[str] = []
    summary = infer_at(Here(), places, out, asked, say=lines.append, progress=outcomes.append)
    return Ran(summary, {each.entry.case: each for each in outcomes}, lines)


@pytest.fixture
def ct(tmp_path: Path) -> Path:
    write_series(tmp_path / "ct", drawn_voxels(), LAID)
    return tmp_path / "ct"


def dose_at(path: Path, **options: Any) -> Path:
    return write_rtdose(path, ramp(GRID, GRID_SHAPE), GRID, **options)


def check_means(entry: Entry, places: tuple[Any, Any] = (LEFT, RIGHT)) -> None:
    """Raise AssertionError unless the glands have the dose of their middles, as a linear dose has."""
    means = [float(linear(place)) for place in places]
    assert list(entry.mean_gy.values()) == pytest.approx(means, abs=0.003)
    assert list(entry.mean_gy) == ["parotid_left", "parotid_right"]


def test_the_mean_dose_is_in_every_result(ct: Path, tmp_path: Path) -> None:
    ran = run(ct, tmp_path / "out", dose_at(tmp_path / "export" / "RD.1.dcm"), report=True)
    check_means(ran.entries["ct"])
    left, right = ran.entries["ct"].mean_gy.values()
    (row,) = summary_rows(tmp_path / "out")
    assert (row["left_mean_gy"], row["right_mean_gy"]) == (f"{left:.2f}", f"{right:.2f}")
    case = read_results(tmp_path / "out" / "results.json").cases[0]
    assert case.mean_gy == {"parotid_left": left, "parotid_right": right}
    assert case.dose
    assert case.dose.source == str(tmp_path / "export" / "RD.1.dcm")
    page = (tmp_path / "out" / "report.html").read_text()
    assert '<th scope="col" class="number">Mean dose, Gy</th>' in page
    doses = re.findall(r'scope="row">.*?<bdi>(.*?)</bdi>.*<td class="number">(.*?)</td><td', page)
    assert doses == [("right parotid", f"{right:.1f}"), ("left parotid", f"{left:.1f}")]
    assert "left parotid Gy</button>" in page
    assert "RD.1.dcm" in page
    assert "Mean doses are those of the planned dose" in page
    assert str(tmp_path / "export") not in page
    assert json.loads((tmp_path / "out" / "run.json").read_text())["options"]["dose"].endswith("RD.1.dcm")
    texts = [
        path.read_text() for path in (tmp_path / "out").iterdir() if path.suffix in (".csv", ".json", ".jsonl", ".html")
    ]
    assert len(texts) >= 5
    assert not any("Doe" in text or "4711" in text for text in texts), "the dose's patient is in no result"


def test_the_command_and_its_workers(command: Run, head: nibabel.Nifti1Image, tmp_path: Path) -> None:
    """On the example as a series, with a dose on its own voxels: the mean is that of the mask's voxels."""
    write_image(tmp_path / "ct", head)
    voxels, affine = slices_of_image(head)
    gray = np.random.default_rng(0).uniform(0, 60, voxels.shape)
    dose = write_rtdose(tmp_path / "RD.dcm", gray, affine)
    done = command("infer", tmp_path / "ct", "--out", tmp_path / "out", "--dose", dose, "--backend", "onnxruntime")
    assert done.returncode == 0, done.stderr
    images = nibabel.load(tmp_path / "out" / "ct.nii.gz"), nibabel.Nifti1Image(gray.T, head.affine)
    mask, planned = (np.asarray(nibabel.as_closest_canonical(image).dataobj) for image in images)
    case = read_results(tmp_path / "out" / "results.json").cases[0]
    for value, structure in enumerate(case.structures, start=1):
        assert structure.mean_gy == pytest.approx(planned[mask == value].mean(), abs=0.001)


def test_without_a_dose_nothing_is_said_of_it(ct: Path, tmp_path: Path) -> None:
    ran = run(ct, tmp_path / "out", None, report=True)
    assert ran.entries["ct"].mean_gy == {}
    assert "_gy" not in (tmp_path / "out" / "summary.csv").read_text()
    assert "Mean dose" not in (tmp_path / "out" / "report.html").read_text()


def test_an_rtdose_is_found_by_frame_of_reference_among_everything(ct: Path, tmp_path: Path) -> None:
    """In a folder with the scan, another patient's dose, parts of the dose, a copy of it, and a damaged file."""
    dose_at(ct / "plan.dcm")
    (ct / "copy of plan.dcm").write_bytes((ct / "plan.dcm").read_bytes())
    write_rtdose(ct / "beam.dcm", np.full(GRID_SHAPE, 5.0), GRID, change=set_to(DoseSummationType="BEAM"))
    write_rtdose(ct / "other.dcm", np.full(GRID_SHAPE, 5.0), GRID, series="somebody else")
    (ct / "cut.dcm").write_bytes((ct / "plan.dcm").read_bytes()[:500])
    dose_at(ct / "named.dcm", change=set_to(StudyInstanceUID="Doe^Jane"))
    ran = run(ct, tmp_path / "out", ct)
    check_means(ran.entries["ct"])
    assert [line for line in ran.lines if line.startswith("--dose: not used: ")] == [
        f"--dose: not used: {ct / 'named.dcm'}: no usable StudyInstanceUID, expected at most 64 digits and dots"
    ]


def test_of_two_in_the_frame_of_reference_it_is_that_of_the_study(ct: Path, tmp_path: Path) -> None:
    dose_at(tmp_path / "doses" / "a.dcm")
    dose_at(tmp_path / "doses" / "b.dcm", change=set_to(StudyInstanceUID=uid("another", "study")))
    check_means(run(ct, tmp_path / "out", tmp_path / "doses").entries["ct"])


def test_of_two_in_the_frame_of_reference_none_is_that_of_another_patient(ct: Path, tmp_path: Path) -> None:
    """The other patient's is in the scan's study; a dose without a PatientID is used."""
    dose_at(tmp_path / "doses" / "a.dcm", change=set_to(PatientID="", StudyInstanceUID=uid("another", "study")))
    write_rtdose(tmp_path / "doses" / "b.dcm", np.full(GRID_SHAPE, 5.0), GRID, change=set_to(PatientID="4712"))
    check_means(run(ct, tmp_path / "out", tmp_path / "doses").entries["ct"])


@pytest.mark.parametrize(
    ("doses", "words"),
    [
        ({"a": {"series": "somebody else"}}, "--dose: found no dose in the frame of reference of CT series 3"),
        (
            {"a": {}, "b": {}},
            "--dose: found 2 doses (a.dcm, b.dcm) in the frame of reference of CT series 3",
        ),
        (
            {name: {"bits": bits, "change": set_to(SOPInstanceUID="1.2")} for name, bits in (("a", 16), ("b", 32))},
            "found 2 doses",
        ),
        ({"a": {"change": set_to(DoseSummationType="BEAM")}}, "found DoseSummationType BEAM, expected PLAN"),
        ({"a": {"change": set_to(PatientID="4712")}}, "of another patient: the PatientIDs differ"),
        ({"a": {"change": set_to(DoseUnits="RELATIVE")}}, "found DoseUnits RELATIVE, expected GY"),
        ({"a": {"change": set_to(FrameOfReferenceUID="")}}, "--dose: found no dose in the frame of reference"),
        ({"a": {"change": set_to(PixelData=b"\0\0")}}, "cut off"),
    ],
)
def test_a_dose_that_is_not_to_be_had_costs_the_case_one_line(
    ct: Path, tmp_path: Path, doses: dict[str, dict[str, Any]], words: str
) -> None:
    for name, options in doses.items():
        dose_at(tmp_path / "doses" / f"{name}.dcm", **options)
    ran = run(ct, tmp_path / "out", tmp_path / "doses")
    assert ran.statuses == {"ct": "failed"}
    failure = ran.entries["ct"].failure
    assert words in failure
    assert str(tmp_path / "doses") in failure
    assert len(failure.splitlines()) == 1
    assert not (tmp_path / "out" / "ct.nii.gz").exists()


@pytest.mark.parametrize("length", [250, 400])
def test_a_damaged_file_that_may_be_the_dose_is_named(length: int, ct: Path, tmp_path: Path) -> None:
    dose_at(tmp_path / "doses" / "a.dcm", series="somebody else")
    content = dose_at(tmp_path / "doses" / "b.dcm").read_bytes()
    (tmp_path / "doses" / "b.dcm").write_bytes(content[:length])
    reason = run(ct, tmp_path / "out", tmp_path / "doses").entries["ct"].reason
    assert "expected one; b.dcm: no FrameOfReferenceUID" in reason


def test_a_folder_without_doses_and_one_that_is_not_there_stop_the_run(ct: Path, tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="--dose: found no dose, expected RTDOSE or NIfTI"):
        run(ct, tmp_path / "out", ct)
    with pytest.raises(OptionError, match="no such file or folder"):
        run(ct, tmp_path / "out", tmp_path / "nowhere")
    assert not (tmp_path / "out").exists()


def nifti_dose(path: Path, gray: np.ndarray | float = 20.0, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(exist_ok=True)
    values = np.broadcast_to(np.float32(gray), (44, 40, 24))
    image = nibabel.Nifti1Image(values, affine)
    image.set_sform(affine, 1)
    nibabel.save(image, path)
    return path


def test_nifti_doses_belong_to_cases_by_name(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / f"{name}_0000.nii.gz")
    nifti_dose(tmp_path / "doses" / "a.nii.gz", 20.0)
    nifti_dose(tmp_path / "doses" / "b.nii", np.arange(44)[:, None, None])
    scans = [tmp_path / "a_0000.nii.gz", tmp_path / "b_0000.nii.gz"]
    ran = run(scans, tmp_path / "out", tmp_path / "doses")
    assert ran.entries["a"].mean_gy == {"parotid_left": 20.0, "parotid_right": 20.0}
    assert ran.entries["b"].mean_gy == {"parotid_left": 32.0, "parotid_right": 10.0}


def test_a_case_without_a_dose_fails_and_the_others_stay(tmp_path: Path) -> None:
    """The same command without --dose does the rest, and keeps the doses that are known."""
    for name in ("a", "b"):
        write(tmp_path / f"{name}.nii.gz")
    scans = [tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"]
    nifti_dose(tmp_path / "doses" / "a.nii.gz")
    ran = run(scans, tmp_path / "out", tmp_path / "doses")
    assert ran.summary.exit_status == 3
    assert ran.statuses == {"a": "done", "b": "failed"}
    assert "--dose: found no dose named b" in ran.entries["b"].failure
    again = run(scans, tmp_path / "out", None)
    assert again.statuses == {"a": "skipped", "b": "done"}
    assert again.entries["a"].mean_gy == {"parotid_left": 20.0, "parotid_right": 20.0}


def test_another_dose_is_computed_and_the_same_one_is_not(tmp_path: Path) -> None:
    write(tmp_path / "a.nii.gz")
    dose = nifti_dose(tmp_path / "any name.nii.gz")
    first = run(tmp_path / "a.nii.gz", tmp_path / "out", None)
    runs = [run(tmp_path / "a.nii.gz", tmp_path / "out", dose) for _ in range(2)]
    again = "1 case that is done is made again, and replaced: they have no mean dose yet, which --dose asks for"
    assert [again in each.lines for each in runs] == [True, False]
    assert "left parotid 15.6 ml at 20.0 Gy" in outcome_text(runs[0].outcomes["a"])
    nifti_dose(dose, 30.0)
    runs.append(run(tmp_path / "a.nii.gz", tmp_path / "out", dose))
    assert [each.statuses["a"] for each in runs] == ["done", "skipped", "done"]
    assert [each.entries["a"].mean_gy["parotid_left"] for each in runs] == [20, 20, 30]
    assert {each.entries["a"].mask_sha256 for each in (first, *runs)} == {first.entries["a"].mask_sha256}


def test_a_dose_of_another_name_may_be_that_of_a_scan_that_is_refused(tmp_path: Path) -> None:
    touch(tmp_path / "scans" / "b.mha")
    write(tmp_path / "scans" / "a.nii.gz")
    ran = run(tmp_path / "scans", tmp_path / "out", nifti_dose(tmp_path / "any name.nii.gz"))
    assert "found no dose named a" in ran.entries["a"].failure


def test_mean_doses_of_an_earlier_run_are_named_as_such(tmp_path: Path) -> None:
    write(tmp_path / "a.nii.gz")
    dose = nifti_dose(tmp_path / "any name.nii.gz")
    assert not [line for line in run(tmp_path / "a.nii.gz", tmp_path / "out", dose).lines if "mean dose" in line]
    without = run(tmp_path / "a.nii.gz", tmp_path / "out", None)
    assert without.entries["a"].mean_gy["parotid_left"] == 20
    kept = "the mean doses of 1 case are of an earlier run with --dose"
    assert f"{kept}; give --dose to compute them again" in without.lines
    changed = f"{kept}, and the dose of a has changed since or is not there; give --dose to compute them again"
    nifti_dose(dose, 30.0)
    assert changed in run(tmp_path / "a.nii.gz", tmp_path / "out", None).lines
    dose.unlink()
    assert changed in run(tmp_path / "a.nii.gz", tmp_path / "out", None).lines


def test_an_rtdose_of_a_scan_without_a_frame_of_reference_is_flagged(tmp_path: Path) -> None:
    write(tmp_path / "a.nii.gz", affine=np.diag([-1.0, -1.0, 1.0, 1.0]) @ LAID[:, [2, 1, 0, 3]])
    ran = run(tmp_path / "a.nii.gz", tmp_path / "out", dose_at(tmp_path / "RD.dcm"))
    assert FlagCode.DOSE_FRAME_UNKNOWN in [flag.code for flag in ran.entries["a"].flags]
    check_means(ran.entries["a"])


def test_a_plan_s_dose_beside_those_of_its_beams_in_the_folder_of_a_case(tmp_path: Path) -> None:
    write(tmp_path / "a.nii.gz", affine=np.diag([-1.0, -1.0, 1.0, 1.0]) @ LAID[:, [2, 1, 0, 3]])
    dose_at(tmp_path / "doses" / "a" / "RD.1.dcm", change=set_to(DoseSummationType="BEAM"))
    dose_at(tmp_path / "doses" / "a" / "RD.2.dcm")
    entry = run(tmp_path / "a.nii.gz", tmp_path / "out", tmp_path / "doses").entries["a"]
    assert entry.dose == str(tmp_path / "doses" / "a" / "RD.2.dcm")
    check_means(entry)


def test_a_structure_beyond_the_grid_is_flagged_and_not_counted_as_0(ct: Path, tmp_path: Path) -> None:
    """Planes that end within the glands, and columns that leave out the right one."""
    grid = lay((5.0, 5.0, 5.0), origin=(-100.0 + 5 * 20, -120.0, -50.0))
    write_rtdose(tmp_path / "dose.dcm", np.full((13, 40, 24), 20.0), grid)
    entry = run(ct, tmp_path / "out", tmp_path / "dose.dcm").entries["ct"]
    assert entry.mean_gy == {"parotid_left": 20.0}
    flags = {flag.structure: flag.value for flag in entry.flags if flag.code is FlagCode.DOSE_PARTLY_OUTSIDE}
    assert flags == {"parotid_left": pytest.approx(2 / 5), "parotid_right": 1.0}
    assert read_results(tmp_path / "out" / "results.json").cases[0].mean_gy["parotid_right"] is None


@pytest.mark.parametrize(
    ("gray", "words"),
    [
        (2000.0, "found doses up to 2000, expected Gy, at most 500"),
        (np.where(np.arange(44) > 9, -20.0, 20.0)[:, None, None], "expected none below 0"),
        (np.where(np.arange(44) > 9, np.nan, 20.0)[:, None, None], "are NaN or infinite"),
        (np.arange(44)[:, None, None] // 10, "found 5 different values, all whole numbers, as of a label map"),
    ],
)
def test_a_nifti_file_that_is_no_dose_in_gy(gray: np.ndarray | float, words: str, tmp_path: Path) -> None:
    write(tmp_path / "a.nii.gz")
    ran = run(tmp_path / "a.nii.gz", tmp_path / "out", nifti_dose(tmp_path / "dose.nii.gz", gray))
    assert words in ran.entries["a"].failure
    assert len(ran.entries["a"].failure.splitlines()) == 1


def test_masks_are_no_doses(tmp_path: Path) -> None:
    write(tmp_path / "a.nii.gz")
    run(tmp_path / "a.nii.gz", tmp_path / "masks", None)
    ran = run(tmp_path / "a.nii.gz", tmp_path / "out", tmp_path / "masks")
    assert "a mask that parotid-seg wrote, expected a dose in Gy" in ran.entries["a"].failure


def test_a_nifti_dose_that_does_not_say_where_it_lies_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.nii.gz")
    image = nibabel.load(nifti_dose(tmp_path / "whole.nii"))
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nibabel.save(image, tmp_path / "dose.nii")
    ran = run(tmp_path / "a.nii.gz", tmp_path / "out", tmp_path / "dose.nii")
    assert "leaves in doubt where the dose lies" in ran.entries["a"].failure


def test_a_cluster_reads_no_doses(command: Run, tmp_path: Path) -> None:
    words = ("infer", tmp_path, "--out", tmp_path / "out", "--cluster", "local", "--dose", tmp_path)
    done = command(*words)
    assert done.returncode == 2
    assert "expected no --dose" in done.stderr
