"""A small model, trained once for all workers, and what is made of it."""

import json
import pickle
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch

from parotid_seg.contract import Contract
from parotid_seg.export import verified_export as module
from parotid_seg.export.onnx_file import to_onnx
from parotid_seg.export.parity import Parity
from parotid_seg.runtime.engines.engine_file import BatchProfile
from parotid_seg.scan.chunks import Chunk, chunks
from parotid_seg.scan.volume import Orientation, Volume
from parotid_seg.train.checkpoint import Checkpoint, build_network, load_checkpoint
from parotid_seg.train.settings import load_config
from tests.command_line import Run
from tests.processes.workers import shared_folder
from tests.scan.nifti_marks import BORN, MARK, mark
from tests.train.conftest import ONE_STAGE, balls, sequences, short_config, small_config, without_pictures  # noqa: F401

TRANSLATED = "translated.pickle"


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
def run(
    forked: Run,
    command: Run,
    marked: Path,
    small_config: Path,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The folder of a training run and of the model exported from it, with what both commands print.

    The training is long enough for INT8 to pass with a margin. It has two epochs only, as each draws pictures.
    """

    def train(folder: Path) -> None:
        longer = folder / "longer.toml"
        settings = small_config.read_text().replace("images_per_epoch = 160", "images_per_epoch = 640")
        longer.write_text(settings.replace("epochs = 4\n", "epochs = 2\n"))
        done = forked("train", marked, "--out", folder, "--config", longer, "--device", "cpu", timeout=600)
        assert done.returncode == 0, done.stderr
        (folder / "train.txt").write_text(done.stdout + done.stderr)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "to_onnx", partial(translated_and_kept, folder / TRANSLATED))
            done = command(
                "export", folder / "best.pt", "--out", folder / "model.onnx", "--verify", marked / "imagesTr"
            )
        assert done.returncode == 0, done.stderr
        (folder / "export.txt").write_text(done.stdout + done.stderr)

    return shared_folder(tmp_path_factory, "run", train)


def translated_and_kept(path: Path, checkpoint: Checkpoint, **options: Any) -> tuple[onnx.ModelProto, Contract]:
    """What `to_onnx` gives, which takes a dozen seconds; it is kept in a file for `translated`."""
    made = to_onnx(checkpoint, **options)
    path.write_bytes(pickle.dumps(made))
    return made


@pytest.fixture(scope="session")
def checkpoint(run: Path) -> Checkpoint:
    return load_checkpoint(run / "best.pt")


@pytest.fixture(scope="session")
def translated(run: Path) -> tuple[onnx.ModelProto, Contract]:
    """The FP32 graph and the contract without proof."""
    made: tuple[onnx.ModelProto, Contract] = pickle.loads((run / TRANSLATED).read_bytes())
    return made


@pytest.fixture
def translated_before(monkeypatch: pytest.MonkeyPatch, translated: tuple[onnx.ModelProto, Contract]) -> None:
    """`export` takes the graph that is there, which saves seconds; the one of `run` has translated it."""

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


class Translation(NamedTuple):
    """A network as a graph.

    Attributes:
        model, contract: as `to_onnx` gives them, with probabilities.
        before, after: the network's weights before and after its translation.
    """

    model: onnx.ModelProto
    contract: Contract
    before: dict[str, torch.Tensor]
    after: dict[str, torch.Tensor]


@pytest.fixture(scope="session")
def two_channels(tmp_path_factory: pytest.TempPathFactory) -> Translation:
    """An untrained network of four labels and two channels, translated once for all workers."""

    def translate(folder: Path) -> None:
        checkpoint = untrained(folder, ("background", "gland", "tumour", "node"), ("T1", "T2"))
        before = {name: value.clone() for name, value in checkpoint.weights.items()}
        made = Translation(*to_onnx(checkpoint, probabilities=True), before, checkpoint.weights)
        (folder / TRANSLATED).write_bytes(pickle.dumps(made))

    made: Translation = pickle.loads(
        (shared_folder(tmp_path_factory, "two_channels", translate) / TRANSLATED).read_bytes()
    )
    return made


def two_patients(contract: Contract) -> Iterator[tuple[Chunk, Chunk]]:
    """Chunks of two made scans of two channels, each with windows of its own."""
    voxels = np.random.default_rng(0).integers(0, 1000, (2, 2, 12, 30, 40)).astype(np.int16)
    windows = np.array([[[100, 900], [0, 400]], [[0, 500], [300, 800]]], np.float32)
    return zip(
        *(
            chunks(Volume(each, (3.0, 2.0, spacing), Orientation((0, 1, 2), (False,) * 3)), window, contract.grid, 5)
            for each, window, spacing in zip(voxels, windows, (2.0, 3.0), strict=True)
        ),
        strict=True,
    )


def untrained(folder: Path, labels: tuple[str, ...], channels: tuple[str, ...]) -> Checkpoint:
    """A network of one stage that was not trained and gives labels all over.

    Args:
        folder: for a file of its settings.
        labels, channels: its own.
    """
    path = folder / "one_stage.toml"
    path.write_text(ONE_STAGE)
    config = load_config("compact", path)
    torch.manual_seed(0)
    weights = build_network(config, len(channels), len(labels)).state_dict()
    weights["unet.classify.bias"].zero_()  # a new network calls little but background
    return Checkpoint(config, labels, channels, {}, weights, {})
