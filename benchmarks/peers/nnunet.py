"""nnU-Net v2 in its own environment: where its files are, and its commands.

    python benchmarks/peers/nnunet.py prepare DATA --environments DIR --work DIR --splits SPLITS.json
    python benchmarks/peers/nnunet.py train DATA 2d --environments DIR --work DIR --core-minutes 160 --threads 1

prepare   plans and preprocesses the data set's training patients, for 2d and 3d_fullres
train     within a budget, see `nnunet_train.py`; the same command again goes on where it was cut
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from budget import read_schedule, write_whole

HERE = Path(__file__).parent
CONFIGURATIONS = ("2d", "3d_fullres")
DEFAULT_TRAINER, TRAINED_TRAINER = "nnUNetTrainer", "nnUNetTrainerNoMirroring"
"""The default learns from mirrored patients, in whom left is right; its makers advise the other for such labels."""


@dataclass(frozen=True)
class NnUnet:
    """A data set in nnU-Net's hands.

    Args:
        environment: Python environment with nnunetv2.
        work: folder for what it makes.
        data: the raw data set.
    """

    environment: Path
    work: Path
    data: Path

    @property
    def dataset(self) -> str:
        """Its name as nnU-Net wants it."""
        name = self.data.resolve().name
        return name if re.fullmatch(r"Dataset\d{3}_\w+", name) else "Dataset101_Parotid"

    @property
    def preprocessed(self) -> Path:
        """Where its plans and preprocessed patients are."""
        return self.work / "preprocessed" / self.dataset

    def variables(self, results: str = "results") -> dict[str, str]:
        """nnU-Net's three environment variables, with one of two folders for models."""
        folders = {"nnUNet_raw": "raw", "nnUNet_preprocessed": "preprocessed", "nnUNet_results": results}
        return {name: str(self.work / folder) for name, folder in folders.items()}

    def command(self, *words: object, results: str = "results") -> list[str]:
        """A program of the environment with its arguments and variables."""
        program, *rest = map(str, words)
        settings = [f"{name}={value}" for name, value in self.variables(results).items()]
        return ["env", *settings, str(self.environment / "bin" / program), *rest]

    def model(self, configuration: str, trainer: str, results: str = "results") -> Path:
        """The folder of a model, trained or not."""
        return self.work / results / self.dataset / f"{trainer}__nnUNetPlans__{configuration}"

    def is_trained(self, configuration: str) -> bool:
        """Whether a training has come to its end."""
        folder = self.model(configuration, TRAINED_TRAINER)
        return (folder / "schedule.json").exists() and (folder / "fold_0" / "checkpoint_final.pth").exists()

    def untrained(self, configuration: str) -> Path:
        """The folder of a model with random weights, made if it is missing."""
        folder = self.model(configuration, DEFAULT_TRAINER, "untrained")
        if not (folder / "fold_0" / "checkpoint_final.pth").exists():
            script = (HERE / "nnunet_untrained.py", configuration, "--dataset", self.dataset)
            subprocess.run(self.command("python", *script, results="untrained"), check=True, stdout=subprocess.DEVNULL)
        return folder

    def predict(self, configuration: str, scans: Path, out: Path, *, trained: bool, mirrored: bool) -> list[str]:
        """nnUNetv2_predict on a folder of scans, with nnU-Net's own number of processes."""
        trainer, results = (TRAINED_TRAINER, "results") if trained else (DEFAULT_TRAINER, "untrained")
        words = ("nnUNetv2_predict", "-i", scans, "-o", out, "-d", self.dataset, "-c", configuration, "-tr", trainer)
        more = () if mirrored else ("--disable_tta",)
        return self.command(*words, "-f", 0, "-device", "cpu", *more, results=results)

    def training(self, configuration: str) -> dict[str, Any]:
        """How the trained model was trained: its schedule, and what its epochs took together."""
        folder = self.model(configuration, TRAINED_TRAINER)
        schedule = read_schedule(folder / "schedule.json")
        return {**(vars(schedule) | {"timing": vars(schedule.timing)} if schedule else {}), **spent(folder)}

    def missing(self) -> list[str]:
        """Configurations that are not preprocessed for every patient."""
        patients = {path.name.removesuffix(".nii.gz") for path in (self.data / "labelsTr").glob("*.nii.gz")}
        if not (self.preprocessed / "nnUNetPlans.json").exists():
            return list(CONFIGURATIONS)
        done = {each: self.preprocessed / f"nnUNetPlans_{each}" for each in CONFIGURATIONS}
        return [each for each in CONFIGURATIONS if patients - {path.stem for path in done[each].glob("*.pkl")}]

    def prepare(self, splits: Path | None, processes: int) -> None:
        """Plan and preprocess what is missing, and write the split.

        Raises:
            SystemExit: if nnU-Net fails.
        """
        (self.work / "raw").mkdir(parents=True, exist_ok=True)
        link = self.work / "raw" / self.dataset
        if not link.exists():
            link.symlink_to(self.data.resolve())
        if missing := self.missing():
            number = int(self.dataset[7:10])
            words = ("-d", number, "-c", *missing, "-npfp", processes, "-np", processes, "--no_pbar")
            if subprocess.run(self.command("nnUNetv2_plan_and_preprocess", *words), check=False).returncode:
                raise SystemExit("nnU-Net could not plan and preprocess; what it said stands above")
        if splits:
            content = json.loads(splits.read_text())
            split = {"train": content["train"], "val": content.get("validation", content.get("val"))}
            write_whole([split], self.preprocessed / "splits_final.json")


def spent(folder: Path) -> dict[str, float]:
    """Epochs of a training and their hours by the clock; a line that a kill has cut does not count."""
    path, seconds = folder / "epochs.jsonl", {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        seconds[row["epoch"]] = row["seconds"]
    return {"epochs_done": len(seconds), "minutes": sum(seconds.values()) / 60}


def main() -> None:
    """Prepare or train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    prepare, train = parts.add_parser("prepare"), parts.add_parser("train")
    for each in (prepare, train):
        each.add_argument("data", type=Path, help="data set in nnU-Net's raw layout")
        each.add_argument("--environments", type=Path, required=True, help="see environments.py")
        each.add_argument("--work", type=Path, required=True, help="folder for what the peers make")
    prepare.add_argument("--splits", type=Path, help="JSON with lists of patients, train and validation")
    prepare.add_argument("--processes", type=int, default=1)
    train.add_argument("configuration", choices=CONFIGURATIONS)
    arguments, more = parser.parse_known_args()
    if more and arguments.part == "prepare":
        parser.error(f"unknown: {' '.join(more)}")
    peer = NnUnet(arguments.environments / "nnunet", arguments.work / "nnunet", arguments.data)
    if arguments.part == "prepare":
        peer.prepare(arguments.splits, arguments.processes)
        return
    script = (HERE / "nnunet_train.py", arguments.configuration, "--dataset", peer.dataset, *more)
    sys.stdout.flush()
    command = peer.command("python", *script)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
