"""`inspect`: what any of our files is, and what an unknown one looks like."""

import dataclasses
import json
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest
from pydicom.uid import ImplicitVRLittleEndian

from parotid_seg import Segmenter
from parotid_seg.errors import InputError
from parotid_seg.files import hash_file
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.engines.engine_file import BatchProfile, EngineOptions
from parotid_seg.runtime.engines.load import load_backend
from parotid_seg.runtime.engines.model_file import read_model
from parotid_seg.runtime.inspection import inspect
from tests.command_line import Run
from tests.dicom_series import ct_voxels, write_series
from tests.fakes.sidecars import write_sidecar


def test_a_model_tells_cost_census_and_proof() -> None:
    facts = inspect(DEFAULT_MODEL)
    assert facts["parameters"] == "4.57 million"
    assert facts["multiply-adds"] == "477 million a sample"
    assert facts["computes in"] == "fp32; multiply-adds 100.0% fp32"
    assert facts["input and output"] == "2 bytes a voxel in, 1 out"
    assert float(facts["verified: lowest dsc"]) >= 0.998
    assert facts["verified: kept in fp32"] == "none"
    assert facts["training: scans"] == "hashes of 194"
    assert facts["training: scans complete"] == "yes"


def test_each_calibration_and_what_stays_in_fp32_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = load_backend(DEFAULT_MODEL, "onnxruntime")
    (calibration,) = backend.contract.calibrations
    halves = tuple(dataclasses.replace(calibration, structures=(name,)) for name in calibration.structures)
    verification = {**backend.contract.verification, "kept_in_fp32": ["softmax", "LayerNorm"]}
    backend.contract = dataclasses.replace(backend.contract, calibrations=halves, verification=verification)
    monkeypatch.setattr("parotid_seg.runtime.inspection.load_backend", lambda *_, **__: backend)
    facts = inspect(DEFAULT_MODEL)
    assert facts["verified: kept in fp32"] == "softmax, LayerNorm"
    for side in ("left", "right"):
        assert "129 structures of 65 patients" in facts[f"expected DSC, {side} parotid"]


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "ct.engine"
    path.write_bytes(b"an engine")
    contract = dataclasses.replace(read_model(DEFAULT_MODEL).contract, verification={})
    shapes = {"slices": ((1, 1, 16, 16), (1, 30, 512, 512), (1, 99, 1024, 1024))}
    options = EngineOptions(runs_on="same-capability")
    write_sidecar(path, contract, batch=BatchProfile(1, 8, 32), shapes=shapes, options=options)
    return path


def test_an_engine_tells_what_it_is_and_why_it_cannot_be_used(engine: Path) -> None:
    facts = inspect(engine)
    assert facts["kind"] == "engine of TensorRT 10.13.0, built on Some GPU, 8.9"
    assert facts["batches"] == "1 to 32, best at 8"
    assert facts["sizes"] == "slices 1x1x16x16 to 1x99x1024x1024"
    assert facts["here"].startswith("cannot be used: ")
    assert facts["verified"].startswith("no: ")
    assert facts["masks"] == "not compared with the trained model's"
    assert facts["sha256"] == hash_file(engine)
    engine.write_bytes(b"another")
    changed = inspect(engine)
    assert "its hash is not the one in its sidecar" in changed["here"]
    assert changed["sha256"] == hash_file(engine) != facts["sha256"]


