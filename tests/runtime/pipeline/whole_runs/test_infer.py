"""`parotid-seg infer` as a user runs it, with the packaged model on slices of the example scan."""

import gzip
import json
import re
import shutil
import signal
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import onnx
import pytest
from onnx import helper

from parotid_seg.contract import METADATA_KEY
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.engines.base import Backend
from parotid_seg.runtime.pipeline.infer_options import InferOptions
from parotid_seg.runtime.pipeline.journal import Journal
from parotid_seg.runtime.pipeline.run import Summary, infer
from parotid_seg.runtime.segmentation.segment import segment_volume
from parotid_seg.runtime.segmentation.segmentation_options import RULES_VERSION
from parotid_seg.scan.nifti import read_nifti
from tests.command_line import Run
from tests.dicom_example import few_slices
from tests.dicom_series import ct_voxels
from tests.processes.forked import LIGHT, start
from tests.scan.test_nifti import ct, save
from tests.scan.test_nifti_refused import bad_files
from tests.scan.test_volume import ORDERS, stored_as
from tests.small_files import summary_rows

pytestmark = pytest.mark.slow


HERE = ("--backend", "onnxruntime")
"""The engine that is loaded quickest, where it does not matter which one runs."""


def one_line(text: str, *words: str) -> None:
    lines = [line for line in text.splitlines() if line]
    assert len(lines) == 1, text
    assert all(word in lines[0] for word in words), text
    assert "Traceback" not in text


