"""Who takes part in the race: for each its command, what its weights are, and what is to be known of its network."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nnunet import DEFAULT_TRAINER, TRAINED_TRAINER, NnUnet

from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.engines.model_file import read_model

HERE = Path(__file__).parent
OURS = "ours"
RANDOM = "random: speed only"
PACKAGED = "trained: the packaged model"


@dataclass(frozen=True)
class Job:
    """Scans to segment.

    Attributes:
        scans: their files.
        folder: holds just these.
        out: an empty folder for masks.
    """

    scans: Sequence[Path]
    folder: Path
    out: Path


@dataclass(frozen=True)
class Contestant:
    """Who runs.

    Attributes:
        title: for the table.
        weights: what they are.
        command: that does a job from start to end.
        about: makes what the contestant needs, if it is missing, and tells of its network and settings.
        environment: name of the environment it runs in, see `environments`.
        trained: whether its masks mean something.
        slow: gets fewer scans.
        engine_only: its last line tells `load_s` and `engine_s`, which count instead of the clock.
    """

    title: str
    weights: str
    command: Callable[[Job], list[str]]
    about: Callable[[], dict[str, object]]
    environment: str
    trained: bool = False
    slow: bool = False
    engine_only: bool = False


@dataclass(frozen=True)
class Ground:
    """Where everything is.

    Attributes:
        data: raw data set.
        checkpoint: of the packaged model, for the plain torch loop.
        environments: folder of the peers' environments.
        work: folder for what they make.
        own_python: the interpreter that runs ours.
    """

    data: Path
    checkpoint: Path
    environments: Path
    work: Path
    own_python: Path

    def peer_python(self, name: str) -> Path:
        """The interpreter of a peer."""
        return self.environments / name / "bin" / "python"


def contestants(ground: Ground) -> dict[str, Contestant]:
    """All of them by name, ours first."""
    return {**ours(ground), **monai(ground), **nnunet(ground)}


def chosen(everyone: Sequence[str], asked: Sequence[str]) -> list[str]:
    """Names that were asked for, whole ("nnunet-2d") or by their beginning ("nnunet"); ours always takes part.

    Raises:
        SystemExit: if nobody has such a name.
    """
    found = {OURS}
    for name in asked:
        named = [each for each in everyone if each == name] or [
            each for each in everyone if each.startswith(f"{name}-")
        ]
        if not named:
            raise SystemExit(f"no contestant {name}; there are {', '.join(everyone)}")
        found.update(named)
    return [each for each in everyone if each in found or not asked]


def ours(ground: Ground) -> dict[str, Contestant]:
    """`parotid-seg infer`, its model in bare engines, and its network in a plain loop."""

    def infer(*options: str) -> Callable[[Job], list[str]]:
        start = [str(ground.own_python), "-m", "parotid_seg", "infer"]
        return lambda job: [*start, *map(str, job.scans), "--out", str(job.out), *options]

    def bare(engine: str) -> Callable[[Job], list[str]]:
        start = [str(ground.own_python), str(HERE / "bare.py"), engine, str(DEFAULT_MODEL)]
        return lambda job: [*start, *map(str, job.scans)]

    def plain(job: Job) -> list[str]:
        script = HERE.parent / "speed" / "plain_loop.py"
        return [sys.executable, str(script), str(ground.checkpoint), str(job.out), *map(str, job.scans)]

    def network() -> dict[str, object]:
        contract = read_model(DEFAULT_MODEL).contract
        window = [contract.grid.size] * 2
        cost = {"parameters": contract.cost["parameters"], "multiply_adds_a_window": contract.cost["multiply_adds"]}
        return {**cost, "window": window}

    def row(title: str, command: Callable[[Job], list[str]], *, engine_only: bool = False) -> Contestant:
        environment = "race" if command is plain else OURS
        trained = not engine_only
        return Contestant(title, PACKAGED, command, network, environment, trained, engine_only=engine_only)

    return {
        OURS: row("parotid-seg infer", infer()),
        "ours-onnxruntime": row("parotid-seg infer --backend onnxruntime", infer("--backend", "onnxruntime")),
        "bare-openvino": row("OpenVINO, engine alone", bare("openvino"), engine_only=True),
        "bare-onnxruntime": row("onnxruntime, engine alone", bare("onnxruntime"), engine_only=True),
        "plain-torch": row("plain torch loop", plain),
    }


def monai(ground: Ground) -> dict[str, Contestant]:
    """SwinUNETR in MONAI's sliding window."""
    python, script = str(ground.peer_python("monai")), str(HERE / "monai_infer.py")

    def row(title: str, name: str, *, slow: bool = False) -> Contestant:
        folder = ground.work / "monai" / name
        start = [python, script, "infer", name, str(folder)]
        make = [python, script, "make", name, str(folder)]
        return Contestant(
            title,
            RANDOM,
            lambda job: [*start, str(job.out), *map(str, job.scans)],
            lambda: made_once(folder / "network.json", make),
            "monai",
            slow=slow,
        )

    return {
        "monai-2d": row("MONAI, SwinUNETR 2-D", "2d"),
        "monai-2d-onnxruntime": row("MONAI, SwinUNETR 2-D in onnxruntime", "2d-onnx"),
        "monai-3d": row("MONAI, SwinUNETR 3-D", "3d", slow=True),
    }


