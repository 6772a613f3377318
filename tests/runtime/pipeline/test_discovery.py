"""What lies where scans are looked for: all of it is used, refused or counted, and `inspect` says what `infer` does."""

import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.uid import RTStructureSetStorage

from parotid_seg.errors import InputError
from parotid_seg.runtime.engines.base import Backend
from parotid_seg.runtime.inspection import inspect
from parotid_seg.runtime.pipeline.discovery import find_scans, name_cases
from parotid_seg.runtime.pipeline.infer_options import InferOptions
from parotid_seg.runtime.pipeline.run import Summary, infer
from tests.dicom_example import few_slices, run, write_image
from tests.dicom_series import ct_voxels, lay, save, uid, write_series
from tests.small_files import touch

pytestmark = pytest.mark.slow


CT = ("CT",)


def found_in(*places: Path, channels: tuple[str] = CT) -> tuple[list[str], list[str], dict[str, int]]:
    """Names of cases, errors, and things not used by kind."""
    counts = {}
    scans, errors = find_scans(
        places, channels, skip=lambda each: counts.update({each.kind: counts.get(each.kind, 0) + each.items})
    )
    return [case.name for case in name_cases(scans, taken={})], [str(each) for each in errors], counts


def test_a_cohort_of_links_is_whole_and_each_scan_counts_once(tmp_path: Path) -> None:
    touch(tmp_path / "store" / "p1" / "p1.nii.gz")
    write_series(tmp_path / "store" / "1.2.840", ct_voxels((9, 16, 20)))
    cohort = tmp_path / "cohort"
    touch(cohort / "p0.nii.gz")
    (cohort / "p1").symlink_to(tmp_path / "store" / "p1")
    (cohort / "p2").symlink_to(tmp_path / "store" / "1.2.840")
    (cohort / "again").symlink_to("p0.nii.gz")
    (cohort / "loop").symlink_to(".")
    names, errors, counts = found_in(cohort)
    assert sorted(names) == ["p0", "p1", "p2"]
    assert not errors
    assert counts == {"repeated file": 1, "link": 1}
    assert found_in(cohort / "p2") == (["p2"], [], {})
    assert sorted(found_in(cohort / "p1", cohort, cohort / "p0.nii.gz")[0]) == ["p0", "p1", "p2"]


def test_hard_linked_series_are_read_once(tmp_path: Path) -> None:
    for path in write_series(tmp_path / "a", ct_voxels((9, 16, 20))):
        (tmp_path / "b").mkdir(exist_ok=True)
        os.link(path, tmp_path / "b" / path.name)
    assert found_in(tmp_path) == (["a"], [], {"repeated file": 9})


def test_links_that_lead_nowhere_are_failed_cases(tmp_path: Path) -> None:
    touch(tmp_path / "a.nii.gz")
    (tmp_path / "p2").symlink_to("/gone")
    names, (error,), _ = found_in(tmp_path)
    assert names == ["a"]
    assert error == f"{tmp_path / 'p2'}: a link that leads nowhere (No such file or directory)"
    (tmp_path / "a.nii.gz").unlink()
    assert found_in(tmp_path)[1] == [error], "and the folder is not called empty besides"


def test_formats_that_are_not_read_are_failed_cases_and_other_files_are_not(tmp_path: Path) -> None:
    image = nibabel.Nifti1Pair(ct_voxels((12, 16, 20)), np.diag([1.0, 1.0, 3.0, 1.0]))
    nibabel.save(image, tmp_path / "pair.hdr")
    for name in ("a.nii.gz", "b.mha", "c.nrrd", "d.nii.bz2", "e.seg.nrrd", "a.json", "a.csv", "a.txt", "a.png"):
        touch(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "f.zip", "w") as archive:
        archive.writestr("a.nii", "x")
    names, errors, counts = found_in(tmp_path)
    assert sorted(names) == ["a", "c", "pair"]
    assert [error.split(": ", 1)[0].removeprefix(f"{tmp_path}/") for error in errors] == ["b.mha", "d.nii.bz2", "f.zip"]
    assert counts == {"segmentation": 1}
    assert found_in(tmp_path / "b.mha")[1] == [f"{tmp_path / 'b.mha'}: not read: MetaImage; convert it to NIfTI"]


