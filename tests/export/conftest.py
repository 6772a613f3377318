"""A small model, trained once for all workers, and what is made of it."""

import json
import shutil
from pathlib import Path

import onnx
import pytest

from parotid_seg.contract import Contract
from parotid_seg.export import export as module
from parotid_seg.export.onnx_file import to_onnx
from parotid_seg.export.parity import Parity
from parotid_seg.runtime.engines.engine_file import BatchProfile
from parotid_seg.train.checkpoint import Checkpoint, load_checkpoint
from tests.command_line import Run
from tests.nifti_marks import BORN, MARK, mark
from tests.train.conftest import balls, sequences, short_config, small_config, without_pictures  # noqa: F401
from tests.workers import shared_folder, shared_value


@pytest.fixture(scope="session")
def marked(balls: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """The same data, but headers and free texts of dataset.json say who the patients are."""
    folder = shutil.copytree(balls, tmp_path_factory.mktemp("data") / "balls")
    for path in folder.rglob("*.nii.gz"):
        mark(path)
    description = json.loads((folder / "dataset.json").read_text())
    texts = dict.fromkeys(("description", "reference", "licence", "release", "patient"), f"{MARK}, born {BORN}")
    (folder / "dataset.json").write_text(json.dumps({**texts, **description}))
    return folder


@pytest.fixture(scope="session")
def run(forked: Run, marked: Path, small_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """The folder of a training run, with the command's output. It is long enough for INT8 to pass with a margin."""

    def train(folder: Path) -> None:
        longer = folder / "longer.toml"
        longer.write_text(small_config.read_text().replace("images_per_epoch = 160", "images_per_epoch = 320"))
        done = forked("train", marked, "--out", folder, "--config", longer, "--device", "cpu", timeout=600)
        assert done.returncode == 0, done.stderr
        (folder / "train.txt").write_text(done.stdout + done.stderr)

    return shared_folder(tmp_path_factory, "run", train)


@pytest.fixture(scope="session")
def checkpoint(run: Path) -> Checkpoint:
    return load_checkpoint(run / "best.pt")


@pytest.fixture(scope="session")
def translated(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> tuple[onnx.ModelProto, Contract]:
    """The FP32 graph and the contract without proof."""
    made: tuple[onnx.ModelProto, Contract] = shared_value(tmp_path_factory, "translated", lambda: to_onnx(checkpoint))
    return made


@pytest.fixture
def translated_before(monkeypatch: pytest.MonkeyPatch, translated: tuple[onnx.ModelProto, Contract]) -> None:
    """`export` takes the graph that is there, which saves seconds; `test_end_to_end` translates for itself."""

    def copy(_: object, *, probabilities: bool) -> tuple[onnx.ModelProto, Contract]:
        assert not probabilities
        model = onnx.ModelProto()
        model.CopyFrom(translated[0])
        return model, translated[1]

    monkeypatch.setattr(module, "to_onnx", copy)


@pytest.fixture(scope="session")
def two(balls: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A patient of the training and one of the validation, to prove models on."""
    folder = tmp_path_factory.mktemp("two")
    for place in ("imagesTr", "labelsTr"):
        (folder / place).mkdir()
        for case in ("p0", "p4"):
            for path in (balls / place).glob(f"{case}*"):
                shutil.copy(path, folder / place)
    return folder


@pytest.fixture(scope="session")
def parity(checkpoint: Checkpoint, translated: tuple[onnx.ModelProto, Contract], two: Path) -> Parity:
    """The trained model's masks, to compare with."""
    return Parity(checkpoint.network(), translated[1], two / "imagesTr", BatchProfile(1, 7, 16))
