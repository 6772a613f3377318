"""The private folder beside a data set: the source of each case, and the items that were not used.

DATA may be passed on; it holds scans, labels and case numbers. DATA.private/ must not be passed on: with it a later run
recognises the same cases. It names folders and files, but patients only with --identify.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from parotid_seg.dataset.splits import TEST, TRAIN, VALIDATION
from parotid_seg.errors import InputError, OptionError
from parotid_seg.files import locked, make_folder, remove_orphans
from parotid_seg.flags import Flag
from parotid_seg.records import read_record, write_record
from parotid_seg.runtime.report.flag_text import sentences, severity_of
from parotid_seg.tables import write_csv

STATE = "state.json"
VERSION = 1
LABELLED, UNLABELLED, ABSENT = "labelled", "unlabelled", "absent"
FOLDERS = ("imagesTr", "labelsTr", "imagesUn")
LEAST_SEVERITY = 2
"""Severities of flags for which a case's labels need review."""


@dataclass(frozen=True)
class DataSetCase:
    """One scan of the data set.

    Attributes:
        name: such as case_0001.
        series, patient: pseudonyms, see `Private.pseudonym`; cases of one patient share the second.
        kind: LABELLED (imagesTr, labelsTr), UNLABELLED (imagesUn) or ABSENT (the number is in use, without files).
        key: of the sources of its files, see `cases`.
        folder, structures: folder of its images, and its RTSTRUCT file.
        by: how the two were matched.
        labels: the contoured labels.
        flags: remarks on the labels.
    """

    name: str
    series: str
    patient: str
    kind: str = ABSENT
    key: str = ""
    folder: str = ""
    structures: str = ""
    by: str = ""
    labels: tuple[str, ...] = ()
    flags: tuple[Flag, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in (LABELLED, UNLABELLED, ABSENT):
            raise InputError(f"kind: found {self.kind!r}, expected {LABELLED}, {UNLABELLED} or {ABSENT}")

    @property
    def to_look_at(self) -> bool:
        """Whether its labels need review."""
        return any(severity_of(flag.code) >= LEAST_SEVERITY for flag in self.flags)


@dataclass(frozen=True)
class _State:
    """The content of the file STATE; see `Private`."""

    schema_version: int
    salt: str
    labels: tuple[str, ...]
    cases: tuple[DataSetCase, ...]
    lists: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"(?:[0-9a-f]{2}){1,64}", self.salt):
            raise InputError("salt: expected an even number of hexadecimal digits")
        names = [case.name for case in self.cases]
        if len(set(names)) < len(names) or not all(re.fullmatch(r"case_[0-9]{4,9}", name) for name in names):
            raise InputError("cases: expected different names such as case_0001")


@dataclass
class Private:
    """The folder beside a data set.

    Attributes:
        salt: makes the pseudonyms of this data set different from those of others.
        labels: of the data set.
        cases: by name; none is ever removed, so that no number is used twice.
        lists: list of splits.json by patient, also of patients who have no contours at present.
    """

    folder: Path
    salt: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)
    labels: tuple[str, ...] = ()
    cases: dict[str, DataSetCase] = field(default_factory=dict)
    lists: dict[str, str] = field(default_factory=dict)

    def pseudonym(self, identifier: str) -> str:
        """A salted hash of a patient's ID or a UID, by which it is recognised but not revealed."""
        return hashlib.blake2b(identifier.encode(), key=bytes.fromhex(self.salt), digest_size=16).hexdigest()

    def known(self, series: str) -> DataSetCase | None:
        """The case of a series, by its pseudonym, if it has one."""
        return next((case for case in self.cases.values() if case.series == series), None)

    def case_of(self, series: str, patient: str) -> DataSetCase:
        """The case of a series, by pseudonyms; a new one gets the next number.

        A patient whose ID is now another one stays in his or her list; of the lists of two who become one, the one that
        is held out most strictly counts.
        """
        if known := self.known(series):
            self.cases[known.name] = dataclasses.replace(known, patient=patient)
            of_both = {self.lists.get(known.patient), self.lists.get(patient)}
            if kept := next((each for each in (TEST, VALIDATION, TRAIN) if each in of_both), None):
                self.lists[patient] = kept
            if not any(case.patient == known.patient for case in self.cases.values()):
                self.lists.pop(known.patient, None)
            return self.cases[known.name]
        number = 1 + max((int(name.rpartition("_")[2]) for name in self.cases), default=0)
        case = DataSetCase(f"case_{number:04d}", series, patient)
        self.cases[case.name] = case
        return case

    def keep(self, case: DataSetCase) -> None:
        """Record a case on disk.

        Raises:
            OutputError: if it cannot be written.
        """
        self.cases[case.name] = case
        self.save()

    def save(self) -> None:
        """Write the state, whole or not at all.

        Raises:
            OutputError: if it cannot be written.
        """
        state = _State(VERSION, self.salt, self.labels, tuple(self.cases.values()), self.lists)
        write_record(state, self.folder / STATE)