def nnunet(ground: Ground) -> dict[str, Contestant]:
    """nnUNetv2_predict with its own plans."""
    peer = NnUnet(ground.environments / "nnunet", ground.work / "nnunet", ground.data)
    found = {}
    for configuration in ("2d", "3d_fullres"):
        trained = peer.is_trained(configuration)
        for mirrored in (False, True):
            uses_trained = trained and not mirrored
            name = f"nnunet-{configuration.partition('_')[0]}{'-mirrored' if mirrored else ''}"
            found[name] = Contestant(
                f"nnU-Net v2 {configuration}{', mirroring' if mirrored else ''}",
                f"trained: {TRAINED_TRAINER}, {words_of(peer.training(configuration))}" if uses_trained else RANDOM,
                partial(predict_with_nnunet, peer, configuration, trained=uses_trained, mirrored=mirrored),
                partial(about_nnunet, peer, configuration, trained=uses_trained),
                "nnunet",
                trained=uses_trained,
                slow=mirrored or configuration != "2d",
            )
    return found


def predict_with_nnunet(peer: NnUnet, configuration: str, job: Job, *, trained: bool, mirrored: bool) -> list[str]:
    """The command that does a job with a network of nnU-Net."""
    return peer.predict(configuration, job.folder, job.out, trained=trained, mirrored=mirrored)


def about_nnunet(peer: NnUnet, configuration: str, *, trained: bool) -> dict[str, Any]:
    """Its network by its own plans, and how it was trained."""
    about: dict[str, Any] = read_json(peer.untrained(configuration) / "network.json")
    if not trained:
        return {**about, "trainer": DEFAULT_TRAINER}
    training = peer.training(configuration)
    if training.get("patch_size") != tuple(about["window"]):
        about = {"parameters": about["parameters"], "window": list(training["patch_size"])}
    return {**about, "trainer": TRAINED_TRAINER, "training": training}


def words_of(training: dict[str, Any]) -> str:
    """A training in a few words."""
    return (
        f"{training.get('minutes', 0):.0f} minutes on {training.get('threads', '?')} core(s), "
        f"{training.get('epochs')} x {training.get('iterations')} batches of {training.get('batch_size')}"
    )


def made_once(path: Path, command: Sequence[str]) -> dict[str, Any]:
    """What a JSON file says, after the command that writes it if it is not there."""
    if not path.exists():
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} ended with status {done.returncode}: {done.stdout[-2000:]}")
    content: dict[str, Any] = read_json(path)
    return content


def read_json(path: Path) -> Any:
    """A file's content."""
    return json.loads(path.read_text())
