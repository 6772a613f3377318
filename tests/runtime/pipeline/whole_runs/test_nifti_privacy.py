"""What a NIfTI file's header says about the patient gets nowhere; `test_dicom_privacy.py` is of DICOM."""

import gzip
import shutil
import subprocess
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from tests.dicom_example import few_slices, write_image
from tests.runtime.pipeline.whole_runs.test_dicom_privacy import run, tellers, tells
from tests.scan.nifti_marks import BORN, FIELDS, MARK, mark

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(
    head: nibabel.Nifti1Image, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A folder with marked scans, one of them in a geometry that is not repeated as it stands, and their results."""
    folder = tmp_path_factory.mktemp("marked")
    (folder / "scans").mkdir()
    nibabel.save(head, folder / "scans" / "a_0000.nii.gz")
    stale = nibabel.Nifti1Image(np.asarray(head.dataobj), head.affine)
    stale.header["pixdim"][1:4] = 1
    nibabel.save(stale, folder / "scans" / "b_0000.nii.gz")
    for path in (folder / "scans").iterdir():
        mark(path)
    done = infer(folder)
    assert done.returncode == 0, done.stderr
    return folder, done


def infer(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    formats = ("--format", "nifti", "--format", "nrrd")
    return run(folder, "infer", folder / "scans", "--out", folder / "out", "--backend", "onnxruntime", *formats, *words)


def test_the_marks_are_in_the_scans(place: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = place
    for path in (folder / "scans").iterdir():
        header, content = nibabel.load(path).header, gzip.decompress(path.read_bytes())
        assert all(MARK.encode() in header[name].item() for name in FIELDS)
        assert len(header.extensions) == 4
        assert content.count(MARK.encode()) == len(FIELDS) + 5
        assert BORN.encode() in content
        assert tells(path.read_bytes()[:40]), "gzip's name of the file"


def test_no_result_tells_of_the_patient(place: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = place
    kinds = {path.suffix for path in (folder / "out").rglob("*") if path.is_file()}
    assert kinds >= {".gz", ".nrrd", ".png", ".webp", ".html", ".json", ".csv", ".jsonl", ".txt"}
    assert tellers(folder / "out", folder / "tmp", folder / "cache") == set()
    assert not tells((done.stdout + done.stderr).encode())
    done = infer(folder, "--identify")
    assert "2 done before" in done.stdout, "masks are whole"
    assert tellers(folder / "out") == set(), "NIfTI files identify nobody"


def test_neither_do_inspect_and_evaluate(place: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = place
    told = run(folder, "inspect", folder / "scans" / "a_0000.nii.gz")
    assert told.returncode == 0, told.stderr
    assert not tells((told.stdout + told.stderr).encode())
    shutil.copytree(folder / "out", folder / "references", ignore=shutil.ignore_patterns("*.nrrd", "*.json*", "*.html"))
    for path in (folder / "references").glob("*.nii.gz"):
        mark(path)
    told = run(folder, "evaluate", folder / "references", folder / "references", "--out", folder / "scores.json")
    assert told.returncode == 0, told.stderr
    assert not tells((told.stdout + told.stderr + (folder / "scores.json").read_text()).encode())


def test_nor_does_a_refusal(place: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = place
    bad = folder / "bad"
    bad.mkdir()
    scan = nibabel.load(folder / "scans" / "a_0000.nii.gz")
    changes: dict[str, dict[str, Any]] = {
        "unit": {"xyzt_units": 5},
        "spacing": {"pixdim": [1, -1, 1, 1, 0, 0, 0, 0], "sform_code": 0},
        "axes": {"srow_x": 0, "qform_code": 0},
        "size": {"srow_x": [1, 0, 0, 0], "srow_y": [0, 1, 0, 0], "srow_z": [0, 0, 1, 0], "qform_code": 0},
        "type": {"datatype": 128, "bitpix": 24},
        "no type": {"datatype": 77},
        "magic": {"magic": MARK[:3].encode()},
    }
    for name, change in changes.items():
        header = scan.header.copy()
        for key, value in change.items():
            header[key] = value
        (bad / f"{name}.nii").write_bytes(header.binaryblock + bytes(4) + bytes(1000))
    fields = ["type", "dimension", "sizes", "space", "encoding", "endian", "space units", "space directions", MARK]
    good = {"type": "short", "dimension": "3", "sizes": "2 2 2", "space": "LPS", "encoding": "raw", "endian": "little"}
    good |= {"space origin": "(0,0,0)", "space directions": "(1,0,0) (0,1,0) (0,0,1)"}
    for name in fields:
        header_of_nrrd = {**good, name: f'"{MARK}" ' * 3 if name == "space units" else MARK}
        lines = [f"{field}: {text}" for field, text in header_of_nrrd.items()]
        (bad / f"{fields.index(name)}.nrrd").write_text("\n".join(["NRRD0004", f"# {MARK}", *lines, "", "x"]))
    done = run(folder, "infer", bad, "--out", folder / "refused", "--backend", "onnxruntime")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) >= len(changes) + len(fields)
    assert not tells((done.stdout + done.stderr).encode())
    assert tellers(folder / "refused") == set()


def test_nor_does_a_data_set_beside_whose_series_it_lies(
    place: tuple[Path, subprocess.CompletedProcess[str]], head: nibabel.Nifti1Image
) -> None:
    folder, _ = place
    image = few_slices(head)
    write_image(folder / "study" / "ct", image)
    nibabel.save(image, folder / "study" / "ct" / "scan.nii.gz")
    mark(folder / "study" / "ct" / "scan.nii.gz")
    done = run(folder, "dataset", folder / "study", "--out", folder / "data")
    assert list((folder / "data").rglob("*.nii.gz")), done.stderr
    assert not tells((done.stdout + done.stderr).encode())
    assert tellers(folder / "data", folder / "data.private") == set()
