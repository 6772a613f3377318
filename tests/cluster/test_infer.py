"""`parotid-seg infer --cluster` as a user runs it, on a Ray of this machine."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
import pytest

from parotid_seg.cli import main
from parotid_seg.cluster import ray_executor
from parotid_seg.cluster.cluster_options import ClusterOptions
from parotid_seg.cluster.ray_executor import NO_TELEMETRY, RayExecutor, model_for_hosts
from parotid_seg.errors import InputError, ModelError, ParotidSegError
from parotid_seg.runtime.engines.model_options import ModelOptions
from parotid_seg.runtime.pipeline.infer_options import InferOptions
from parotid_seg.runtime.report.results import read_results
from tests.command_line import Run
from tests.runtime.pipeline.whole_runs.test_infer import one_line
from tests.small_files import summary_rows

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, head: nibabel.Nifti1Image) -> Path:
    """Four scans that differ, and one that is none; the last is large, so that a run can be hit before it has ended."""
    folder = tmp_path_factory.mktemp("many")
    small = head.slicer[:, :, 3:11]
    large = nibabel.Nifti1Image(np.asarray(head.dataobj).repeat(3, axis=0).repeat(3, axis=1), head.affine)
    for index, some in enumerate((small, small, small, large)):
        image = nibabel.Nifti1Image(np.asarray(some.dataobj) + np.int16(index), some.affine)
        nibabel.save(image, folder / f"s{index}.nii.gz")
    (folder / "damaged.nii").write_bytes(b"x" * 1000)
    return folder


@pytest.fixture(scope="module")
def alone(many: Path, tmp_path_factory: pytest.TempPathFactory, command: Run) -> Path:
    """What one machine makes of them."""
    out = tmp_path_factory.mktemp("alone")
    assert command("infer", many, "--out", out, "--backend", "onnxruntime").returncode == 3
    return out


HEAD = """
import sys
import ray
started = ray.init(address="local", num_cpus=2, object_store_memory=2**28, include_dashboard=False, log_to_driver=False)
print(started.address_info["gcs_address"], flush=True)
sys.stdin.read()
"""
"""Starts a cluster, prints its address, and ends it once standard input is closed."""
STARTS, STARTS_S = 3, 120
"""On a machine with much other work Ray gives its own start up, or hangs: how often, and how long, it may try."""


class Cluster(NamedTuple):
    """A cluster that several runs use.

    Attributes:
        address: HOST:PORT.
        pid: the process whose children it consists of.
    """

    address: str
    pid: int


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """It has two cores, and a token that commands find in their environment."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**NO_TELEMETRY, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}.items():
            patch.setenv(name, value)
        started = (_head() for _ in range(STARTS))
        head, address = next((head, address) for head, address in started if address)
        try:
            yield Cluster(address, head.pid)
            head.communicate(timeout=STARTS_S)
        finally:
            _end(head)


def _head() -> "tuple[subprocess.Popen[str], str]":
    """A cluster's first process and its address; no address, and the process ended, if Ray did not get so far."""
    words, pipe = [sys.executable, "-c", HEAD], subprocess.PIPE
    head = subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, start_new_session=True)
    late = threading.Timer(STARTS_S, _end, [head])
    late.start()
    address = head.stdout.readline().strip()
    late.cancel()
    if not address:
        _end(head)
    return head, address