def test_files_that_are_named_one_by_one_are_told_one_by_one(tmp_path: Path) -> None:
    files = [touch(tmp_path / name) for name in ("a.nii.gz", "notes.txt", "b.mha", "c.csv")]
    names, errors, _ = found_in(*files)
    assert names == ["a"]
    assert sorted(error.removeprefix(f"{tmp_path}/")[:27] for error in errors) == [
        "b.mha: not read: MetaImage;",
        "c.csv: neither NIfTI nor DI",
        "notes.txt: neither NIfTI no",
    ]


def test_a_dicom_file_is_dicom_whatever_it_is_called(tmp_path: Path) -> None:
    for number, path in enumerate(write_series(tmp_path / "ct", ct_voxels((9, 16, 20)))):
        path.rename(path.with_name(f"{number}.{('img', 'mha', 'zip')[number % 3]}"))
    assert found_in(tmp_path) == (["ct"], [], {})


def test_a_series_may_lie_in_several_folders_that_are_named(tmp_path: Path) -> None:
    for number, path in enumerate(write_series(tmp_path / "ct", ct_voxels((10, 16, 20)))):
        (tmp_path / "ct" / f"half {number % 2}").mkdir(exist_ok=True)
        path.rename(path.parent / f"half {number % 2}" / path.name)
    halves = sorted((tmp_path / "ct").iterdir())
    assert found_in(*halves) == (["ct"], [], {}) == found_in(halves[0], tmp_path / "ct")


def test_what_the_model_never_takes_is_no_failed_case_however_it_is_named(tmp_path: Path) -> None:
    ct = write_series(tmp_path / "ct", ct_voxels((9, 16, 20)))
    mr = write_series(tmp_path / "mr", ct_voxels((9, 16, 20)) + 1000, modality="MR")
    mr.pop(4).unlink()
    expected: tuple[list[str], list[str], dict[str, int]] = (["ct"], [], {"MR series": 1})
    assert found_in(tmp_path) == expected
    assert found_in(*ct, *mr) == expected
    names, (error,), _ = found_in(*mr)
    assert not names
    assert "the model takes CT" in error
    assert "the model takes CT" in found_in(tmp_path / "mr")[1][0]


def test_the_last_line_accounts_for_everything(tmp_path: Path) -> None:
    summary = Summary(
        3, 0, 1, tmp_path, not_used={"RT structure set": 1, "MR series": 2, "RT dose": 2, "damaged copy": 2}
    )
    assert str(summary) == (
        "3 done, 0 done before, 1 failed, 7 not used (1 RT structure set, 2 MR series, 2 RT doses, 2 damaged copies)"
    )
    assert str(Summary(3, 1, 0, tmp_path)) == "3 done, 1 done before, 0 failed"


