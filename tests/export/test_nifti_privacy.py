"""What the files of training data say about patients gets into no training run, no model and no engine."""

import json
import shutil
from pathlib import Path

import pytest

from tests.command_line import Run
from tests.nifti_marks import BORN, MARK, mark
from tests.runtime.pipeline.test_dicom_privacy import tellers, tells

pytestmark = pytest.mark.slow


def test_neither_training_nor_export_tells_of_the_patients(
    command: Run, balls: Path, small_config: Path, tmp_path: Path
) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(balls, data)
    for path in data.rglob("*.nii.gz"):
        mark(path)
    description = json.loads((data / "dataset.json").read_text())
    texts = dict.fromkeys(("description", "reference", "licence", "release", "patient"), f"{MARK}, born {BORN}")
    (data / "dataset.json").write_text(json.dumps({**texts, **description}))
    config = tmp_path / "quick.toml"
    config.write_text(small_config.read_text().replace("images_per_epoch = 640", "images_per_epoch = 32"))
    words = ("train", data, "--out", out, "--config", config, "--device", "cpu", "--max-minutes", 0.001)
    trained = command(*words)
    assert trained.returncode == 0, trained.stderr
    exported = command("export", out / "best.pt", "--out", out / "model.onnx", "--verify", data / "imagesTr")
    assert exported.returncode == 0, exported.stderr
    assert {path.name for path in out.iterdir()} >= {"best.pt", "metrics.jsonl", "samples.png", "model.onnx"}
    assert tellers(out) == set()
    assert not any(tells(text.encode()) for done in (trained, exported) for text in (done.stdout, done.stderr))
