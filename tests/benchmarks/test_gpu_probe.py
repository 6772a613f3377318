"""The GPU kit's probe: each phase compared with the CPU, and what is tried again."""

import json
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
from gpu import inputs, planning, probe
from gpu.table import _probe_lines
from gpu.table import table as written
from gpu.tried import NOTHING_RAN

from tests.export.small_model import write_small_model


def in_process(work: Any, *arguments: Any, most_s: float, fails: bool = False) -> Any:
    assert most_s == 30.0
    if fails:
        raise RuntimeError("CUDA error 209")
    return work(*arguments)


@pytest.fixture
def probed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: nibabel.Nifti1Image) -> list[str]:
    """Words for a probe on the CPU of a small model, which is its own variant in FP16."""
    model = write_small_model(tmp_path / "small.onnx")
    monkeypatch.setattr(probe, "graph_file", lambda *_: model)
    monkeypatch.setattr(probe, "isolated", in_process)
    monkeypatch.setattr(probe, "TIMED", 2)
    nibabel.save(head, tmp_path / "head.nii.gz")
    words = ["--out", tmp_path / "out", "--work", tmp_path, "--device", "cpu", "--fp32", model, "--sizes", "2", "999"]
    return [str(word) for word in (*words, "--scans", tmp_path / "head.nii.gz")]


def test_a_probe_compares_each_phase_with_the_cpu(probed: list[str], tmp_path: Path) -> None:
    probe.main(probed)
    one, other, *fused = probe.read_probe(tmp_path / "out")
    assert (one["model"], other["model"]) == ("fp32", "fp16")
    assert [each["model"] for each in fused] == ["fp32 fused", "fp16 fused"]
    assert {each["ran"] for each in fused} == {"not on a CPU, which lacks its operators"}
    assert list(one["sizes"]) == ["2"]
    assert one["sizes"]["2"]["replayed"]["changed"] == 0
    assert one["sizes"]["2"]["replayed"]["of"] > one["sizes"]["2"]["plain"]["of"] > 0
    assert one["sizes"]["2"]["ms"]["compute"] > 0


def test_what_failed_is_probed_again_and_nothing_else(
    probed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results: list[Any] = [{"ran": "well"}, RuntimeError("CUDA error 209"), TimeoutError("stopped"), {"ran": 4}]
    tried, words = [], ["cuda" if word == "cpu" else word for word in probed]

    def once(name: str, *_: object) -> dict[str, Any]:
        tried.append(name)
        result = results.pop(0)
        if isinstance(result, Exception):
            raise result
        return dict(result)

    monkeypatch.setattr(probe, "expected_labels", lambda *_: {})
    monkeypatch.setattr(probe, "probe", once)
    with pytest.raises(SystemExit, match=r"^1$"):
        probe.main(words)
    found = {line["model"]: line for line in probe.read_probe(tmp_path / "out")}
    assert list(found) == list(inputs.GRAPHS)
    assert [line.get("error") for line in found.values()] == [None, "CUDA error 209", "stopped", None]
    results += [{"ran": "now"}] * 2
    probe.main(words)
    assert tried == [*inputs.GRAPHS, "fp16", "fp32 fused"]
    assert {line["model"]: line["ran"] for line in probe.read_probe(tmp_path / "out")}["fp16"] == "now"
    monkeypatch.setattr(probe, "expected_labels", lambda *_: pytest.fail("nothing is left to compare"))
    probe.main(words)


def test_a_probe_in_which_nothing_ran_says_so(probed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "expected_labels", lambda *_: {})
    monkeypatch.setattr(probe, "isolated", partial(in_process, fails=True))
    with pytest.raises(SystemExit, match=rf"^{NOTHING_RAN}$"):
        probe.main(["cuda" if word == "cpu" else word for word in probed])


def test_other_labels_are_named() -> None:
    rows = {
        "plain": {"changed": 3, "of": 100},
        "captured": {"changed": 0, "of": 9},
        "replayed": {"changed": 0, "of": 9},
    }
    line: dict[str, Any] = {"model": "fp16", "ran": "it", "sizes": {"16": {**rows, "ms": {}}}}
    assert "- fp16: it." in written({"probe": [line], "skipped": []})
    rows["replayed"]["changed"] = 1
    assert "- fp16: it; **other labels than the CPU's**: more than 3% changed." in "\n".join(_probe_lines([line]))


def test_changed_voxels_are_counted_by_phase() -> None:
    """Here a graph that is replayed on old inputs gives all later chunks the labels of the second."""
    turns = iter([1, 2, 2, 2, 2])
    gpu: Any = SimpleNamespace(start=lambda _: SimpleNamespace(result=lambda: np.full(10, next(turns))))
    chunks: Any = ["one", "two", "three"]
    found = probe.compared(gpu, chunks, [np.full(10, each, np.uint8) for each in (1, 2, 3)])
    assert {phase: row["changed"] for phase, row in found.items()} == {"plain": 0, "captured": 0, "replayed": 20}


def test_planning_times_chunks_of_several_numbers_of_samples(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(planning, "TRIED", (("fp32", "HEURISTIC"), ("fp16", "DEFAULT")))
    planning.main(["--out", str(tmp_path), "--device", "cpu", "--samples", "2", "1", "2"])
    lines = [json.loads(line) for line in (tmp_path / "planning.jsonl").read_text().splitlines()]
    assert [(line["graph"], line["search"]) for line in lines] == list(planning.TRIED)
    for line in lines:
        assert [samples for samples, _ in line["samples_and_ms"]] == [2, 1, 2]
        assert min(ms for _, ms in line["samples_and_ms"]) > 0 < line["computing_ms"]
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_planning_goes_on_after_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(planning, "TRIED", (("fp32", "HEURISTIC"),))
    with pytest.raises(SystemExit):
        planning.main(["--out", str(tmp_path), "--device", "cpu", "--fp32", str(tmp_path / "none.onnx")])
    assert "none.onnx" in json.loads((tmp_path / "planning.jsonl").read_text())["error"]
