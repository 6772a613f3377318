"""Whole measurements, short ones: what is in the result, what is left out, what the command says."""

import dataclasses
import json
import re
import shutil
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from parotid_seg import files
from parotid_seg.bench import end_to_end, engine_process, roofline, turns
from parotid_seg.bench import measure as module
from parotid_seg.bench.bench_options import BenchOptions
from parotid_seg.bench.compare_results import compare_files
from parotid_seg.bench.measure import Bench
from parotid_seg.bench.result import Result
from parotid_seg.bench.roofline import Peaks
from parotid_seg.bench.selection import scans_for
from parotid_seg.bench.text_report import report
from parotid_seg.contract import Contract
from parotid_seg.errors import InputError, OutputError, ParotidSegError
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.engines.autotune import Candidate
from parotid_seg.runtime.engines.onnxruntime.cpu import OnnxRuntimeBackend
from parotid_seg.runtime.pipeline.discovery import find_scans
from tests.bench import engines
from tests.bench.engines import PLAIN, candidate
from tests.command_line import Run
from tests.processes.forked import LIGHT, Forked, ForkedPrograms
from tests.runtime.pipeline.whole_runs.test_dicom_privacy import tellers, tells
from tests.scan.nifti_marks import mark

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def short(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measurements are short; those whose figures are not asked for have one launch, and peaks that are made up."""
    if not request.node.get_closest_marker("alone"):
        monkeypatch.setattr(module, "measured_peaks", lambda: Peaks({"fp32": 100.0}, {"fp32": "onnxruntime"}, 10.0))
        monkeypatch.setattr(turns, "LAUNCHES", 1)
        monkeypatch.setattr(module, "LAUNCHES", 1)
    monkeypatch.setattr(turns, "ROUND_S", 0.02)
    monkeypatch.setattr(end_to_end, "RUNS", 1)
    monkeypatch.setattr(end_to_end, "SCANS_PER_RUN", 2 if request.node.get_closest_marker("alone") else 1)
    monkeypatch.setitem(roofline.SIDE, "cpu", 768)
    monkeypatch.setattr(roofline, "COPIED_BYTES", 1 << 24)
    monkeypatch.setattr(engine_process, "subprocess", ForkedPrograms)


def measured(
    contract: Contract, scan: tuple[Path], candidates: list[Candidate], sizes: tuple[int, ...] = (1, 2), **more: Any
) -> Result:
    options = BenchOptions(batch_sizes=sizes, minutes=0.01)
    return Bench(DEFAULT_MODEL, contract, candidates, [scan], options, **more).run()


@pytest.mark.alone
def test_a_result(contract: Contract, scan: tuple[Path]) -> None:
    one_thread = candidate("one thread", partial(OnnxRuntimeBackend, DEFAULT_MODEL, 1))
    result = measured(contract, scan, [PLAIN, one_thread])
    assert result.all_same
    assert [row.name for row in result.rows] == ["plain", "one thread"]
    for row in result.rows:
        assert len(row.cold_s) == len(row.warm_s) == turns.LAUNCHES
        assert [speed.batch_size for speed in row.speeds] == [1, 2]
        for speed in row.speeds:
            assert speed.real.count >= turns.LAUNCHES * turns.LEAST_ROUNDS * turns.LEAST_IN_A_ROUND
            assert [*map(len, speed.rounds_ms)] == [*map(len, speed.transfers_ms)]
            assert len(speed.rounds_ms) == turns.LAUNCHES
            assert 0 <= speed.undisturbed <= 1
            assert speed.slices_a_second == pytest.approx(1000 * speed.slices / speed.median_ms)
            assert speed.parity.within
            counted = speed.roofline.multiply_adds / speed.batch_size
            assert counted == pytest.approx(contract.cost["multiply_adds"], rel=0.03)  # resampling depends on the chunk
            assert 0 < speed.roofline.share < 1.5
        assert row.end_to_end.explained == pytest.approx(1, abs=0.2)  # a busy machine pauses between the stages
        assert row.end_to_end.scans == 2
    text = report(result)
    for words in ("| plain ", "| one thread ", "the same", "## Scans, from file to mask", "product fp32"):
        assert words in text
    assert json.loads(result.to_json())["rows"][0]["speeds"][0]["batch_size"] == 1


def test_what_fails_is_left_out_and_told(
    contract: Contract, few: tuple[Path], capfd: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    failing = (engines.crash, engines.refuse, engines.lack)
    field = [PLAIN, *(candidate(each.__name__, each) for each in failing)]
    result = measured(contract, few, field, sizes=(2,), say=said.append)
    assert [row.name for row in result.rows] == ["plain"]
    assert [what for what, _ in result.left_out] == ["crash", "refuse", "lack"]
    assert "left out: crash: crash: its process ended with status 7" in said
    assert not result.all_same
    assert "- refuse: model.onnx: no such operator" in report(result)


def test_nothing_to_measure(contract: Contract, few: tuple[Path]) -> None:
    with pytest.raises(ParotidSegError, match=r"nothing could be measured: refuse: .* no such operator"):
        measured(contract, few, [candidate("refuse", engines.refuse)], sizes=(1,))


def test_a_scan_that_fails_costs_the_whole_runs_only(contract: Contract, few: tuple[Path]) -> None:
    result = measured(contract, few, [candidate("blind", engines.Blind), PLAIN], sizes=(2,))
    assert [(row.name, row.end_to_end is None) for row in result.rows] == [("blind", True), ("plain", False)]
    ((what, why),) = result.left_out
    assert what == "whole runs of blind"
    assert re.fullmatch(r"1 of 1 scans failed, the first: .*head.nii.gz: no parotid gland found .*", why)


def test_other_masks_are_told(contract: Contract, few: tuple[Path]) -> None:
    result = measured(contract, few, [candidate("wrong", engines.Wrong)], sizes=(2,))
    assert not result.all_same
    assert "**OTHER MASKS**" in report(result)


def test_batches_beyond_the_profile(contract: Contract, few: tuple[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "USUAL_SIZES", (1, 4, 6))
    limited = candidate("limited", engines.Limited)
    with pytest.raises(InputError, match="--batch-sizes: found 5 for limited, but the engine was built for at most 4"):
        measured(contract, few, [limited], sizes=(2, 5))
    result = Bench(DEFAULT_MODEL, contract, [limited], [few], BenchOptions(minutes=0.01)).run()
    assert [speed.batch_size for speed in result.rows[0].speeds] == [1, 4]
    assert ("limited, batches of 6", "the engine was built for at most 4") in result.left_out


def test_scans_that_are_too_short(contract: Contract, few: tuple[Path]) -> None:
    with pytest.raises(InputError, match="no scan has so many slices"):
        measured(contract, few, [PLAIN], sizes=(500,))
    result = measured(contract, few, [PLAIN], sizes=(1, 500))
    assert result.left_out[0][0] == "batches of 500"


@pytest.mark.parametrize(
    ("options", "words", "status"),
    [
        (("--model", "missing.onnx"), "missing.onnx", 2),
        (("--model", __file__), "not an ONNX model", 1),
        (("--backend", "faster"), "--backend: found 'faster', expected one of: onnxruntime, openvino", 2),
        (
            ("--backend", "tensorrt", "--device", "cpu"),
            "--backend tensorrt: runs on NVIDIA GPUs, found --device cpu",
            2,
        ),
        (("--device", "tpu"), "--device: found 'tpu'", 2),
        (("--batch-sizes", "0"), "--batch-sizes: found 0, expected at least 1", 2),
        (("--batch-sizes", "1,x"), "--batch-sizes: found '1,x', expected whole numbers", 2),
        (("--batch-sizes", "1_6"), "--batch-sizes: found '1_6', expected whole numbers", 2),
        (("--minutes", "0"), "--minutes: found 0, expected more than 0", 2),
        (("--minutes", "inf"), "--minutes: found inf, expected at most 4294967295", 2),
        (("--scans", "."), "no scan in this folder", 1),
    ],
)
def test_bad_input_is_one_line(
    command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], words: str, status: int
) -> None:
    monkeypatch.chdir(tmp_path)
    done = command("bench", "--out", "out", *options)
    assert (done.returncode, done.stdout) == (status, "")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_command(command: Run, tmp_path: Path, few: tuple[Path]) -> None:
    out, scans = tmp_path / "out", tmp_path / "scans"
    scans.mkdir()
    shutil.copy(few[0], scans)
    mark(scans / few[0].name)
    words = ("--backend", "onnxruntime", "--batch-sizes", "2", "--minutes", "0.01", "--scans", scans)
    done = command("bench", "--out", out, *words, "--layers")
    assert (done.returncode, done.stderr) == (0, "")
    assert (out / "bench.md").read_text() in done.stdout
    assert "## Layers of onnxruntime FP32" in done.stdout
    assert not compare_files(out / "bench.json", out / "bench.json").worse
    with Image.open(out / "bench.png") as picture:
        assert picture.size[0] > 1000
        assert len(picture.convert("RGB").getcolors(1 << 24) or ()) > 50
    assert tellers(out) == set()
    assert not tells(done.stdout.encode())


def test_results_that_cannot_be_written_are_told_first(command: Run, tmp_path: Path) -> None:
    for name in ("bench.json", "bench.md", "bench.png"):
        out = tmp_path / name.partition(".")[2]
        (out / name).mkdir(parents=True)
        done = command("bench", "--out", out, "--model", "missing.onnx")
        error = f"parotid-seg: {out / name}: cannot be written (a folder has this name)\n"
        assert (done.returncode, done.stdout, done.stderr) == (1, "", error)


def test_the_report_is_printed_even_if_it_cannot_be_written(
    command: Run, tmp_path: Path, few: tuple[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(text: str, path: Path) -> None:
        raise OutputError("cannot be written (No space left on device)", path=path)

    monkeypatch.setattr(files, "write_text", full)
    words = ("--backend", "onnxruntime", "--batch-sizes", "2", "--minutes", "0.01", "--scans", few[0].parent)
    done = command("bench", "--out", tmp_path, *words)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "## Batches" in done.stdout
    assert "wrote" not in done.stdout


@pytest.mark.parametrize("option", ["--model=m.onnx", "--out=out", "--batch-sizes=3", "--backend=openvino", "--quiet"])
def test_compare_takes_no_options_of_bench(command: Run, option: str) -> None:
    done = command("bench", option, "compare", "a.json", "b.json")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"parotid-seg: {option.partition('=')[0]}: not an option of 'bench compare'")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_what_is_interrupted_leaves_no_scan_and_no_mask(
    tmp_path: Path, few: tuple[Path], number: int, status: int
) -> None:
    words = ("--backend", "onnxruntime", "--batch-sizes", "2", "--minutes", "0.01", "--scans", few[0].parent)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    run = partial(engines.endless_whole_runs, "bench", "--out", str(tmp_path / "out"), *map(str, words))
    bench = Forked(run, {"TMPDIR": str(temporary)}, LIGHT)
    until = time.monotonic() + 120
    while not [*temporary.rglob("*.nii.gz")][1:] and time.monotonic() < until:  # the scan, and a mask
        time.sleep(0.05)
    before = [path.name for path in temporary.iterdir()]
    bench.send_signal(number)
    _, errors = bench.communicate(timeout=60)
    assert len(before) == 2, errors
    assert (bench.returncode, "Traceback" in errors) == (status, False)
    assert [*temporary.iterdir()] == []


def test_scans_are_linked_where_they_can(few: tuple[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(end_to_end, "SCANS_PER_RUN", 2)
    assert end_to_end._gathered([few], tmp_path) == 2
    linked, copied = (tmp_path / number / few[0].name for number in ("0000", "0001"))
    assert (linked.is_symlink(), copied.is_symlink()) == (True, False)
    assert linked.read_bytes() == copied.read_bytes() == few[0].read_bytes()
    assert len(find_scans([tmp_path], ("CT",))[0]) == 2


def test_the_example_scan_is_a_ct(contract: Contract) -> None:
    mr = dataclasses.replace(contract, channels=("T1",), windows=(None,))
    with pytest.raises(
        InputError, match=r"--scans: the packaged example is a CT; name a folder of scans of the .*: T1"
    ):
        scans_for(None, mr)


def test_scans_that_are_not_measured_with_are_named(contract: Contract, few: tuple[Path], tmp_path: Path) -> None:
    shutil.copy(few[0], tmp_path)
    (tmp_path / "damaged.dcm").write_bytes(bytes(128) + b"DICM")
    nibabel.save(nibabel.Nifti1Image(np.zeros((64, 64, 20), np.int16), np.eye(4)), tmp_path / "constant.nii.gz")
    lines: list[str] = []
    assert [path.name for (path,) in scans_for(tmp_path, contract, lines.append)] == [few[0].name]
    assert [line.partition(":")[0] for line in lines] == ["not measured with"] * 2
    assert "damaged.dcm" in lines[0]
    assert "constant.nii.gz: " in lines[1]
    (tmp_path / few[0].name).unlink()
    with pytest.raises(InputError, match=r"^--scans: .*damaged.dcm: .*; .*constant.nii.gz: [^;]*$"):
        scans_for(tmp_path, contract)
