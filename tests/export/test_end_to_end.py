"""Train, export, infer, evaluate: the whole way on a data set made here, as a user walks it."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from parotid_seg.contract import METADATA_KEY, Contract
from parotid_seg.train.checkpoint import load_checkpoint
from tests.command_line import Run
from tests.runtime.pipeline.whole_runs.test_dicom_privacy import tellers

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(run: Path) -> Path:
    return run / "model.onnx"


def test_training_learns_and_leaves_what_it_promises(run: Path) -> None:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == [1, 2]
    assert records[-1]["loss"] < records[0]["loss"]
    assert records[-1]["validation_dsc"] > 0.8
    for name in ("best.pt", "last.pt", "config.toml", "curves.png", "samples.png"):
        assert (run / name).stat().st_size > 0


@pytest.mark.usefixtures("without_pictures")
def test_a_run_is_not_overwritten_and_resumes_to_the_same_weights(
    command: Run, balls: Path, short_config: Path, tmp_path: Path
) -> None:
    whole, cut = (("train", balls, "--out", tmp_path / name, "--config", short_config) for name in ("whole", "cut"))
    assert command(*whole, "--device", "cpu").returncode == 0
    again = command(*whole, "--device", "cpu")
    assert again.returncode == 1
    assert "holds a run already" in again.stderr
    assert "stopped after" in command(*cut, "--device", "cpu", "--max-minutes", 0.001).stdout
    assert len((tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()) == 1
    assert command(*cut, "--device", "cpu", "--resume").returncode == 0
    weights = [load_checkpoint(tmp_path / name / "last.pt").weights for name in ("whole", "cut")]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-3, atol=1e-3)
    other = command(*cut, "--device", "cpu", "--resume", "--seed", 5)
    assert other.returncode == 1
    assert "made with other settings: seed (it has 0, now 5); give the same again (settings are in " in other.stderr
    nothing = command("train", balls, "--out", tmp_path / "new", "--config", short_config, "--resume")
    assert nothing.returncode == 1
    assert "it holds no checkpoint; start without --resume" in nothing.stderr


def test_the_model_file_describes_itself(model: Path, balls: Path) -> None:
    content = onnx.load(model)
    onnx.checker.check_model(content, full_check=True)
    contract = Contract.from_json({e.key: e.value for e in content.metadata_props}[METADATA_KEY], where="x")
    assert contract.labels == ("background", "parotid_left", "parotid_right")
    assert contract.verification["lowest_dsc"] >= 0.998
    assert contract.training["data"] == "balls"
    assert {node.op_type for node in content.graph.node} >= {"LayerNormalization", "ArgMax", "MatMul"}
    assert content.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    text = model.read_bytes()
    assert b"site-packages" not in text
    assert b".py" not in text
    large = [w for w in content.graph.initializer if w.data_type == onnx.TensorProto.FLOAT and np.prod(w.dims) >= 256]
    assert not large, "large weights are stored in FP16"


def test_masks_of_the_exported_model_are_right(command: Run, model: Path, balls: Path, tmp_path: Path) -> None:
    words = ("--model", model, "--no-clean-up", "--backend", "onnxruntime")
    assert command("infer", balls / "imagesTr", "--out", tmp_path, *words).returncode == 0
    scored = command("evaluate", tmp_path, balls / "labelsTr", "--out", tmp_path / "scores.json")
    assert scored.returncode == 0, scored.stderr
    assert json.loads((tmp_path / "scores.json").read_text())["means"]["glands dsc"]["mean"] > 0.6


def test_neither_training_nor_export_tells_of_the_patients(run: Path, model: Path) -> None:
    """What NIfTI headers of training data say about them gets into no file and no output."""
    names = {"best.pt", "export.txt", "metrics.jsonl", "model.parity.json", "samples.png", "train.txt"}
    assert {path.name for path in run.iterdir()} >= {model.name, *names}
    assert tellers(run) == set()


@pytest.mark.parametrize("content", [b"", b"text", None])
def test_bad_checkpoints(command: Run, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "best.pt"
    if content is not None:
        path.write_bytes(content)
    done = command("export", path, "--out", tmp_path / "m.onnx")
    assert done.returncode == (2 if content is None else 1)
    assert len(done.stderr.splitlines()) == 1
    assert str(path) in done.stderr