def _end(head: "subprocess.Popen[str]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(head.pid, signal.SIGKILL)
    head.wait()


def masks(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("*.nii.gz")}


def start(*arguments: object) -> "subprocess.Popen[str]":
    words = [sys.executable, "-m", "parotid_seg", "infer", *map(str, arguments)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def after_the_first(process: "subprocess.Popen[str]") -> str:
    """What a run prints until its first case has ended."""
    return printed_until(process, "[")


def printed_until(process: "subprocess.Popen[str]", start: str) -> str:
    """What a run prints up to a line."""
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(start):
            break
    return "".join(lines)


def ended(out: Path) -> dict[str, int]:
    return json.loads((out / "run.json").read_text())["cases"]


def children(pid: int, name: str = "") -> list[int]:
    """Processes that another has started, by a word of their command line."""
    found = subprocess.run(["pgrep", "-P", str(pid), "-f", name], capture_output=True, text=True, check=False)
    return [int(each) for each in found.stdout.split()]


def journalled(out: Path) -> "Counter[str]":
    entries = map(json.loads, (out / "journal.jsonl").read_text().splitlines())
    return Counter(entry["case"] for entry in entries if entry["status"] == "done")


def test_a_lost_cluster_is_one_line_and_the_run_goes_on_to_the_results_of_one_machine(
    many: Path, alone: Path, cluster: Cluster, tmp_path: Path, command: Run
) -> None:
    out = tmp_path / "out"
    process = start(many, "--out", out, "--cluster", "local", "--workers", "1", "--worker-cpus", "2")
    printed_until(process, "5 scans; Ray")
    (client,) = children(process.pid, "parotid_seg.cluster.driver")
    own = children(client)  # the run's own cluster, and no other of this machine
    after_the_first(process)
    for pid in own:
        os.kill(pid, signal.SIGKILL)
    begun = time.monotonic()
    _, stderr = process.communicate(timeout=300)
    assert time.monotonic() - begun < 120
    assert process.returncode == 1
    *before, last = stderr.splitlines()
    assert last.startswith("parotid-seg: --cluster local: lost: ")
    assert last.endswith("the same command goes on with the rest")
    assert all(line.startswith("parotid-seg: ") and "damaged.nii" in line for line in before)
    assert (out / "summary.csv").exists()
    ended_before = journalled(out)
    assert 0 < len(ended_before) < 4

    done = command("infer", many, "--out", out, "--cluster", cluster.address, "--workers", "2")
    assert done.returncode == 3, done.stderr
    one_line(done.stderr, "damaged.nii: ")
    assert "5 scans; Ray" in done.stdout
    assert masks(out) == masks(alone)
    assert journalled(out) == dict.fromkeys(("s0", "s1", "s2", "s3"), 1)
    same = ("case", "left_ml", "right_ml", "flags", "reason", "mask", "source", "precision")
    assert [[row[name] for name in same] for row in summary_rows(out)] == [
        [row[name] for name in same] for row in summary_rows(alone)
    ]
    run = json.loads((out / "run.json").read_text())
    assert run["cluster"] == {"address": cluster.address, "ray": run["versions"]["ray"], "hosts": 1, "workers": 2}
    assert ended(out) == {"done": 4 - len(ended_before), "skipped": len(ended_before), "failed": 1}
    assert (out / "report.html").exists()
    assert not list(out.glob("**/.partial-*"))


def test_scans_and_results_behind_urls_and_a_killed_worker_which_costs_nothing(
    many: Path, alone: Path, cluster: Cluster, tmp_path: Path
) -> None:
    """One mask is there already, as if made by a run before."""
    out = tmp_path / "bucket" / "out"
    out.mkdir(parents=True)
    shutil.copy(alone / "s3.nii.gz", out)
    (entry,) = (line for line in (alone / "journal.jsonl").read_text().splitlines() if json.loads(line)["case"] == "s3")
    (out / "journal.jsonl").write_text(entry.replace(str(many), f"file://{many}") + "\n")
    process = start(f"file://{many}", "--out", f"file://{out}", "--cluster", cluster.address, "--workers", "1")
    told = after_the_first(process)
    workers = [pid for each in children(cluster.pid) for pid in children(each, "MapWorker")]
    assert workers
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 3, stderr
    one_line(stderr, f"file://{many}/damaged.nii: ")
    assert "no report.html" in told + stdout
    assert ended(out) == {"done": 3, "skipped": 1, "failed": 1}
    assert masks(out) == masks(alone)
    assert journalled(out) == dict.fromkeys(("s0", "s1", "s2", "s3"), 1)
    assert {row["source"] for row in summary_rows(out)} == {f"file://{path}" for path in many.iterdir()}
    assert {case.scan.source for case in read_results(out / "results.json").cases} == {
        row["source"] for row in summary_rows(out)
    }
    assert len(list((out / "pictures").glob("*.png"))) == 3
    assert {path.name for path in out.iterdir() if not path.name.endswith(".nii.gz")} == {
        "journal.jsonl", "summary.csv", "results.json", "run.json", "itk-snap-labels.txt", "pictures",
    }  # fmt: skip


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 2) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["parotid-seg", "infer", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
    assert left.value.code == status
    text = capsys.readouterr().err
    one_line(text)
    return text


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--cluster", "somewhere"), "--cluster: found 'somewhere', expected local, auto or HOST:PORT"),
        (("--cluster", "127.0.0.1:1"), "--cluster 127.0.0.1:1: cannot be reached"),
        (("--cluster", "local", "--workers", "0"), "--workers: found 0, expected at least 1"),
        (("--cluster", "local", "--worker-cpus", "0"), "--worker-cpus: found 0, expected at least 1"),
        (("--cluster", "local", "--worker-gpus", "1.5"), "--worker-gpus: found 1.5, expected"),
        (("--cluster", "local", "--device", "cuda:1"), "--device: found 'cuda:1', expected cpu or cuda"),
        (("--cluster", "local", "--backend", "tensorrt"), "expected an .engine file with --cluster"),
        (("--cluster", "local", "--backend", "turbo"), "--backend: found 'turbo'"),
        (("--cluster", "local", "--triton", "127.0.0.1:1"), "expected no --triton"),
        (("--worker-cpus", "2"), "--worker-cpus: sets the resources of a cluster's worker, expected --cluster"),
    ],
)
def test_options_that_cannot_be(
    many: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], told: str
) -> None:
    status = 1 if "reached" in told else 2
    assert told in refusal(capsys, many, "--out", tmp_path / "out", *options, status=status)
    assert not (tmp_path / "out").exists()


