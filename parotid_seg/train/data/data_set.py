"""A training set in nnU-Net's raw layout: its patients and their files.

DATA/dataset.json                       channel names, labels, file ending
DATA/imagesTr/CASE_000C.nii.gz          scans, a file for each channel C
DATA/labelsTr/CASE.nii.gz               label maps
DATA/imagesUn/CASE_0000.nii.gz (optional)  scans without labels, for contrastive pre-training
DATA/organsTr/CASE.nii.gz  (optional)   label maps of other organs, named in dataset.json under "organ_labels"
DATA/softTr/CASE_000L.nii.gz (optional) soft labels of scans in imagesTr or imagesUn: shares of label L, 0 to 255
DATA/imagesTs/CASE_000C.nii.gz (optional)  scans of test patients
DATA/splits.json        (optional)      {"train": [...], "validation": [...], "test": [...], ...}

This module does not need torch: errors of a data set are reported before it is imported.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from parotid_seg.contract import BACKGROUND
from parotid_seg.errors import InputError, OptionError
from parotid_seg.records import read_record
from parotid_seg.scan.intensity import is_ct
from parotid_seg.scan.label_set import DESCRIPTION, LabelSet, channel_names, data_folder, read_label_set, read_splits
from parotid_seg.scan.labels import check_pairs, side_of, structure_words
from parotid_seg.train.config import UNLABELLED_STAGES, TrainConfig
from parotid_seg.wording import counted, some_of

VALIDATION_SHARE = 0.2
"""Share of the patients for validation if there is no splits.json."""
SOFT_FOLDER = "softTr"
NEARLY_CT = re.compile("(?<![a-z])ct(?![a-z])|tomogra", re.IGNORECASE)
"""What names of channels contain that are probably CT; only "CT" is taken as such, as by nnU-Net."""
LISTS = ("train", "validation", "test", "unlabelled")
"""Lists of splits.json that mean something here, or what they say."""
MOST_NAMES = 20
"""Most patients in a message; the others are counted."""


@dataclass(frozen=True)
class DataSet:
    """A data folder, described by its JSON files; no scan has been read.

    Attributes:
        channels: their names, in the order of their files.
        labels: label names, background first.
        stored_values: for each label its value in the label maps; a label map's other values are background.
        ignore: value of unlabelled voxels in the label maps (nnU-Net's "ignore"); None if there is none.
        label_folder: folder of the label maps; none are read if it is empty.
        train, validation: case names.
        unlabelled: those of `train` that are in imagesUn.
        soft: those of `train` with soft labels, if the stage uses them.
        held_out: validation patients of a stage that validates nothing; their scans are only compared with others.
        test: the cases of the list "test" of splits.json and of imagesTs, on which nothing is trained or chosen.
        notes: unused files, one line each.
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
    soft: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    ignore: int | None = None
    notes: tuple[str, ...] = ()

    def image_path(self, case: str, channel: int = 0) -> Path:
        """Path of a channel of a case's scan."""
        name = f"{case}_{channel:04d}{self.file_ending}"
        images = "imagesUn" if case in self.unlabelled else "imagesTr"
        if case in self.test and not (self.folder / images / name).exists():
            images = "imagesTs"
        return self.folder / images / name

    def label_path(self, case: str) -> Path:
        """Path of a case's label map."""
        return self.folder / self.label_folder / f"{case}{self.file_ending}"

    def soft_path(self, case: str, value: int) -> Path:
        """Path of a case's soft labels of one structure."""
        return self.folder / SOFT_FOLDER / f"{case}_{value:04d}{self.file_ending}"

    @property
    def partly_contoured(self) -> bool:
        """Whether a scan may show structures that its label map lacks, as with label maps of other organs."""
        return self.label_folder == "organsTr"


def open_data_sets(folder: Path, config: TrainConfig, labelled: int | None = None) -> dict[str, DataSet]:
    """The data set for each stage of a run. Arguments and errors as for `open_data_set`.

    Raises:
        InputError: also if training mirrors scans and labels with a side do not come in pairs.
    """
    data_sets = {}
    for stage in config.stages:
        of_glands = stage == "segment"
        soft = of_glands and config.segment.soft_share > 0
        data = open_data_set(folder, stage, labelled if of_glands else None, config.seed, soft)
        if data.label_folder and config.augment.mirror_probability > 0:
            try:
                check_pairs(data.labels)
            except InputError as error:
                raise InputError(error.reason, path=data.folder / DESCRIPTION) from error
        data_sets[stage] = data
    return data_sets


def open_data_set(
    folder: Path, stage: str = "segment", labelled: int | None = None, seed: int = 0, soft: bool = False
) -> DataSet:
    """Read a data folder's description and check that its files are there.

    Args:
        folder: the data folder, or the dataset.json in it.
        stage: "segment" for the data set's labels, "organs" for the other organs. For "organs", the data set's labels
            count as background, because they are learnt later, possibly from few patients. "contrast" and "dense" use
            the scans of the training patients, of the list "unlabelled" and of imagesUn, without labels.
        labelled: use only this many of the training patients (few-label study).
        seed: for the choice of these patients; with the same seed a smaller choice is a subset of a larger one.
        soft: whether soft labels are used; scans of imagesUn that have some are then training patients.

    Raises:
        InputError: if the folder, a JSON file, a key or a case's file is missing or invalid, or if a patient is in
            several lists of splits.json, twice in one, or unknown.
    """
    folder = data_folder(folder)
    path = folder / DESCRIPTION
    description = _description(path)
    channels, ending = channel_names(description, path), _ending(description, path)
    labels = _consecutive(read_label_set(description, path), path)
    if stage == "organs":
        labels = _other_organs(description, labels, path)
    label_folder = {"organs": "organsTr", "segment": "labelsTr"}.get(stage, "")
    train, validation, test, notes = _split(folder, ending, bool(label_folder))
    unlabelled: list[str] = []
    held_out: list[str] = []
    if stage in UNLABELLED_STAGES:
        listed, unlabelled, lost = _without_labels(folder, ending, {*train, *validation, *test})
        train, validation, held_out, notes = [*train, *listed, *unlabelled], [], validation, (*notes, *lost)
    _check_counts(folder, train, validation, stage)
    if label_folder and labelled is not None:
        train = _few(train, labelled, seed)
    with_soft: set[str] = set()
    if soft:
        with_soft = _images(folder / SOFT_FOLDER, ending)
        unlabelled = sorted(_images(folder / "imagesUn", ending) & with_soft - {*train, *validation, *test})
        train = [*train, *unlabelled]
        notes = (*notes, *_check_soft(folder, with_soft, train, labels))
    data = DataSet(
        folder=folder,
        name=str(description.get("name", folder.resolve().name)),
        channels=channels,
        labels=(BACKGROUND, *labels.values),
        stored_values=(0, *labels.values.values()),
        label_folder=label_folder,
        file_ending=ending,
        train=tuple(train),
        validation=tuple(validation),
        unlabelled=tuple(unlabelled),
        soft=tuple(case for case in train if case in with_soft),
        held_out=tuple(held_out),
        test=tuple(test),
        ignore=labels.ignore,
        notes=(*notes, *_doubtful_channels(channels)),
    )
    _check_files(data)
    return data


def _doubtful_channels(channels: Sequence[str]) -> list[str]:
    """Notes on channels that may be CT by their names, and are not named so."""
    return [
        f"channel_names: {name!r} is not CT, so the window is found in each scan; if it is in HU, name it CT"
        for name in channels
        if not is_ct(name) and NEARLY_CT.search(name)
    ]


def _few(train: Sequence[str], count: int, seed: int) -> list[str]:
    """So many of the training patients; a smaller choice of the same seed is a subset."""
    if not 1 <= count <= len(train):
        raise OptionError(f"--labelled: found {count}, expected 1 to {len(train)} (the training patients)")
    return [train[index] for index in sorted(np.random.default_rng(seed).permutation(len(train))[:count])]


def _check_soft(folder: Path, cases: Collection[str], train: Sequence[str], labels: LabelSet) -> list[str]:
    """Notes on soft labels that are not used; raises InputError if none can be."""
    if not set(cases).intersection(train):
        raise InputError(
            "found no soft labels of a training patient or of a scan in imagesUn, which soft_share needs",
            path=folder / SOFT_FOLDER,
        )
    if labels.ignore is not None:
        raise InputError(
            "labels: found the label 'ignore', which cannot be used with soft labels (soft_share)",
            path=folder / DESCRIPTION,
        )
    lost = sorted(set(cases).difference(train))
    return [f"soft labels of no training patient and no scan in imagesUn are not used: {named(lost)}"] if lost else []


def _check_counts(folder: Path, train: Sequence[str], validation: Sequence[str], stage: str) -> None:
    if stage in UNLABELLED_STAGES:
        if len(train) < 2:
            raise InputError(
                f"found {counted(len(train), 'scan')} for training and in imagesUn, expected at least 2 to contrast "
                "(scans held out for validation do not count)",
                path=folder,
            )
    elif not train or not validation:
        raise InputError(
            f"found {counted(len(train), 'patient')} with labels for training and {len(validation)} for validation, "
            "expected at least 1 of each",
            path=folder,
        )


def named(cases: Iterable[str]) -> str:
    """Names of patients for a message, at most `MOST_NAMES`."""
    return some_of(cases, MOST_NAMES)


def _description(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise InputError("no such file, expected the description of a data set in nnU-Net's raw layout", path=path)
    return read_record(path, dict[str, Any])


def _ending(description: Mapping[str, Any], path: Path) -> str:
    ending = description.get("file_ending")
    if not isinstance(ending, str) or not re.fullmatch(r"(\.\w+)+", ending):
        what = f"file_ending: found {ending!r}" if "file_ending" in description else "found no key 'file_ending'"
        raise InputError(f"{what}, expected the end of the files' names such as '.nii.gz'", path=path)
    return ending


def _consecutive(labels: LabelSet, path: Path) -> LabelSet:
    """The labels, after a check that their numbers have no gap."""
    numbers = list(labels.values.values())
    if missing := set(range(1, len(numbers) + 1)) - set(numbers):
        raise InputError(
            f"labels: found no name for the number {min(missing)}, expected one for each from 0 to {len(numbers)}",
            path=path,
        )
    return labels


def _split(folder: Path, ending: str, needs_labels: bool) -> tuple[list[str], list[str], list[str], tuple[str, ...]]:
    """Training and validation patients (those of splits.json, or a share of imagesTr), test patients, and notes on
    unused files.

    Args:
        needs_labels: whether patients without a label map are unusable.
    """
    images, locked = (_images(folder / name, ending) for name in ("imagesTr", "imagesTs"))
    maps = {path.name.removesuffix(ending) for path in _files(folder / "labelsTr", ending)}
    expected = f"expected imagesTr/CASE_0000{ending} (file_ending of {DESCRIPTION})"
    if needs_labels and (lost := sorted(maps - images)):
        raise InputError(f"no scan for the label maps of {named(lost)}; {expected}", path=folder / "labelsTr")
    path = folder / "splits.json"
    if path.exists():
        splits = read_splits(path)
        if not {"train", "validation"} <= splits.keys():
            raise InputError("expected an object with the lists 'train' and 'validation'", path=path)
        used = (*splits["train"], *(splits["validation"] if needs_labels else ()))
        if unknown := [case for case in used if case not in images]:
            raise InputError(f"found patients without a scan: {named(unknown)}; {expected}", path=path)
        _check_locked(folder, {*splits["train"], *splits["validation"]} & locked)
        assigned = {case for cases in splits.values() for case in cases}
        own = splits.get("test", [])
        test = [*own, *sorted(locked - {*splits["train"], *splits["validation"], *own})]
        further = [
            f"the list {name!r} of splits.json is not known to training, its patients are not locked (only 'test' and "
            f"imagesTs are): {named(cases)}"
            for name, cases in splits.items()
            if name not in LISTS and not locked.issuperset(cases)
        ]
        return splits["train"], splits["validation"], test, (*_unused(images - assigned, maps), *further)
    cases = sorted(images & maps or images)
    if needs_labels and not cases:
        raise InputError(f"found no scan; {expected}", path=folder)
    _check_locked(folder, locked.intersection(cases))
    shuffled = [cases[index] for index in np.random.default_rng(0).permutation(len(cases))]
    held_out = max(1, round(VALIDATION_SHARE * len(cases))) if cases else 0
    unused = _unused(images - set(cases), maps)
    return shuffled[held_out:], shuffled[:held_out], sorted(locked - images), unused


def _without_labels(folder: Path, ending: str, used: Collection[str]) -> tuple[list[str], list[str], list[str]]:
    """The scans in imagesTr that splits.json lists as unlabelled, those in imagesUn, and a note on listed patients who
    have no scan.

    Args:
        used: cases of other lists.
    """
    there, others = _images(folder / "imagesTr", ending), sorted(_images(folder / "imagesUn", ending) - {*used})
    listed = read_splits(folder / "splits.json").get("unlabelled", [])
    lost = [case for case in listed if case not in there and case not in others]
    note = [f"patients of the list 'unlabelled' of splits.json have no scan: {named(lost)}"] if lost else []
    return [case for case in listed if case in there], others, note


def _check_locked(folder: Path, cases: Collection[str]) -> None:
    """Raise InputError if there are any: patients for training or validation who are also in imagesTs."""
    if cases:
        raise InputError(
            f"found {named(sorted(cases))} in imagesTr and in imagesTs, whose patients are locked for a test; expected "
            "each in one",
            path=folder,
        )


def _unused(cases: Collection[str], maps: Collection[str]) -> tuple[str, ...]:
    without = sorted(case for case in cases if case not in maps)
    others = sorted(case for case in cases if case in maps)
    notes = []
    if without:
        hint = "scans without labels belong in imagesUn"
        notes.append(f"scans in imagesTr without a label map are not used ({hint}): {named(without)}")
    if others:
        notes.append(f"patients with label maps in no list of splits.json are not used: {named(others)}")
    return tuple(notes)


def _images(folder: Path, ending: str) -> set[str]:
    """Cases with a channel in a folder."""
    channel = re.compile(rf"(.+)_[0-9]{{4}}{re.escape(ending)}")
    return {found[1] for path in _files(folder, ending) if (found := channel.fullmatch(path.name))}


def _files(folder: Path, ending: str) -> list[Path]:
    return [path for path in folder.glob(f"*{ending}") if not path.name.startswith(".")]


def _check_files(data: DataSet) -> None:
    """Raise InputError unless every case has its label map and exactly the files of all channels."""
    cases = (*data.train, *data.validation)
    expected = {
        channel: {case: data.image_path(case, index) for case in cases} for index, channel in enumerate(data.channels)
    }
    if data.label_folder:
        expected["the label map"] = {case: data.label_path(case) for case in cases if case not in data.unlabelled}
    for value, name in enumerate(data.labels[1:], start=1):
        expected[f"soft labels of {name}"] = {case: data.soft_path(case, value) for case in data.soft}
    for content, paths in expected.items():
        if lost := [case for case, path in paths.items() if not path.exists()]:
            raise InputError(f"no such file: {content} of case {named(lost)}", path=paths[lost[0]])
    for case in cases:
        surplus = data.image_path(case, len(data.channels))
        if surplus.exists():
            raise InputError(
                f"one more channel, but dataset.json names {len(data.channels)}: {', '.join(data.channels)}",
                path=surplus,
            )


def _other_organs(description: Mapping[str, Any], labels: LabelSet, path: Path) -> LabelSet:
    """The organs that are not among the labels."""
    organs = description.get("organ_labels")
    if organs is None:
        raise InputError("found no key 'organ_labels', which the stage organs needs", path=path)
    if isinstance(organs, dict) and BACKGROUND not in organs:
        organs = {BACKGROUND: 0, **organs}
    organ_labels = read_label_set({"organ_labels": organs}, path, "organ_labels")
    trained = {(structure_words(name), side_of(name)) for name in labels.values}
    others = {
        name: value
        for name, value in organ_labels.values.items()
        if (structure_words(name), side_of(name)) not in trained
    }
    if not others:
        raise InputError("organ_labels: found no organ that is not among the labels, expected some", path=path)
    return LabelSet(others, organ_labels.ignore)