def test_a_scan_becomes_a_mask_in_its_own_geometry(
    process: Run, scans: Path, tmp_path: Path, head: nibabel.Nifti1Image
) -> None:
    done = process("infer", scans, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    mask = nibabel.load(tmp_path / "out" / "good.nii.gz")
    scan = nibabel.load(scans / "good_0000.nii.gz")
    assert mask.shape == scan.shape
    np.testing.assert_array_equal(mask.affine, scan.affine)
    assert set(np.unique(np.asarray(mask.dataobj))) == {0, 1, 2}
    (row,) = summary_rows(tmp_path / "out")
    assert row["status"] == "done"
    volume = float(np.prod(head.header.get_zooms())) / 1000
    assert float(row["left_ml"]) == pytest.approx((np.asarray(mask.dataobj) == 1).sum() * volume, abs=0.01)
    assert row["backend"].split()[0] in ("onnxruntime", "openvino"), "the fastest that is installed"
    assert (tmp_path / "out" / "pictures" / "good.png").stat().st_size > 10_000
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["cases"] == {"done": 1, "skipped": 0, "failed": 0}


def test_all_48_storage_orders_give_the_same_mask(model: Backend, head: nibabel.Nifti1Image, tmp_path: Path) -> None:
    """Voxel for voxel after mapping back; and left is the patient's left in each.

    The model sees the same voxels in each order. It segments every fifth, among which are all permutations and all
    flips.
    """
    ras = nibabel.as_closest_canonical(few_slices(head, 4))
    masks, seen = [], []
    for number, (axes, signs) in enumerate(ORDERS):
        stored, affine = stored_as(np.asarray(ras.dataobj), axes, signs)
        zooms = np.diag([*np.array(ras.header.get_zooms()) / (1.0, 2.0, 3.0), 1.0])
        image = nibabel.Nifti1Image(np.ascontiguousarray(stored), zooms @ affine)
        path = tmp_path / "scan.nii"
        nibabel.save(image, path)
        scan = read_nifti(path)
        path.unlink()
        seen.append(scan.volume.voxels)
        np.testing.assert_array_equal(seen[-1], seen[0], err_msg=f"{axes} {signs}")
        assert scan.volume.spacing_mm == pytest.approx(tuple(ras.header.get_zooms())[::-1])
        if number % 5 == 0:
            found = segment_volume(model, scan.volume, batch_size=16).mask
            back = nibabel.Nifti1Image(np.ascontiguousarray(scan.volume.orientation.to_storage(found)), image.affine)
            masks.append(np.asarray(nibabel.as_closest_canonical(back).dataobj))
            np.testing.assert_array_equal(masks[-1], masks[0], err_msg=f"{axes} {signs}")
    left, right = (np.argwhere(masks[0] == value)[:, 0].mean() for value in (1, 2))
    assert left < right, "RAS: the patient's left has the lower index"


def test_bad_scans_are_set_aside_and_the_good_one_is_done(command: Run, scans: Path, tmp_path: Path) -> None:
    bad = bad_files(tmp_path)
    save(scans / "air.nii.gz", ct() // 1000 - 900)
    save(scans / "counts.nii.gz", ct() + 1024)
    save(scans / "headless.nii.gz", ct_voxels((64, 64, 20)))
    for path, _ in bad.values():
        if path.exists():
            shutil.copy(path, scans)
    done = command("infer", scans, bad["missing"][0], "--out", tmp_path / "out", *HERE)
    assert done.returncode == 3
    by_case = {row["case"]: row for row in summary_rows(tmp_path / "out")}
    assert by_case["good"]["status"] == "done"
    assert sum(row["status"] == "done" for row in by_case.values()) == 1
    assert "show no patient" in by_case["air"]["reason"]
    assert "not HU" in by_case["counts"]["reason"]
    assert "no parotid gland found" in by_case["headless"]["reason"]
    assert all(str(scans) in row["reason"] for row in by_case.values() if row["status"] == "failed" and row["case"])
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == ["good.nii.gz"]
    assert len(done.stderr.splitlines()) == sum(row["status"] == "failed" for row in summary_rows(tmp_path / "out"))
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["text", "truncated gz", "4-D", "NaN", "singular", "missing"])
def test_one_bad_scan_alone_is_exit_1(command: Run, tmp_path: Path, name: str) -> None:
    path, words = bad_files(tmp_path)[name]
    done = command("infer", path, "--out", tmp_path / "out", *HERE)
    assert done.returncode == (2 if name == "missing" else 1)
    one_line(done.stderr, str(path) if name != "missing" else "no such file", words)


def test_empty_folder(command: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = command("infer", tmp_path / "empty", "--out", tmp_path / "out", *HERE)
    assert done.returncode == 1
    one_line(done.stderr, "empty", "no scan in this folder")


def test_rerun_resumes_and_overwrite_redoes(command: Run, scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command("infer", scans, "--out", out, *HERE)
    first = (out / "good.nii.gz").stat().st_mtime_ns
    again = command("infer", scans, "--out", out, *HERE)
    assert again.returncode == 0
    assert "0 done, 1 done before" in again.stdout
    assert (out / "good.nii.gz").stat().st_mtime_ns == first
    (out / "good.nii.gz").write_bytes(b"damaged")
    command("infer", scans, "--out", out, *HERE)
    assert nibabel.load(out / "good.nii.gz").shape
    second = (out / "good.nii.gz").stat().st_mtime_ns
    over = command("infer", scans, "--out", out, "--overwrite", *HERE)
    assert (out / "good.nii.gz").stat().st_mtime_ns > second
    assert "1 case that is done is made again, and replaced: as --overwrite asks for" in over.stdout
    assert "1 done (1 of them again), 0 done before, 0 failed" in over.stdout


def test_what_other_options_replace_is_told_before_it_is_done(
    model: Backend, scans: Path, tmp_path: Path, head: nibabel.Nifti1Image
) -> None:
    nibabel.save(few_slices(head, 5), scans / "second_0000.nii.gz")
    options = InferOptions(pictures=False, report=False)

    def run(options: InferOptions) -> tuple[list[str], Summary]:
        told: list[str] = []
        tell = lambda outcome: told.append(outcome.status)  # noqa: E731
        return told, infer([scans], tmp_path / "out", lambda: model, options, say=told.append, progress=tell)

    told, summary = run(options)
    assert not any("again" in line for line in told)
    assert (summary.done, summary.replaced) == (2, 0)
    told, summary = run(replace(options, clean_up=False))
    (at,) = (index for index, line in enumerate(told) if "made again" in line)
    assert told[at].startswith("2 cases that are done are made again, and replaced: another model, other options")
    assert at < told.index("done")
    assert (summary.done, summary.replaced, summary.skipped) == (2, 2, 0)
    nibabel.save(few_slices(head, 6), scans / "third_0000.nii.gz")
    told, summary = run(replace(options, clean_up=False))
    assert not any("again" in line for line in told)
    assert (summary.done, summary.replaced, summary.skipped) == (1, 0, 2)


def test_what_other_runs_left_is_replaced_removed_or_told(
    model: Backend, scans: Path, tmp_path: Path, head: nibabel.Nifti1Image
) -> None:
    out = tmp_path / "out"

    def run(*formats: str, **options: Any) -> list[str]:
        told: list[str] = []
        infer([scans], out, lambda: model, InferOptions(formats=formats or ("nifti",), **options), say=told.append)
        return [line for line in told if "again" in line or "stay" in line or "picture" in line]

    pictures = {"good.png", "good.webp"}
    assert run("nifti", "nrrd") == []
    assert {path.name for path in (out / "pictures").iterdir()} == pictures
    (replaced, stays) = run(pictures=False)
    assert "other options" in replaced
    assert stays.startswith("1 file of an earlier run stays beside the results of this run and may differ from them: ")
    assert stays.endswith(": good.seg.nrrd")
    assert not list((out / "pictures").iterdir()), "they would show another mask"
    assert run()[-1] == "1 of the cases done before have no picture; --overwrite makes it"
    (out / "good.seg.nrrd").unlink()
    assert "as --overwrite asks for" in run(overwrite=True)[0]
    assert {path.name for path in (out / "pictures").iterdir()} == pictures
    (stays,) = run(report=False)
    assert stays.endswith("report.html")
    (out / "good.nii.gz").write_bytes((out / "good.nii.gz").read_bytes() + b"x")
    assert run() == ["1 case that is done is made again, and replaced: found other masks than the recorded ones"]
    (out / "journal.jsonl").unlink()
    (replaced,) = run()
    assert replaced.endswith("found masks that journal.jsonl does not record")
    (out / "good.nii.gz").unlink()
    assert run() == [], "nothing is replaced"
    content = (scans / "good_0000.nii.gz").read_bytes()
    nibabel.save(nibabel.Nifti1Image(np.zeros((20, 20, 20), np.int16), head.affine), scans / "good_0000.nii.gz")
    (stays,) = run()
    assert stays.endswith(": good.nii.gz"), "the scan has changed, and fails now"
    assert not list((out / "pictures").iterdir())
    (scans / "good_0000.nii.gz").write_bytes(content)
    (replaced,) = run()
    assert replaced.endswith("replaced: their last run failed, and masks of an earlier one are there")


def test_an_upgrade_whose_rules_changed_does_the_cases_again(
    model: Backend, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = InferOptions(pictures=False, report=False)
    for rules, expected in ((RULES_VERSION, (1, 0, 0)), (RULES_VERSION, (0, 0, 1)), (RULES_VERSION + 1, (1, 1, 0))):
        monkeypatch.setattr("parotid_seg.runtime.segmentation.segmentation_options.RULES_VERSION", rules)
        summary = infer([scans], tmp_path / "out", lambda: model, options)
        assert (summary.done, summary.replaced, summary.skipped) == expected


def test_a_hostile_file_does_not_end_the_run(model: Backend, scans: Path, tmp_path: Path) -> None:
    """Its voxels are counted in the main process."""
    content = bytearray(gzip.decompress(next(scans.iterdir()).read_bytes())[:2500])
    for name, value in (("a", float("-inf")), ("b", float("inf")), ("c", 3e38)):
        struct.pack_into("<f", content, 108, value)
        (scans / f"{name}.nii").write_bytes(content)
    summary = infer([scans], tmp_path / "out", lambda: model, InferOptions(pictures=False, report=False))
    assert (summary.done, summary.failed) == (1, 3)
    assert all("Error" not in row["reason"] for row in summary_rows(tmp_path / "out"))


def test_masks_among_the_scans_are_neither_segmented_nor_overwrite_a_scan(command: Run, scans: Path) -> None:
    first = command("infer", scans, "--out", scans, *HERE)
    assert first.returncode == 0, first.stderr
    again = command("infer", scans, "--out", scans, *HERE)
    assert "0 done, 1 done before" in again.stdout
    original = (scans / "good_0000.nii.gz").rename(scans / "plain.nii.gz")
    before = original.read_bytes()
    clash = command("infer", original, "--out", scans, *HERE)
    assert clash.returncode == 1
    assert "plain.nii.gz would replace" in clash.stderr
    assert original.read_bytes() == before


def test_a_killed_run_resumes_without_redoing_or_half_writing(
    command: Run, head: nibabel.Nifti1Image, tmp_path: Path
) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    few = few_slices(head, 5)
    for index in range(4):
        shifted = nibabel.Nifti1Image(np.asarray(few.dataobj) + np.int16(index), few.affine)
        nibabel.save(shifted, scans / f"s{index}.nii.gz")
    process = start("infer", scans, "--out", out, *HERE, server=LIGHT)
    for line in process.stdout:
        if line.startswith("[2/4]"):
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    for path in out.glob("*.nii.gz"):
        assert nibabel.load(path).shape == few.shape
    # A mask whose line the journal does not have yet is done again, see the next test.
    names = {f"{case}.nii.gz" for case in Journal(out).entries}
    kept = {name: (out / name).stat().st_mtime_ns for name in names}
    assert 2 <= len(kept) < 4
    done = command("infer", scans, "--out", out, *HERE)
    assert done.returncode == 0
    assert re.search(rf"{4 - len(kept)} done( \(1 of them again\))?, {len(kept)} done before", done.stdout)
    assert all((out / name).stat().st_mtime_ns == when for name, when in kept.items())
    assert len(summary_rows(out)) == 4
    assert not list(out.glob(".partial-*"))


def test_a_mask_whose_journal_line_was_lost_is_redone(command: Run, scans: Path, tmp_path: Path) -> None:
    """Killed between the mask's rename and the journal's line."""
    out = tmp_path / "out"
    command("infer", scans, "--out", out, *HERE)
    before = np.asarray(nibabel.load(out / "good.nii.gz").dataobj)
    (out / "journal.jsonl").unlink()
    done = command("infer", scans, "--out", out, *HERE)
    assert done.returncode == 0, done.stderr
    assert "1 done (1 of them again), 0 done before" in done.stdout
    np.testing.assert_array_equal(nibabel.load(out / "good.nii.gz").dataobj, before)


def test_ctrl_c_keeps_finished_cases(head: nibabel.Nifti1Image, tmp_path: Path) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    nibabel.save(few_slices(head), scans / "s0.nii.gz")
    for index in range(1, 60):  # far more than are done until the signal comes, on whatever machine
        shutil.copy(scans / "s0.nii.gz", scans / f"s{index}.nii.gz")
    process = start("infer", scans, "--out", out, *HERE, server=LIGHT)
    for line in process.stdout:
        if line.startswith("[1/60]"):
            break
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130
    one_line(stderr, "interrupted")
    assert summary_rows(out)[0]["status"] == "done"


def test_output_folder_that_cannot_be_written(command: Run, scans: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = command("infer", scans, "--out", tmp_path / "file" / "out", *HERE)
    assert done.returncode == 1
    one_line(done.stderr, "file/out", "cannot be made or written to")
    done = command("infer", scans, "--out", tmp_path / "file", *HERE)
    one_line(done.stderr, f"{tmp_path / 'file'}: the folder cannot be made or written to (a file has this name)")


def bad_models(folder: Path) -> dict[str, tuple[Path, str]]:
    text, foreign, old = folder / "text.onnx", folder / "foreign.onnx", folder / "old.onnx"
    text.write_text("hello")
    node = helper.make_node("Identity", ["x"], ["y"])
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    model = helper.make_model(
        helper.make_graph([node], "g", ends[:1], ends[1:]), opset_imports=[helper.make_opsetid("", 17)]
    )
    model.ir_version = 9
    onnx.save(model, foreign)
    packaged = onnx.load(DEFAULT_MODEL)
    contract = json.loads(next(entry.value for entry in packaged.metadata_props if entry.key == METADATA_KEY))
    helper.set_model_props(packaged, {METADATA_KEY: json.dumps({**contract, "schema_version": 99})})
    onnx.save(packaged, old)
    return {
        "missing": (folder / "gone.onnx", "no such file, expected a model file"),
        "text": (text, "not an ONNX model"),
        "foreign": (foreign, "without parotid-seg's contract"),
        "other version": (old, "schema_version 99, expected 7"),
    }


@pytest.mark.parametrize("name", ["missing", "text", "foreign", "other version"])
def test_bad_models(command: Run, scans: Path, tmp_path: Path, name: str) -> None:
    path, words = bad_models(tmp_path)[name]
    done = command("infer", scans, "--out", tmp_path / "out", "--model", path)
    assert done.returncode == (2 if name == "missing" else 1)
    one_line(done.stderr, str(path), words)
    assert not (tmp_path / "out").exists(), "nothing is made"


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--backend", "magic", "onnxruntime"),
        ("--device", "tpu", "auto, cpu, cuda"),
        ("--batch-size", "0", "at least 1"),
    ],
)
def test_bad_options(command: Run, scans: Path, tmp_path: Path, option: str, value: str, words: str) -> None:
    done = command("infer", scans, "--out", tmp_path / "out", option, value)
    assert done.returncode == 2
    one_line(done.stderr, option, value, words)


def test_test_time_augmentation_by_its_old_name(command: Run, scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = command(
        "infer", scans, "--out", out, "--flips", "--workers", "1", "--no-pictures", "--backend", "onnxruntime"
    )
    assert done.returncode == 0, done.stderr
    assert "batches of 16 slices and their mirror images; up to 1 worker" in done.stdout
    assert "gives no probabilities to average" in done.stdout
    (row,) = summary_rows(out)
    assert all(0.8 < float(row[f"{side}_agreement"]) < 1 for side in ("left", "right"))
    assert not (out / "pictures").exists()
    plain = command("infer", scans, "--out", out, "--backend", "onnxruntime")
    assert "1 done (1 of them again), 0 done before" in plain.stdout, "other options, other work"
    assert "left_agreement" not in summary_rows(out)[0]


def test_batch_size_changes_no_voxel(model: Backend, head: nibabel.Nifti1Image, tmp_path: Path) -> None:
    nibabel.save(head, tmp_path / "a.nii.gz")
    volume = read_nifti(tmp_path / "a.nii.gz").volume
    masks = [segment_volume(model, volume, batch_size=size).mask for size in (1, 7, 64)]
    assert all(np.count_nonzero(mask != masks[0]) <= 2 for mask in masks)
