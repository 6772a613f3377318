"""What is kept beside a data set and not in it: which scan each case is, and what was left out.

DATA may be passed on; it holds scans, labels and case numbers. DATA.private/ stays: with it a later run finds the same
cases again. It names folders and files, but no patient unless that is asked for.
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
from typing import Any

from parotid_seg.errors import InputError, OptionError, RecordError
from parotid_seg.files import locked, make_folder, remove_orphans
from parotid_seg.flags import Flag, FlagCode
from parotid_seg.records import read_record, write_record
from parotid_seg.runtime.report.flag_text import sentences, severity_of
from parotid_seg.tables import write_csv

STATE = "state.json"
VERSION = 1
LABELLED, UNLABELLED, ABSENT = "labelled", "unlabelled", "absent"
FOLDERS = ("imagesTr", "labelsTr", "imagesUn")
LEAST_SEVERITY = 2
"""Of a flag for which somebody should look at a case's labels."""


@dataclass(frozen=True)
class Case:
    """One scan of the data set.

    Attributes:
        name: such as case_0001.
        series, patient: pseudonyms, see `Private.pseudonym`; cases of one patient share the second.
        kind: LABELLED (imagesTr, labelsTr), UNLABELLED (imagesUn) or ABSENT: its number is taken, there are no files.
        key: of what its files were made from.
        folder, structures: of its images, and its RTSTRUCT file.
        by: how the two were brought together.
        labels: those it has.
        flags: what a reader of the labels should know.
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
        """Whether somebody should look at its labels."""
        return any(severity_of(flag.code) >= LEAST_SEVERITY for flag in self.flags)


@dataclass(frozen=True)
class _State:
    """What STATE holds; see `Private`."""

    version: int
    salt: str
    labels: tuple[str, ...]
    cases: tuple[Case, ...]

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
        salt: what makes pseudonyms of this data set different from any other's.
        labels: of the data set.
        cases: by name; never fewer, so that no number is used twice.
    """

    folder: Path
    salt: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)
    labels: tuple[str, ...] = ()
    cases: dict[str, Case] = field(default_factory=dict)

    def pseudonym(self, identifier: str) -> str:
        """A patient's ID or a UID so that it is found again, but not told."""
        return hashlib.blake2b(identifier.encode(), key=bytes.fromhex(self.salt), digest_size=16).hexdigest()

    def case_of(self, series: str, patient: str) -> Case:
        """The case of a series, by pseudonyms; a new one gets the next number."""
        for case in self.cases.values():
            if case.series == series:
                self.cases[case.name] = dataclasses.replace(case, patient=patient)
                return self.cases[case.name]
        number = 1 + max((int(name.rpartition("_")[2]) for name in self.cases), default=0)
        case = Case(f"case_{number:04d}", series, patient)
        self.cases[case.name] = case
        return case

    def keep(self, case: Case) -> None:
        """Remember a case; on return that is on disk.

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
        write_record(_State(VERSION, self.salt, self.labels, tuple(self.cases.values())), self.folder / STATE)


@contextlib.contextmanager
def opened(data: Path, folder: Path, labels: tuple[str, ...]) -> Iterator[Private]:
    """Have a data set and its private folder to oneself.

    Args:
        data: the data set's folder; it may not be there yet.
        folder: the private one.
        labels: what the data set is to have.

    Raises:
        InputError: if `data` is another's, or has other labels.
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
        with contextlib.suppress(OSError):  # some file systems know no owners
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
    """What the folder holds; an empty state if there is none."""
    path = folder / STATE
    if not path.exists():
        return Private(folder)
    try:
        state = read_record(path, _State, version=VERSION, version_field="version", upgrade=_of_this_version)
    except RecordError as error:
        raise InputError(f"{error.reason}; expected the state that a run left", path=path) from error
    return Private(folder, state.salt, state.labels, {case.name: case for case in state.cases})


def _of_this_version(content: Any) -> Any:
    """The state's content; an earlier version kept sentences as the notes of a case."""
    cases = content.get("cases") if isinstance(content, dict) else None
    for case in cases if isinstance(cases, list) else ():
        if isinstance(case, dict) and isinstance(notes := case.pop("notes", None), list):
            case["flags"] = [{"code": FlagCode.OLD_VERSION, "detail": note} for note in notes]
    return content


def write_cases(
    private: Private, roles: Mapping[str, str], identities: Mapping[str, Mapping[str, str]], path: Path
) -> None:
    """Write a row a case: where it comes from and what it has.

    Args:
        private: the cases.
        roles: list of splits.json by patient.
        identities: for each case the further columns of --identify.
        path: the file to make.

    Raises:
        OutputError: if that fails.
    """
    patients = {
        patient: number for number, patient in enumerate(dict.fromkeys(c.patient for c in private.cases.values()), 1)
    }
    further = list(dict.fromkeys(column for found in identities.values() for column in found))
    columns = ["case", "kind", "patient", "list", "labels", "matched_by", "look_at_it", "notes", "folder", "rtstruct"]
    rows: list[list[object]] = [[*columns, *further]]
    for case in private.cases.values():
        labelled = case.kind == LABELLED
        row = [case.name, case.kind, patients[case.patient], roles.get(case.patient, "") if labelled else ""]
        look = "yes" if labelled and case.to_look_at else ""
        further_values = [" ".join(case.labels), case.by, look, sentences(case.flags), case.folder, case.structures]
        further_values += [identities.get(case.name, {}).get(column, "") for column in further]
        rows.append([*row, *further_values])
    write_csv(rows, path)