def test_a_worker_that_no_host_has_room_for(
    many: Path, cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--cluster", cluster.address, "--worker-cpus", "999")
    text = refusal(capsys, many, "--out", tmp_path / "out", *options, status=1)
    assert "no host has 999 CPUs and 0 GPUs for a worker, the largest has 2 and 0" in text
    assert not (tmp_path / "out").exists()


def test_urls_want_a_cluster(many: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "expected --cluster" in refusal(capsys, "s3://bucket/scans", "--out", tmp_path / "out")
    assert "expected --cluster" in refusal(capsys, many, "--out", "s3://bucket/out")


def test_without_ray(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_for_hosts(ModelOptions(), InferOptions())
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"pip install 'parotid-seg\[ray\]'"):
        RayExecutor(ClusterOptions("local"), None, model, "", print)


def test_a_client_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    program = (
        "import os, pickle, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "pickle.load(sys.stdin.buffer); os.close(1); time.sleep(60)"
    )
    monkeypatch.setattr(ray_executor, "command_of", lambda _: [sys.executable, "-c", program])
    monkeypatch.setattr(ray_executor, "LEAVES_S", 0.3)
    model = model_for_hosts(ModelOptions(), InferOptions())
    begun = time.monotonic()
    with pytest.raises(ParotidSegError, match=r"lost: its process did not end within 0\.3 s"):
        RayExecutor(ClusterOptions("local"), None, model, "", print)
    assert time.monotonic() - begun < 30


def test_a_model_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file, expected a model file"):
        model_for_hosts(ModelOptions(tmp_path / "none.onnx"), InferOptions())


def test_one_machine_does_without_ray() -> None:
    script = "import sys; import parotid_seg.runtime.pipeline.run; print({'ray', 'fsspec'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
