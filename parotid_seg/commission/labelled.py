"""Chooses the labelled patients of a data set in nnU-Net's raw layout on which a model is commissioned."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parotid_seg.errors import InputError, ScanError
from parotid_seg.files import exists, hash_file
from parotid_seg.records import read_record
from parotid_seg.scan.label_set import DESCRIPTION, channel_names, data_folder, read_splits
from parotid_seg.scan.nifti import ENDINGS, by_case, check_same_voxels, count_voxels, is_nifti, read_nifti
from parotid_seg.scan.seen import voxels_hash
from parotid_seg.wording import some_of

SPLITS, TEST = "splits.json", "test"
FOLDERS = {"imagesTr": "labelsTr", "imagesTs": "labelsTs"}
"""Folders of scans, and of their label maps."""
LABELLED_FOLDERS = (*FOLDERS, *FOLDERS.values())
"""All of them."""
FIRST_CHANNEL = re.compile(rf"(.+)_0000({'|'.join(map(re.escape, ENDINGS))})", re.IGNORECASE)
EXPECTED = "expected imagesTr/CASE_0000.nii.gz and labelsTr/CASE.nii.gz (or imagesTs and labelsTs)"


@dataclass(frozen=True)
class Labelled:
    """A patient with a label map.

    Attributes:
        scan: file of the first channel.
        reference: the label map.
    """

    scan: Path
    reference: Path

    def channels(self, count: int) -> list[Path]:
        """The files of so many channels."""
        match = FIRST_CHANNEL.fullmatch(self.scan.name)
        assert match
        return [self.scan.with_name(f"{match[1]}_{number:04d}{match[2]}") for number in range(count)]


@dataclass(frozen=True)
class Chosen:
    """The patients that are used.

    Attributes:
        data: the data folder.
        patients: by name.
        why: which are used and why, in a sentence.
        notes: what is left out or doubtful, one line each.
        channels: names of the channels by dataset.json; empty without one.
    """

    data: Path
    patients: Mapping[str, Labelled]
    why: str
    notes: tuple[str, ...]
    channels: tuple[str, ...]

    @property
    def references(self) -> Path:
        """A folder with label maps; dataset.json, which names their labels, is in the folder above all of them."""
        return next(iter(self.patients.values())).reference.parent


def choose(place: Path) -> Chosen:
    """Choose the patients: the list "test" of splits.json, else imagesTs with labels, else all of imagesTr with labels.

    Args:
        place: the data folder, or the dataset.json in it.

    Raises:
        OptionError: if there is no such folder.
        InputError: if dataset.json or splits.json is invalid, no patient can be used, two have the same scan, or
            one has two files.
        ScanError: if a label map is not on the voxels of its scan, by their headers.
    """
    data = data_folder(place)
    description = data / DESCRIPTION
    channels = channel_names(read_record(description, dict[str, Any]), description) if exists(description) else ()
    splits = read_splits(data / SPLITS)
    found: dict[str, dict[str, Labelled]] = {}
    notes = []
    for images, labels in FOLDERS.items():
        found[images], unlabelled, alone = _labelled(data / images, data / labels)
        if unlabelled:
            notes.append(f"not used, since without a label map: {len(unlabelled)} of {images} ({some_of(unlabelled)})")
        if alone:
            scans = f"{images}/CASE_0000.nii.gz"
            notes.append(f"not used, since without a scan {scans}: {len(alone)} of {labels} ({some_of(alone)})")
    patients, why = _chosen(data, found, splits.get(TEST, []))
    if not patients:
        raise InputError(f"found no scan with a label map, {EXPECTED}", path=data)
    known = [name for role in ("train", "validation") for name in splits.get(role, []) if name in patients]
    if known:
        notes.append(
            f"in the lists train and validation of {SPLITS}: {len(known)} of them; for a model trained on them "
            "the figures are too good"
        )
    for each in patients.values():
        check_same_voxels(each.reference, each.scan)
    for name, other in _of_one_scan(patients):
        raise InputError(f"found the same scan for {name} and {other}, expected one patient of each", path=data)
    return Chosen(data.resolve(), patients, why, tuple(notes), channels)


def _of_one_scan(patients: Mapping[str, Labelled]) -> Iterator[tuple[str, str]]:
    """Pairs of patients whose scans have the same voxels. Only scans of as many voxels are read."""
    by_count: dict[int, list[str]] = {}
    for name, each in patients.items():
        by_count.setdefault(count_voxels(each.scan), []).append(name)
    for names in by_count.values():
        files, scans = dict[str, str](), dict[str, str]()
        for name in names if len(names) > 1 else ():
            scan = patients[name].scan
            first = files.setdefault(hash_file(scan), name)
            with suppress(ScanError):  # one that cannot be used fails by its name in the run
                if first == name:
                    first = scans.setdefault(voxels_hash(read_nifti(scan).volume.voxels), name)
            if first != name:
                yield first, name


def _chosen(
    data: Path, found: Mapping[str, Mapping[str, Labelled]], test: Iterable[str]
) -> tuple[dict[str, Labelled], str]:
    test = list(test)
    if test:
        both = found["imagesTr"].keys() & found["imagesTs"].keys() & set(test)
        everyone = {**found["imagesTr"], **found["imagesTs"]}
        if both:
            raise InputError(
                f"found {some_of(sorted(both))} in imagesTr and in imagesTs, expected one scan of each", path=data
            )
        if lost := [name for name in test if name not in everyone]:
            raise InputError(f"{TEST}: no scan with a label map for {some_of(lost)}; {EXPECTED}", path=data / SPLITS)
        return {name: everyone[name] for name in test}, f"those in the list {TEST} of {SPLITS} ({len(test)})"
    if found["imagesTs"]:
        why = f"those of imagesTs with label maps ({len(found['imagesTs'])}); {SPLITS} names no {TEST} patients"
        return dict(found["imagesTs"]), why
    why = (
        f"all of imagesTr with label maps ({len(found['imagesTr'])}); {SPLITS} names no {TEST} patients, and imagesTs "
        "has none with label maps"
    )
    return dict(found["imagesTr"]), why


def _labelled(images: Path, labels: Path) -> tuple[dict[str, Labelled], list[str], list[str]]:
    """The patients of a folder that have label maps, and the names of scans and of label maps without the other."""
    scans = by_case(path for path in _files(images) if FIRST_CHANNEL.fullmatch(path.name))
    maps = by_case(path for path in _files(labels) if is_nifti(path))
    patients = {name: Labelled(path, maps[name]) for name, path in scans.items() if name in maps}
    return patients, sorted(scans.keys() - patients.keys()), sorted(maps.keys() - patients.keys())


def _files(folder: Path) -> list[Path]:
    return sorted(path.absolute() for path in folder.glob("*") if not path.name.startswith("."))