@contextlib.contextmanager
def locked_data_set(data: Path, folder: Path, labels: tuple[str, ...]) -> Iterator[Private]:
    """Lock a data set and its private folder, and open them.

    Args:
        data: the data set's folder; it may be missing.
        folder: the private folder.
        labels: the labels that the data set must have.

    Raises:
        InputError: if `data` belongs to another private folder, or has other labels.
        OutputError: if a folder cannot be written, or another run is working in it.
    """
    holds = any((data / name).exists() for name in ("dataset.json", *FOLDERS))
    if holds and not (folder / STATE).exists():
        raise InputError(
            f"holds a data set, but found no {folder / STATE}, by which its cases are recognised; "
            "expected that file, or another --out",
            path=data,
        )
    new = not folder.exists()
    for each in (folder, data):
        make_folder(each)
    if new:
        with contextlib.suppress(OSError):  # some file systems have no owners
            folder.chmod(0o700)
    with locked(folder / "lock", data):
        for each in (folder, data, *(data / name for name in FOLDERS)):
            remove_orphans(each)
        private = _read(folder)
        if private.cases and private.labels != labels:
            raise OptionError(
                f"has the labels {', '.join(private.labels)}, found --labels {', '.join(labels)}; "
                "expected the same, or another --out",
                path=data,
            )
        private.labels = labels
        private.save()
        yield private


def _read(folder: Path) -> Private:
    """The state in the folder; an empty state if there is none."""
    path = folder / STATE
    if not path.exists():
        return Private(folder)
    state = read_record(path, _State, version=VERSION, expected="the state that a run left")
    return Private(folder, state.salt, state.labels, {case.name: case for case in state.cases}, state.lists)


def write_cases(
    private: Private, roles: Mapping[str, str], identities: Mapping[str, Mapping[str, str]], path: Path
) -> None:
    """Write a row per case: its source and its labels.

    Args:
        private: the cases.
        roles: list of splits.json by patient.
        identities: for each case the additional columns of --identify.
        path: the file to make.

    Raises:
        OutputError: if that fails.
    """
    patients = dict.fromkeys(case.patient for case in private.cases.values())
    numbers = {patient: number for number, patient in enumerate(patients, start=1)}
    further = list(dict.fromkeys(column for found in identities.values() for column in found))
    columns = ["case", "kind", "patient", "list", "labels", "matched_by", "look_at_it", "notes", "folder", "rtstruct"]
    rows: list[list[object]] = [[*columns, *further]]
    for case in private.cases.values():
        labelled = case.kind == LABELLED
        role = roles.get(case.patient, "") if labelled else ""
        look_at_it = "yes" if labelled and case.to_look_at else ""
        row = [case.name, case.kind, numbers[case.patient], role, " ".join(case.labels), case.by, look_at_it]
        row += [sentences(case.flags), case.folder, case.structures]
        identity = identities.get(case.name, {})
        rows.append([*row, *(identity.get(column, "") for column in further)])
    write_csv(rows, path)