@pytest.fixture(scope="module")
def mixed(head: nibabel.Nifti1Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a scan of each kind: usable, refused in several ways, and not used."""
    folder = tmp_path_factory.mktemp("mixed") / "scans"
    small = few_slices(head)
    write_image(folder / "good", small, number=1)
    nibabel.save(small, folder / "file.nii.gz")
    write_image(folder / "gap", small, number=2)[3].unlink()
    air = nibabel.Nifti1Image(np.full(small.shape, -1000, np.int16), small.affine)
    air.dataobj[0, 0, 0] = -999
    write_image(folder / "air", air, number=3)
    write_image(folder / "mr", small, number=4, modality="MR", dtype=np.int16)[3].unlink()
    tilted = lay((5, 4, 4), step=(0.0, 1.3, 4.8))
    write_series(folder / "tilted", ct_voxels((14, 32, 32)), tilted, number=5)
    structures = pydicom.Dataset()
    structures.SOPClassUID, structures.SOPInstanceUID = RTStructureSetStorage, uid("structures")
    save(structures, folder / "good" / "structures.dcm")
    touch(folder / "scan.mha")
    (folder / "lost").symlink_to("/gone/lost")
    (folder / "loop").symlink_to(".")
    return folder


def test_inspect_says_what_infer_does(mixed: Path, model: Backend, tmp_path: Path) -> None:
    facts = inspect(mixed)
    lines: list[str] = []
    done: list[Any] = []
    summary = infer(
        [mixed],
        tmp_path / "out",
        lambda: model,
        InferOptions(pictures=False, report=False),
        say=lines.append,
        progress=done.append,
    )
    assert (summary.exit_status, dict(summary.not_used)) == (3, {"RT structure set": 1, "MR series": 1, "link": 1})
    refused = [outcome.entry.failure for outcome in done if outcome.status == "failed"]
    said = [value for label, value in facts.items() if label.startswith("refused")]
    assert len(said) == 3
    assert set(said) <= set(refused)
    judged = {label: value for label, value in facts.items() if "would be" in value}
    assert len(judged) == 4
    assert sum("would be segmented" in value for value in judged.values()) == 3
    ((no_patient, why),) = [(label, value) for label, value in judged.items() if "would be refused" in value]
    assert no_patient.startswith("CT series 3 (")
    assert "show no patient" in why
    assert any("air" in reason and why.rpartition("refused: ")[2] in reason for reason in refused)
    (tilted,) = [value for label, value in judged.items() if label.startswith("CT series 5 (")]
    assert "gantry tilt" in tilted
    not_used = [value for label, value in facts.items() if label.startswith("not used")]
    assert [f"not used: {value}" for value in not_used] == [line for line in lines if line.startswith("not used: ")]
    assert facts["infer would"] == "segment 3, refuse 4, not use 3"
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["not_used"] == dict(summary.not_used)
    assert record["cases"] == {"done": summary.done, "skipped": 0, "failed": summary.failed}


def test_what_is_not_of_the_models_kind_changes_no_exit_status(
    model: Backend, head: nibabel.Nifti1Image, tmp_path: Path
) -> None:
    small = few_slices(head)
    write_image(tmp_path / "scans" / "ct", small)
    write_image(tmp_path / "scans" / "mr", small, modality="MR", dtype=np.int16)[3].unlink()
    ran = run(model, tmp_path / "scans", tmp_path / "out")
    assert ran.summary.exit_status == 0
    assert str(ran.summary) == "1 done, 0 done before, 0 failed, 1 not used (1 MR series)"


def test_inspect_for_another_model(tmp_path: Path, mixed: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        inspect(tmp_path / "gone")
    facts = inspect(mixed / "mr")
    assert facts["infer would"] == "segment 0, refuse 0, not use 1", "each once"
    assert "the model takes CT" in facts["not used (1)"]


def test_inspect_of_single_files(tmp_path: Path, mixed: Path) -> None:
    assert inspect(mixed / "file.nii.gz")["would be"].startswith("segmented")
    with pytest.raises(InputError, match=r"scan\.mha: not read: MetaImage; convert it to NIfTI"):
        inspect(mixed / "scan.mha")


def test_pairs_and_nrrd_give_the_masks_of_their_nifti_files(
    model: Backend, head: nibabel.Nifti1Image, tmp_path: Path
) -> None:
    import nrrd

    small = few_slices(head)
    nibabel.save(small, tmp_path / "a.nii.gz")
    (tmp_path / "others").mkdir()
    pair = nibabel.Nifti1Pair(np.asarray(small.dataobj), None, small.header)
    nibabel.save(pair, tmp_path / "others" / "b.hdr")
    lps = np.diag([-1, -1, 1, 1]) @ small.affine
    header = {"space": "LPS", "space directions": lps[:3, :3].T, "space origin": lps[:3, 3]}
    nrrd.write(str(tmp_path / "others" / "c.nrrd"), np.asarray(small.dataobj), header)
    shutil.copy(tmp_path / "a.nii.gz", tmp_path / "others" / "a.nii.gz")
    ran = run(model, tmp_path / "others", tmp_path / "out")
    assert ran.statuses == {"a": "done", "b": "done", "c": "done"}
    expected = nibabel.load(tmp_path / "out" / "a.nii.gz")
    for name in ("b", "c"):
        found = nibabel.load(tmp_path / "out" / f"{name}.nii.gz")
        np.testing.assert_array_equal(np.asarray(found.dataobj), np.asarray(expected.dataobj))
        np.testing.assert_allclose(found.affine, expected.affine, atol=1e-3)
    assert run(model, tmp_path / "others", tmp_path / "out").statuses == dict.fromkeys("abc", "skipped")