def test_an_engine_that_cannot_be_read(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("parotid_seg.runtime.inspection.hash_file", refuse)
    assert inspect(engine)["sha256"] == "unknown: the file cannot be read (Permission denied)"


@pytest.mark.parametrize(
    ("verification", "words"),
    [
        ({"not_run": "no NVIDIA GPU found"}, "not compared with the trained model's: no NVIDIA GPU found"),
        (
            {"with": "TensorRT 10.13.0", "on": "cuda:0 Some GPU", "lowest_dsc": 0.99999},
            "compared with the trained model's by TensorRT 10.13.0 on cuda:0 Some GPU: lowest DSC 1.0000",
        ),
    ],
)
def test_an_engine_tells_what_is_known_of_its_masks(
    engine: Path, verification: dict[str, float | str], words: str
) -> None:
    contract = dataclasses.replace(read_model(DEFAULT_MODEL).contract, verification={})
    write_sidecar(engine, contract, verification=verification)
    assert inspect(engine)["masks"] == words


def test_dicom_with_or_without_a_preamble(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "ct", ct_voxels((10, 24, 24)), transfer_syntax=ImplicitVRLittleEndian)
    assert "10 slices of 24 x 24 voxels" in str(inspect(paths[0]))
    content = paths[0].read_bytes()
    paths[0].write_bytes(content[content.index(b"\x08\x00\x05\x00") :])
    assert "10 slices of 24 x 24 voxels" in str(inspect(paths[0]))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.pt", b"PK\x03\x04...", "a training run's checkpoint"),
        ("a.gz", b"\x1f\x8b\x08", "a gzip file"),
        ("a.png", b"\x89PNG\r\n", "a picture"),
        ("a.json", b'{"a": 1}', "JSON"),
        ("a.txt", b"hello", "something unknown"),
        ("a", b"", "an empty file"),
    ],
)
def test_other_files(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"{name}: found {words}.*, expected a model \(\.onnx\), an engine"):
        inspect(path)


@pytest.mark.parametrize(
    ("shift", "words"),
    [
        (0, "segmented"),
        (100, "segmented; note: soft tissue lies near 1"),
        (1024, "refused: intensities are not HU: "),
    ],
)
def test_a_scan_tells_whether_it_is_taken_for_a_ct(
    tmp_path: Path, example: nibabel.Nifti1Image, shift: int, words: str
) -> None:
    path = tmp_path / "scan.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.asarray(example.dataobj) + np.int16(shift), example.affine), path)
    found = inspect(path)["would be"]
    assert found.startswith(words)
    assert (found == words) == (shift == 0)


def test_a_scan_says_its_format(tmp_path: Path, example: nibabel.Nifti1Image) -> None:
    for ending in (".nrrd", ".hdr", ".nii"):
        path = tmp_path / f"scan{ending}"
        if ending == ".nrrd":
            header = {"space": "right-anterior-superior", "space directions": np.eye(3) * 3, "space origin": [0, 0, 0]}
            nrrd.write(str(path), np.asarray(example.dataobj), header)
        elif ending == ".hdr":
            nibabel.save(nibabel.Nifti1Pair(example.dataobj, example.affine), path)
        else:
            nibabel.save(example, path)
        found = inspect(path)
        kind, has_codes = found["kind"], "sform / qform code" in found
        assert (kind, has_codes) == (("NRRD scan", False) if ending == ".nrrd" else ("NIfTI scan", True))


def test_the_packaged_model_has_a_name(command: Run, scans: Path, tmp_path: Path) -> None:
    scan = next(scans.iterdir())
    assert "the packaged model (CT)" in command("inspect", scan, "--model", "packaged").stdout
    done = command("infer", scan, "--model", "packaged", "--backend", "onnxruntime", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["model"]["name"] == DEFAULT_MODEL.name
    assert Segmenter("packaged", backend="onnxruntime").contract == Segmenter(backend="onnxruntime").contract


def test_json_has_the_facts_and_the_contract(command: Run, scans: Path) -> None:
    found = json.loads(command("inspect", DEFAULT_MODEL, "--json").stdout)
    assert found["kind"].startswith("ONNX model")
    assert found["contract"]["labels"] == ["background", "parotid_left", "parotid_right"]
    assert found["contract"]["grid"]["size"] == 96
    scan = json.loads(command("inspect", next(scans.iterdir()), "--json").stdout)
    assert "contract" not in scan
    assert scan["would be"].startswith("segmented")


def test_a_model_for_a_model_is_refused(command: Run, tmp_path: Path) -> None:
    done = command("inspect", DEFAULT_MODEL, "--model", tmp_path / "gone.onnx")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"--model: says which model scans are for, but {DEFAULT_MODEL} is a model" in done.stderr
