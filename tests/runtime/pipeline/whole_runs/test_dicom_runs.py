"""DICOM series from end to end: masks are those of the same scan as NIfTI, in every format, and runs resume."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import highdicom
import nibabel
import nrrd
import numpy as np
import pydicom
import pytest
from nibabel.affines import apply_affine
from numpy.typing import NDArray

from parotid_seg.dicom.read.rt_read import read_rtstruct
from parotid_seg.dicom.read.series import Series
from parotid_seg.dicom.read.series_volume import find_series
from parotid_seg.errors import InputError
from parotid_seg.flags import Flag, FlagCode
from parotid_seg.runtime.engines.base import Backend
from parotid_seg.runtime.formats.mask_formats import FORMATS
from parotid_seg.runtime.pipeline.infer_options import InferOptions
from parotid_seg.runtime.pipeline.run import infer
from parotid_seg.runtime.report.results import read_results
from tests.command_line import Run
from tests.dicom_example import Ran, few_slices, resampled, run, slices_of_image, write_image
from tests.dicom_series import lay, write_series, write_twin
from tests.small_files import summary_rows

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]


def series_in(folder: Path) -> Series:
    (series,) = find_series(sorted(folder.iterdir())).series
    return series


def stored(path: Path) -> NDArray[Any]:
    """A mask as slices, rows and columns, if the scan was stored as a series."""
    return np.asarray(nibabel.load(path).dataobj).T


def are_one(path: Path, twin: Path) -> None:
    """Two masks label the same places in the patient, however they are stored."""
    ours, theirs = nibabel.load(path), nibabel.load(twin)
    labels, expected = np.asarray(ours.dataobj), np.asarray(theirs.dataobj)
    assert set(np.unique(labels)) == {0, 1, 2}
    places = np.argwhere(labels)
    there = apply_affine(np.linalg.inv(theirs.affine) @ ours.affine, places)
    assert np.abs(there - np.rint(there)).max() < 0.01, "voxels lie on voxels"
    np.testing.assert_array_equal(expected[tuple(np.rint(there).astype(int).T)], labels[tuple(places.T)])
    assert np.count_nonzero(expected) == len(places)


def times(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in out.iterdir() if path.name.startswith("ct.")}


@pytest.fixture(scope="module")
def small(head: nibabel.Nifti1Image) -> nibabel.Nifti1Image:
    return few_slices(head, 6)


@pytest.fixture(scope="module")
def everything(
    model: Backend, head: nibabel.Nifti1Image, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, Ran]:
    """The example's series in all formats: its folder, the results' and the run."""
    folder = tmp_path_factory.mktemp("everything")
    write_image(folder / "ct", head)
    return folder / "ct", folder / "out", run(model, folder / "ct", folder / "out", *FORMATS)


@pytest.fixture(scope="module")
def mask(everything: tuple[Path, Path, Ran]) -> NDArray[Any]:
    return stored(everything[1] / "ct.nii.gz")


def test_the_mask_is_that_of_the_same_scan_as_nifti(
    everything: tuple[Path, Path, Ran], mask: NDArray[Any], model: Backend, head: nibabel.Nifti1Image, tmp_path: Path
) -> None:
    _, out, ran = everything
    assert ran.statuses == {"ct": "done"}
    nibabel.save(head, tmp_path / "scan.nii.gz")
    twin = run(model, tmp_path / "scan.nii.gz", tmp_path / "out").outcomes["scan"].entry
    assert ran.outcomes["ct"].entry.volumes_ml == pytest.approx(twin.volumes_ml)
    are_one(out / "ct.nii.gz", tmp_path / "out" / "scan.nii.gz")


def test_the_structure_set_holds_the_mask(everything: tuple[Path, Path, Ran], mask: NDArray[Any]) -> None:
    folder, out, ran = everything
    rois = {roi.name: roi.drawn() for roi in read_rtstruct(out / "ct.rtstruct.dcm", series_in(folder))}
    assert list(rois) == ["Parotid_L", "Parotid_R"]
    entry, described = ran.outcomes["ct"].entry, pydicom.dcmread(out / "ct.rtstruct.dcm").StructureSetROISequence
    for name, item in zip(entry.volumes_ml, described, strict=True):
        expected, floor = entry.expected_dsc[name], entry.floor_dsc[name]
        words = f", not reviewed. Expected DSC {expected:.2f}, floor for 90% of structures {floor:.2f}"
        assert item.ROIDescription.endswith(words)
    for value, drawn in enumerate(rois.values(), start=1):
        np.testing.assert_array_equal(drawn.mask, mask == value)
        assert not drawn.flags


@pytest.mark.parametrize("kind", ["seg", "seg-labelmap"])
def test_the_segmentation_holds_the_mask(everything: tuple[Path, Path, Ran], mask: NDArray[Any], kind: str) -> None:
    folder, out, _ = everything
    found = highdicom.seg.segread(out / f"ct{FORMATS[kind].ending}")
    slices = [each.sop_instance_uid for each in series_in(folder).slices]
    pixels = found.get_pixels_by_source_instance(slices, combine_segments=True, assert_missing_frames_are_empty=True)
    np.testing.assert_array_equal(pixels, mask)


def test_the_nrrd_holds_the_mask_where_it_lies(everything: tuple[Path, Path, Ran], mask: NDArray[Any]) -> None:
    _, out, _ = everything
    voxels, header = nrrd.read(str(out / "ct.seg.nrrd"))
    np.testing.assert_array_equal(voxels.T, mask)
    assert (header["Segment0_Name"], header["Segment1_Name"]) == ("Parotid_L", "Parotid_R")
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ nibabel.load(out / "ct.nii.gz").affine
    np.testing.assert_allclose(header["space directions"].T, affine[:3, :3], atol=1e-4)
    np.testing.assert_allclose(header["space origin"], affine[:3, 3], atol=1e-4)


def test_runs_resume(model: Backend, small: nibabel.Nifti1Image, tmp_path: Path) -> None:
    files, out = write_image(tmp_path / "ct", small), tmp_path / "out"

    def again(*formats: str, **options: Any) -> dict[str, str]:
        return run(model, tmp_path / "ct", out, *formats, **options).statuses

    formats = ("nifti", "rtstruct")
    assert again(*formats) == {"ct": "done"}
    before = times(out)
    assert set(before) == {"ct.nii.gz", "ct.rtstruct.dcm"}
    assert again(*formats) == {"ct": "skipped"}
    assert times(out) == before
    (out / "ct.rtstruct.dcm").unlink()
    assert again(*formats) == {"ct": "done"}, "one of its files is gone"
    assert set(times(out)) == set(before)
    assert again("rtstruct", "seg") == {"ct": "done"}, "other formats"
    assert (out / "ct.seg.dcm").exists()
    changed = pydicom.dcmread(files[3])
    changed.SeriesDescription = "other"
    changed.save_as(files[3])
    assert again("rtstruct", "seg") == {"ct": "done"}, "another scan"
    assert again("rtstruct", "seg") == {"ct": "skipped"}


def test_append_adds_to_a_structure_set_of_the_scan_and_to_no_other(
    model: Backend, small: nibabel.Nifti1Image, everything: tuple[Path, Path, Ran], tmp_path: Path
) -> None:
    write_image(tmp_path / "ct", small, uids="another")
    first = run(model, tmp_path / "ct", tmp_path / "first", "rtstruct")
    assert first.statuses == {"ct": "done"}
    there = tmp_path / "first" / "ct.rtstruct.dcm"
    both = run(model, tmp_path / "ct", tmp_path / "both", "rtstruct", append=there, plain=False)
    assert both.statuses == {"ct": "done"}
    names = [each.ROIName for each in pydicom.dcmread(tmp_path / "both" / "ct.rtstruct.dcm").StructureSetROISequence]
    assert names == ["Parotid_L", "Parotid_R", "Parotid_L_1", "Parotid_R_1"]
    other = everything[1] / "ct.rtstruct.dcm"
    wrong = run(model, tmp_path / "ct", tmp_path / "wrong", "rtstruct", append=other)
    assert wrong.summary.exit_status == 1
    (reason,) = wrong.errors
    assert str(other) in reason
    assert "another study" in reason
    assert not list((tmp_path / "wrong").glob("ct*"))


def test_what_is_wrong_with_an_appended_structure_set_is_flagged_or_refused(
    model: Backend, small: nibabel.Nifti1Image, tmp_path: Path
) -> None:
    write_image(tmp_path / "ct", small, uids="another")
    run(model, tmp_path / "ct", tmp_path / "first", "rtstruct")
    there = tmp_path / "first" / "ct.rtstruct.dcm"
    dataset = pydicom.dcmread(there)
    for roi in dataset.StructureSetROISequence:
        del roi.ReferencedFrameOfReferenceUID
    dataset.save_as(there)
    both = run(model, tmp_path / "ct", tmp_path / "both", "rtstruct", append=there)
    assert Flag(FlagCode.APPENDED_WITHOUT_FRAME, value=2) in both.outcomes["ct"].entry.flags
    dataset.StructureSetROISequence[1].ROINumber = dataset.StructureSetROISequence[0].ROINumber
    dataset.save_as(there)
    twice = run(model, tmp_path / "ct", tmp_path / "twice", "rtstruct", append=there)
    (reason,) = twice.errors
    assert "found the ROINumber 1 2 times (Parotid_L, Parotid_R), expected once" in reason
    assert not list((tmp_path / "twice").glob("ct*"))


def with_a_gap(folder: Path, image: nibabel.Nifti1Image) -> None:
    paths = write_image(folder, image)
    paths[4].unlink()


@pytest.fixture(scope="module")
def mixed(
    command: Run,
    small: nibabel.Nifti1Image,
    everything: tuple[Path, Path, Ran],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Path, subprocess.CompletedProcess[str]]:
    """One folder with all sorts in it, by the command itself: the folder, the results' and what the command said."""
    folder = tmp_path_factory.mktemp("mixed")
    scans, out = folder / "scans", folder / "out"
    nibabel.save(small, scans.parent / "small.nii.gz")
    scans.mkdir()
    shutil.copy(scans.parent / "small.nii.gz", scans / "nifti_0000.nii.gz")
    for number, uids in ((3, "a"), (4, "b")):
        write_image(scans / "two", small, number=number, uids=uids, names=f"{uids}-")
    with_a_gap(scans / "broken", small)
    shutil.copy(everything[1] / "ct.rtstruct.dcm", scans / "two")
    shutil.copy(everything[1] / "ct.seg.dcm", scans)
    (scans / "two" / "notes.txt").write_text("hello")
    (scans / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (scans / "empty.dcm").touch()
    done = command("infer", scans, "--out", out, "--no-pictures", "--no-report", "--backend", "onnxruntime")
    return scans, out, done


def test_all_scans_of_a_folder_are_done_and_the_rest_is_told(
    mixed: tuple[Path, Path, subprocess.CompletedProcess[str]],
) -> None:
    scans, out, done = mixed
    assert sorted(path.name for path in out.glob("*.nii.gz")) == ["nifti.nii.gz", "two_3.nii.gz", "two_4.nii.gz"]
    told = [line for line in done.stdout.splitlines() if line.startswith("not used: ")]
    assert len(told) == 2, done.stdout
    assert any("RT Structure Set" in line and str(scans / "two" / "ct.rtstruct.dcm") in line for line in told)
    assert any("Segmentation" in line and str(scans / "ct.seg.dcm") in line for line in told)
    assert "notes.txt" not in done.stdout + done.stderr


def test_a_series_that_lacks_a_slice_fails_by_name_and_the_others_are_done(
    mixed: tuple[Path, Path, subprocess.CompletedProcess[str]],
) -> None:
    scans, _, done = mixed
    assert done.returncode == 3
    broken = [line for line in done.stderr.splitlines() if str(scans / "broken") in line]
    assert len(broken) == 1, done.stderr
    assert "CT series 3 (" in broken[0]
    assert "slice" in broken[0]
    assert "Traceback" not in done.stderr


def test_a_nifti_file_cannot_become_a_structure_set(model: Backend, small: nibabel.Nifti1Image, tmp_path: Path) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    nibabel.save(small, scans / "scan.nii.gz")
    write_image(scans / "series", small)
    ran = run(model, scans, out, "nifti", "rtstruct")
    assert ran.summary.exit_status == 3
    (reason,) = ran.errors
    assert reason.startswith(f"{scans / 'scan.nii.gz'}: a NIfTI file; --format rtstruct")
    assert not list(out.glob("scan*"))


def test_a_format_for_none_of_the_scans_leaves_results_as_they_are(
    model: Backend, small: nibabel.Nifti1Image, tmp_path: Path
) -> None:
    nibabel.save(small, tmp_path / "scan.nii.gz")
    run(model, tmp_path / "scan.nii.gz", tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"^--format rtstruct: .* found only NIfTI files, expected DICOM series$"):
        run(model, tmp_path / "scan.nii.gz", tmp_path / "out", "nifti", "rtstruct")
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


def test_a_done_case_whose_scan_is_refused_now_is_named_and_flagged(
    model: Backend, small: nibabel.Nifti1Image, tmp_path: Path
) -> None:
    """A slice is lost between two runs: the mask of the whole series must not look like one of the last run."""
    scans, out = tmp_path / "scans", tmp_path / "out"
    written = write_image(scans / "one", small)
    write_image(scans / "two", small, uids="2")
    run(model, scans, out, "rtstruct")
    assert "scan_not_found" not in (out / "results.json").read_text()
    shutil.rmtree(scans / "two")
    written[3].unlink()
    write_image(scans / "three", small, uids="3")
    again = run(model, scans, out, "rtstruct")
    lines = [line for line in again.lines if "not found among these scans" in line]
    assert [line.partition(";")[0] for line in lines] == ["1 case of earlier runs, not found among these scans: one"]
    cases = {case.case: case for case in read_results(out / "results.json").cases}
    assert [flag.code for flag in cases["one"].flags][-1] == "scan_not_found"
    assert "scan_not_found" not in {flag.code for name in ("two", "three") for flag in cases[name].flags}
    elsewhere = run(model, scans / "three", out, "rtstruct")
    assert not any("not found among" in line for line in elsewhere.lines)


TILT, TURN = np.deg2rad((15, 10))
LAID = {
    "tilted": {"spacing": (5, 4, 4), "step": (0.0, 5 * np.sin(TILT), 5 * np.cos(TILT))},
    "reversed": {"spacing": (5, 4, 4), "column": (0.0, -1.0, 0.0), "row": (1.0, 0.0, 0.0)},
    "oblique": {
        "spacing": (5, 4, 4),
        "row": (np.cos(TURN), np.sin(TURN), 0),
        "column": (-np.sin(TURN), np.cos(TURN), 0),
    },
    "anisotropic": {"spacing": (4, 5.5, 3.1)},
}
SLICES = (10, 72, 72)


@pytest.fixture(scope="module")
def laid(model: Backend, head: nibabel.Nifti1Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Series of slices that lie in all ways through the example's glands, and their NIfTI twins: masks of both."""
    folder = tmp_path_factory.mktemp("laid")
    middle = (slices_of_image(head)[1] @ [*((np.array(head.shape[::-1]) - 1) / 2), 1])[:3]
    (folder / "twins").mkdir()
    for name, ways in LAID.items():
        affine = lay(**ways, origin=(0, 0, 0))
        affine[:3, 3] = middle - affine[:3, :3] @ ((np.array(SLICES) - 1) / 2)
        voxels = resampled(head, affine, SLICES)
        write_series(folder / "series" / name, voxels, affine)
        write_twin(folder / "twins" / f"{name}.nii.gz", voxels, affine)
    run(model, folder / "series", folder / "out", "nifti", "rtstruct")
    run(model, folder / "twins", folder / "twins-out")
    return folder


@pytest.mark.parametrize("name", LAID)
def test_slices_that_lie_otherwise_give_the_mask_of_their_twin(laid: Path, name: str) -> None:
    are_one(laid / "out" / f"{name}.nii.gz", laid / "twins-out" / f"{name}.nii.gz")
    mask, series = stored(laid / "out" / f"{name}.nii.gz"), series_in(laid / "series" / name)
    for value, roi in enumerate(read_rtstruct(laid / "out" / f"{name}.rtstruct.dcm", series), start=1):
        np.testing.assert_array_equal(roi.drawn().mask, mask == value)


def test_left_stays_left(laid: Path) -> None:
    for name in LAID:
        image = nibabel.load(laid / "out" / f"{name}.nii.gz")
        left, right = (
            apply_affine(image.affine, np.argwhere(np.asarray(image.dataobj) == value)).mean(axis=0) for value in (1, 2)
        )
        assert left[0] < right[0], "x runs to the patient's right"


def test_what_is_no_scan_is_told_by_its_path_whatever_that_looks_like(
    model: Backend, small: nibabel.Nifti1Image, tmp_path: Path
) -> None:
    nibabel.save(small, tmp_path / "scan.nii.gz")
    empty, missing = tmp_path / "a: b: c", tmp_path / "d: e.dcm"
    empty.mkdir()
    ran = run(model, [tmp_path / "scan.nii.gz", empty, missing], tmp_path / "out")
    assert ran.summary.exit_status == 3
    assert {row["source"] for row in summary_rows(tmp_path / "out") if row["status"] == "failed"} == {
        str(empty),
        str(missing),
    }


def test_if_nothing_is_of_use_each_reason_is_a_line(model: Backend, small: nibabel.Nifti1Image, tmp_path: Path) -> None:
    for name in ("one", "two"):
        with_a_gap(tmp_path / "scans" / name, small)
    told: list[Any] = []
    with pytest.raises(InputError, match="nothing was segmented: none of 2"):
        infer([tmp_path / "scans"], tmp_path / "out", lambda: model, InferOptions(), progress=told.append)
    assert [outcome.number for outcome in told] == [1, 2]
    assert all("1 slice missing" in outcome.entry.reason for outcome in told), told
    assert not (tmp_path / "out").exists()


def test_files_of_others_stay(
    model: Backend, small: nibabel.Nifti1Image, everything: tuple[Path, Path, Ran], tmp_path: Path
) -> None:
    """A structure set that was there before, whatever the run before wrote; and one that is read is not written."""
    write_image(tmp_path / "ct", small)
    out = tmp_path / "out"
    assert run(model, tmp_path / "ct", out).statuses == {"ct": "done"}
    theirs, content = out / "ct.rtstruct.dcm", next((tmp_path / "ct").iterdir()).read_bytes()
    theirs.write_bytes(content)
    again = run(model, tmp_path / "ct", out, "rtstruct")
    assert "exists and was not written by parotid-seg" in again.errors[0]
    assert theirs.read_bytes() == content
    theirs.unlink()
    assert run(model, tmp_path / "ct", out, "rtstruct").statuses == {"ct": "done"}
    before = theirs.read_bytes()
    (reason,) = run(model, tmp_path / "ct", out, "rtstruct", append=theirs).errors
    assert f"ct.rtstruct.dcm would replace {theirs}, which is read" in reason
    assert "unexpected" not in reason
    assert theirs.read_bytes() == before
