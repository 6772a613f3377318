"""What a night brings: full disks, folders that turn read-only, odd names, links in circles, two runs at once."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from parotid_seg.runtime.engines.base import Backend
from parotid_seg.runtime.pipeline.infer_options import InferOptions
from parotid_seg.runtime.pipeline.journal import Journal
from parotid_seg.runtime.pipeline.run import Outcome
from parotid_seg.runtime.pipeline.run import infer as infer_here
from tests.command_line import Run
from tests.dicom_example import few_slices
from tests.processes.forked import LIGHT, Forked
from tests.processes.forked import command as run_command
from tests.runtime.pipeline.whole_runs.test_infer import one_line
from tests.small_files import summary_rows

pytestmark = pytest.mark.slow


def infer(*arguments: Path | str, before: Callable[..., None] | None = None) -> Forked:
    """A run under way in a process of its own, which calls `before` first."""
    words = ["infer", *map(str, arguments), "--backend", "onnxruntime"]
    return Forked(partial(_run, before, words), server=LIGHT)


def _run(before: Any, words: Sequence[str]) -> None:
    if before:
        before()
    run_command(*words)


def statuses(out: Path) -> dict[str, str]:
    return {row["case"]: row["status"] for row in summary_rows(out)}


@pytest.fixture
def many(tmp_path: Path, head: nibabel.Nifti1Image) -> Path:
    """Four scans of a few slices that differ."""
    folder = tmp_path / "many"
    folder.mkdir()
    few = few_slices(head, 4)
    for index in range(4):
        image = nibabel.Nifti1Image(np.asarray(few.dataobj) + np.int16(index), few.affine)
        nibabel.save(image, folder / f"s{index}.nii.gz")
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", folder], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("needs the right to mount a small disk")
    yield folder
    subprocess.run(["umount", folder], check=True)


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", disk], check=True, capture_output=True)


def test_a_full_disk_stops_the_run_with_the_finished_cases_whole(many: Path, small_disk: Path, command: Run) -> None:
    words = ("infer", many, "--out", small_disk, "--backend", "onnxruntime")
    stopped = command(*words)
    assert stopped.returncode == 1
    one_line(stopped.stderr, "No space left on device")
    kept = sorted(small_disk.glob("*.nii.gz"))
    assert len(kept) < 4
    assert all(np.asarray(nibabel.load(path).dataobj).any() for path in kept)
    assert not list(small_disk.glob("**/.partial-*"))
    remount(small_disk, "size=20m")
    again = command(*words)
    assert again.returncode == 0, again.stderr
    assert set(statuses(small_disk).values()) <= {"done", "skipped"}
    assert len(list(small_disk.glob("*.nii.gz"))) == 4


def obey_modes() -> None:
    """Even root may not write where the mode forbids it (Linux)."""
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's capabilities")
def test_a_folder_that_turns_read_only(many: Path, tmp_path: Path, command: Run) -> None:
    out = tmp_path / "out"
    process = infer(many, "--out", out, "--workers", "1", before=obey_modes)
    for line in process.stdout:
        if line.startswith("[2/4]"):
            out.chmod(0o500)
            break
    _, stderr = process.communicate(timeout=300)
    out.chmod(0o700)
    assert process.returncode == 1
    one_line(stderr, str(out), "Permission denied")
    whole = {path: path.stat().st_mtime_ns for path in out.glob("*.nii.gz")}
    assert 2 <= len(whole) < 4
    again = command("infer", many, "--out", out, "--backend", "onnxruntime")
    assert again.returncode == 0, again.stderr
    assert f"{4 - len(whole)} done, {len(whole)} done before" in again.stdout
    assert all(path.stat().st_mtime_ns == when for path, when in whole.items())
    assert not list(out.glob("**/.partial-*"))


def test_names_of_any_kind_and_links_in_circles(tmp_path: Path, head: nibabel.Nifti1Image, command: Run) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    (scans / "deep").mkdir(parents=True)
    long = "x" * 240
    head = few_slices(head, 4)
    for name in ("Übung 腮腺", long, "a b'c"):
        nibabel.save(head, scans / f"{name}.nii.gz")
    nibabel.save(head, scans / "deep" / f"{long}.nii.gz")
    (scans / "loop").symlink_to(scans)
    (scans / "self.nii.gz").symlink_to(scans / "self.nii.gz")
    os.mkfifo(scans / "pipe.nii")
    words = ("infer", scans, "--out", out, "--backend", "onnxruntime")
    done = command(*words)
    assert done.returncode == 3, done.stderr
    one_line(done.stderr, "self.nii.gz", "a link that leads nowhere")
    masks = {path.name for path in out.glob("*.nii.gz")}
    assert {"Übung 腮腺.nii.gz", "a b'c.nii.gz"} <= masks
    assert len(masks) == 4
    assert len(statuses(out)) == 5
    assert "4 done before" in command(*words).stdout


def test_two_runs_in_one_folder(many: Path, tmp_path: Path, command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parotid_seg.files.PATIENCE_S", 0.2)
    out = tmp_path / "out"
    out.mkdir()
    with Journal(out).writing():
        second = command("infer", many, "--out", out, "--backend", "onnxruntime")
    assert second.returncode == 1
    one_line(second.stderr, str(out), "another run is working in this folder")
    assert {path.name for path in out.iterdir()} == {".lock", "journal.jsonl"}


def test_scans_that_vanish_half_way_cost_only_themselves(model: Backend, many: Path, tmp_path: Path) -> None:
    out, failures = tmp_path / "out", []

    def vanish(outcome: Outcome) -> None:
        (many / "s3.nii.gz").unlink(missing_ok=True)
        if outcome.status == "failed":
            failures.append(outcome.entry.failure)

    infer_here([many], out, lambda: model, InferOptions(workers=1), progress=vanish)
    assert failures == [f"{many}/s3.nii.gz: no such file, expected the case's channel CT"]
    assert [status for _, status in sorted(statuses(out).items())] == ["done"] * 3 + ["failed"]


def test_a_reader_that_goes_away(many: Path, tmp_path: Path, command: Run) -> None:
    """`parotid-seg infer ... | head -1`: the run ends or goes on, without a traceback, and nothing is half-written."""
    out = tmp_path / "out"
    process = infer(many, "--out", out, "--workers", "1")
    process.stdout.readline()
    process.stdout.close()
    stderr = process.stderr.read()
    process.wait(timeout=300)
    assert "Traceback" not in stderr
    assert not list(out.glob("**/.partial-*"))
    assert command("infer", many, "--out", out, "--backend", "onnxruntime").returncode == 0
