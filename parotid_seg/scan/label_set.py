"""A data set in nnU-Net's raw layout: its folder, the channels and labels in its dataset.json, and its splits.json.

Names and numbers follow nnU-Net's documentation (dataset_format.md, ignore_label.md): "background" is 0, and "ignore",
which must have the highest number, marks unlabelled voxels. It is not a structure: it is neither learnt nor scored.
Regions, which are lists of labels, are not supported.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parotid_seg.contract import BACKGROUND, IGNORE
from parotid_seg.errors import InputError, OptionError
from parotid_seg.files import exists
from parotid_seg.records import is_plain_name, read_record
from parotid_seg.wording import some_of

DESCRIPTION = "dataset.json"
LARGEST_VALUE = 255
"""Largest value of a label map's voxels."""
EXAMPLE = '{"background": 0, "parotid_left": 1, "parotid_right": 2}'


@dataclass(frozen=True)
class LabelSet:
    """The numbers of the structures in a label map.

    Attributes:
        values: the number of each structure by name, rising; without background and "ignore".
        ignore: the number of unlabelled voxels; None if there is none.
    """

    values: Mapping[str, int]
    ignore: int | None = None

    @property
    def known(self) -> frozenset[int]:
        """All valid numbers of a label map."""
        return frozenset([0, *self.values.values(), *([] if self.ignore is None else [self.ignore])])


def data_folder(place: Path) -> Path:
    """The folder of a data set, which may also be given by its dataset.json.

    Raises:
        OptionError: if there is no such folder.
    """
    if place.name == DESCRIPTION and place.is_file():
        return place.parent
    if not place.is_dir():
        found = "a file" if exists(place) else "no such folder"
        raise OptionError(f"{found}, expected the folder of a data set in nnU-Net's raw layout", path=place)
    return place


def channel_names(content: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """The channels' names in a dataset.json, in their order.

    Raises:
        InputError: if they are missing or invalid.
    """
    example = 'expected an object such as {"0": "CT"}, numbered from 0'
    if "channel_names" not in content:
        raise InputError(f"found no key 'channel_names', {example}", path=path)
    names = content["channel_names"]
    if not isinstance(names, dict):
        raise InputError(f"channel_names: found {kind(names)}, {example}", path=path)
    if not names or set(names) != {str(index) for index in range(len(names))}:
        raise InputError(f"channel_names: found the keys {list(names)}, {example}", path=path)
    return tuple(str(names[str(index)]) for index in range(len(names)))


def read_label_set(content: Mapping[str, Any], path: Path, key: str = "labels") -> LabelSet:
    """The labels in a dataset.json.

    Args:
        content: of the file.
        path: of the file, for errors.
        key: the labels' key.

    Raises:
        InputError: if they are missing or of another form, with the key and the label.
    """

    def wrong(reason: str) -> InputError:
        return InputError(f"{key}: {reason}", path=path)

    if key not in content:
        raise InputError(f"found no key {key!r}, expected the names and numbers of labels such as {EXAMPLE}", path=path)
    labels = content[key]
    if not isinstance(labels, dict):
        raise wrong(f"found {kind(labels)}, expected an object such as {EXAMPLE}")
    if labels and all(isinstance(value, str) and not value.strip().isdecimal() for value in labels.values()):
        raise wrong(f"found numbers with their names, nnU-Net's first form; expected an object such as {EXAMPLE}")
    values: dict[str, int] = {}
    for name, value in labels.items():
        number = _number(value)
        if isinstance(value, list):
            raise wrong(f"{name!r}: found {value}, a region of several labels; expected one number, not a region")
        if number is None:
            raise wrong(f"{name!r}: found {_shown(value)}, expected a whole number from 0 to {LARGEST_VALUE}")
        if other := next((each for each, used in values.items() if used == number), None):
            raise wrong(f"{other!r} and {name!r}: found the number {number} twice, expected different numbers")
        values[name] = number
    background = [name for name, value in values.items() if value == 0 or name.casefold() == BACKGROUND]
    if len(background) != 1 or background[0].casefold() != BACKGROUND or values[background[0]]:
        raise wrong(f"found {_shown(labels)}, expected 'background' with the number 0")
    ignored = [name for name in values if name.strip().casefold() == IGNORE]
    for name in ignored:
        if values[name] != max(values.values()):
            raise wrong(
                f"{name!r}: found the number {values[name]}, expected the highest of all, as nnU-Net defines it"
            )
    structures = {name: value for name, value in values.items() if name not in (*background, *ignored)}
    if not structures:
        raise wrong(f"found {_shown(labels)}, expected 'background' and at least one structure")
    rising = dict(sorted(structures.items(), key=lambda item: item[1]))
    return LabelSet(rising, values[ignored[0]] if ignored else None)


def read_splits(path: Path) -> dict[str, list[str]]:
    """The lists of patients in a splits.json, by name; none if there is no file.

    Raises:
        InputError: if it is of another form, or a patient is in it more than once.
    """
    if not exists(path):
        return {}
    expected = "lists of patients by name, as in {'train': [...], 'validation': [...]}"
    splits = read_record(path, dict[str, Any], expected=expected)
    lists: dict[str, list[str]] = {}
    for name, cases in splits.items():
        if not isinstance(cases, list):
            raise InputError(f"{name}: found {kind(cases)}, expected a list of patients' names", path=path)
        for case in cases:
            if not isinstance(case, str) or not is_plain_name(case):
                raise InputError(f"{name}: found {case!r}, expected the name of a patient's files", path=path)
            lists.setdefault(case, []).append(name)
    if doubles := [f"{case} ({' and '.join(found)})" for case, found in lists.items() if len(found) > 1]:
        raise InputError(
            f"found patients more than once: {some_of(doubles)}; expected each in one list, once", path=path
        )
    return splits


def kind(value: object) -> str:
    """The JSON type of a value."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _shown(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _number(value: object) -> int | None:
    """A label's number; None if it is not a number."""
    if isinstance(value, str) and value.strip().isdecimal() and len(value) < 10:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if value == value // 1 and 0 <= value <= LARGEST_VALUE else None
