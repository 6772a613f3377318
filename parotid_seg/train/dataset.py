"""A training set in nnU-Net's raw layout: which patients there are, and where their files are.

DATA/dataset.json                       channel names, labels, file ending
DATA/imagesTr/CASE_000C.nii.gz          scans, a file for each channel C
DATA/labelsTr/CASE.nii.gz               label maps
DATA/imagesUn/CASE_0000.nii.gz (optional)  scans without labels, for contrast
DATA/organsTr/CASE.nii.gz  (optional)   label maps of other organs, named in dataset.json under "organ_labels"
DATA/splits.json        (optional)      {"train": [...], "validation": [...], ...}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from parotid_seg.errors import InputError
from parotid_seg.scan.labels import words
from parotid_seg.train.config import UNLABELLED_STAGES

VALIDATION_SHARE = 0.2
"""Share of the patients set aside for validation where there is no splits.json."""


@dataclass(frozen=True)
class DataSet:
    """What a data folder promises; nothing but its JSON files has been read.

    Attributes:
        channels: their names, in the order of their files.
        labels: label names, background first.
        stored_values: for each label its value in the label maps; a label map's other values are background.
        label_folder: where the label maps are; none are read if it is empty.
        train, validation: case names.
        unlabelled: those of `train` that are in imagesUn.
    """

    folder: Path
    name: str
    channels: tuple[str, ...]
    labels: tuple[str, ...]
    stored_values: tuple[int, ...]
    label_folder: str
    file_ending: str
    train: tuple[str, ...]
    validation: tuple[str, ...]
    unlabelled: tuple[str, ...] = ()

    def image_path(self, case: str, channel: int = 0) -> Path:
        """Where a channel of a case's scan is."""
        images = "imagesUn" if case in self.unlabelled else "imagesTr"
        return self.folder / images / f"{case}_{channel:04d}{self.file_ending}"

    def label_path(self, case: str) -> Path:
        """Where a case's label map is."""
        return self.folder / self.label_folder / f"{case}{self.file_ending}"

    @property
    def partly_contoured(self) -> bool:
        """Whether a scan may show structures that its label map does not: other organs come as they are."""
        return self.label_folder == "organsTr"


def open_data_set(folder: Path, stage: str = "segment", labelled: int | None = None, seed: int = 0) -> DataSet:
    """Read a data folder's description and check that its files are there.

    Args:
        folder: the data folder.
        stage: "segment" for the data set's labels, "organs" for the other organs. Organs that are among the data set's
            labels count as background then: they are what is to be learnt later, from however few patients. "contrast"
            and "dense" take the training patients' scans and imagesUn, and no labels.
        labelled: use only this many of the training patients (few-label study).
        seed: decides which; of one seed, fewer patients are among more.

    Raises:
        InputError: if the folder, a JSON file, a key or a case's file is missing or wrong.
    """
    description = _read_json(folder / "dataset.json")
    try:
        names = description["channel_names"]
        channels = tuple(str(names[str(index)]) for index in range(len(names)))
        by_value = {int(value): str(name) for name, value in description["labels"].items()}
        labels = tuple(by_value[value] for value in range(len(by_value)))
        values = tuple(range(len(labels)))
        if stage == "organs":
            labels, values = _other_organs(description["organ_labels"], labels)
        ending = str(description["file_ending"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{folder / 'dataset.json'}: not nnU-Net's raw layout: {error!r} is missing or wrong"
            + (", which the stage organs needs" if stage == "organs" else "")
        ) from error
    if not channels or len(labels) < 2 or labels[0] != "background":
        raise InputError(
            f"found channels {list(channels)} and labels {list(labels)}, expected at least "
            "one channel, 'background' as label 0 and at least one structure",
            path=folder / "dataset.json",
        )
    train, validation = _split(folder, ending)
    unlabelled: list[str] = []
    if stage in UNLABELLED_STAGES:
        unlabelled = [case for case in _cases(folder / "imagesUn", ending) if case not in (*train, *validation)]
        train, validation = [*train, *unlabelled], []
        if len(train) < 2:
            raise InputError(
                f"found {len(train)} scans for training and in imagesUn, expected at least 2 to contrast", path=folder
            )
    elif not train or not validation:
        raise InputError(
            f"found {len(train)} training and {len(validation)} validation patients, expected at least 1 of each",
            path=folder,
        )
    elif labelled is not None:
        if not 1 <= labelled <= len(train):
            raise InputError(f"--labelled: found {labelled}, expected 1 to {len(train)} (the training patients)")
        train = [train[index] for index in sorted(np.random.default_rng(seed).permutation(len(train))[:labelled])]
    data = DataSet(
        folder=folder,
        name=str(description.get("name", folder.name)),
        channels=channels,
        labels=labels,
        stored_values=values,
        label_folder={"organs": "organsTr", "segment": "labelsTr"}.get(stage, ""),
        file_ending=ending,
        train=tuple(train),
        validation=tuple(validation),
        unlabelled=tuple(unlabelled),
    )
    _check_files(data)
    return data


def _split(folder: Path, ending: str) -> tuple[list[str], list[str]]:
    """Training and validation patients: those of splits.json, or a share of imagesTr."""
    if (folder / "splits.json").exists():
        splits = _read_json(folder / "splits.json")
        if not {"train", "validation"} <= splits.keys():
            raise InputError("expected an object with the lists 'train' and 'validation'", path=folder / "splits.json")
        return list(splits["train"]), list(splits["validation"])
    cases = _cases(folder / "imagesTr", ending)
    shuffled = [cases[index] for index in np.random.default_rng(0).permutation(len(cases))]
    held_out = max(1, round(VALIDATION_SHARE * len(cases))) if cases else 0
    return shuffled[held_out:], shuffled[:held_out]


def _cases(folder: Path, ending: str) -> list[str]:
    return sorted(path.name.removesuffix(f"_0000{ending}") for path in folder.glob(f"*_0000{ending}"))


def _check_files(data: DataSet) -> None:
    """Raise InputError unless every case has its label map and the file of every channel, and no more."""
    for case in (*data.train, *data.validation):
        wanted = {data.image_path(case, index): channel for index, channel in enumerate(data.channels)}
        if data.label_folder:
            wanted[data.label_path(case)] = "the label map"
        for path, content in wanted.items():
            if not path.exists():
                raise InputError(f"no such file: {content} of case {case}", path=path)
        surplus = data.image_path(case, len(data.channels))
        if surplus.exists():
            raise InputError(
                f"one more channel, but dataset.json names {len(data.channels)}: {', '.join(data.channels)}",
                path=surplus,
            )


def _other_organs(organs: Mapping[str, int], labels: Sequence[str]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and stored values of the organs that are not among the labels, background first."""
    known = [words(name) for name in labels]
    others = [(name, int(value)) for name, value in organs.items() if words(name) not in known]
    chosen, values = zip(("background", 0), *others, strict=True)
    return chosen, values


def _read_json(path: Path) -> dict:  # type: ignore[type-arg]
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise InputError(
            f"cannot be read ({error.strerror}), expected a data set in nnU-Net's raw layout", path=path
        ) from error
    except ValueError as error:
        raise InputError(f"not JSON: {error}", path=path) from error
    if not isinstance(content, dict):
        raise InputError(f"found {type(content).__name__}, expected a JSON object", path=path)
    return content
