"""What `export` refuses before anything is done, and what its lines say."""

from pathlib import Path
from typing import Any

import pytest
import torch

from parotid_seg.errors import OptionError
from parotid_seg.export.export_options import ExportOptions
from parotid_seg.export.ops_by_dtype import OpsByDtype
from parotid_seg.export.parity import ScanParity
from parotid_seg.export.proof import Proof
from parotid_seg.export.verified_export import export, serving_of
from parotid_seg.train.checkpoint import Checkpoint, build_network, save_checkpoint
from parotid_seg.train.settings import load_config


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"triton_device": "cpu"}, "expected --triton with it"),
        ({"triton_device": "tpu", "triton": Path("r")}, "--triton-device: found 'tpu', expected one of: cuda, cpu"),
        ({"triton_device": "cpu", "triton": Path("r"), "engine": "tensorrt"}, "an engine, which needs cuda"),
        ({"verify": Path("/gone")}, "--verify: /gone: no such file or folder"),
        ({"calibrate": Path("/gone")}, "--calibrate: /gone: no such file or folder"),
        ({"probabilities": True, "triton": Path("r")}, "labels only, expected no --triton with it"),
        ({"workspace_mib": 8}, "--workspace-mib: is for engines, expected --engine with it"),
        ({"runs_on": "this-gpu"}, "--runs-on: is for engines, expected --engine with it"),
        ({"version_compatible": True}, "--version-compatible: is for engines, expected --engine with it"),
        ({"timing_cache": Path("c")}, "--timing-cache: is for engines, expected --engine with it"),
        ({"weights": "fp32", "precision": "fp16"}, "weights of fp16 networks are stored in fp16, expected --precision"),
    ],
)
def test_what_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        ExportOptions(**options)


@pytest.mark.parametrize(
    ("out", "words"), [("m.bin", "ending in .onnx"), (".", "ending in .onnx"), ("m.onnx", "folder")]
)
def test_what_cannot_be_made(tmp_path: Path, out: str, words: str) -> None:
    (tmp_path / "m.onnx").mkdir()
    with pytest.raises(OptionError, match=f"--out: .*{words}"):
        export(tmp_path / "best.pt", tmp_path / out)


@pytest.mark.parametrize(("asked", "device"), [(None, "cuda"), ("cuda", "cuda"), ("cpu", "cpu")])
def test_the_server_runs_it_where_it_was_asked_for(asked: str | None, device: str) -> None:
    serving = serving_of(Path("folder", "mine.onnx"), ExportOptions(triton=Path("r"), triton_device=asked))
    assert (serving.name, serving.device) == ("mine", device)


@pytest.mark.parametrize(("images", "initial"), [(0, True), (8, False)])
def test_a_checkpoint_that_no_training_changed(short_config: Path, tmp_path: Path, images: int, initial: bool) -> None:
    config = load_config("compact", short_config)
    torch.manual_seed(0)
    weights = build_network(config, 1, 2).state_dict()
    training = {"epochs": 0, "images": images}
    save_checkpoint(Checkpoint(config, ("background", "gland"), ("CT",), training, weights, {}), tmp_path / "best.pt")
    said: list[str] = []
    with pytest.raises(OptionError, match="--verify"):  # ends it before the translation
        export(tmp_path / "best.pt", tmp_path / "model.onnx", ExportOptions(precision="int8"), said.append)
    line = f"note: {tmp_path / 'best.pt'} is the model of --init, unchanged: no training has changed it"
    assert (line in said) is initial


def test_figures_are_called_agreement() -> None:
    row = ScanParity(
        changed=0, changed_share=0.0, dsc=1.0, hd95_mm=0.0, volume_ml=0.0, scan="a", size=(1, 1, 1), batch_size=1
    )
    lines = Proof("fp32", (), (), (row,), 1, OpsByDtype({}), OpsByDtype({})).lines()
    assert lines[0].startswith("fp32: agreement with the trained model: a (1 x 1 x 1)")
