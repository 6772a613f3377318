"""Assigns patients to training, validation or test, with all their scans and permanently.

A patient stays in the list of splits.json, even if a user wrote that file, so that a growing data set never trains on
scans that were used for validation before.
"""

from __future__ import annotations

from collections.abc import Mapping

from parotid_seg.errors import InputError, OptionError
from parotid_seg.train.data.data_set import VALIDATION_SHARE

TRAIN, VALIDATION, TEST = "train", "validation", "test"
Splits = dict[str, list[str]]


def roles_of(patients: Mapping[str, str], splits: Splits) -> dict[str, str]:
    """The list that each patient is in.

    Args:
        patients: by case.
        splits: cases by list.

    Raises:
        InputError: if a patient's cases are in several.
    """
    roles: dict[str, str] = {}
    for name, cases in splits.items():
        for case in cases:
            if case in patients and roles.setdefault(patients[case], name) != name:
                raise InputError(
                    f"splits.json: {case} is in {name}, another scan of the same patient in {roles[patients[case]]}; "
                    "expected all in one list"
                )
    return roles


def check_test_patients(patients: Mapping[str, str], remembered: Mapping[str, str], splits: Splits) -> None:
    """Check that nobody has left the list "test" for another.

    Args:
        patients: by case.
        remembered: list by patient, of earlier runs.
        splits: cases by list.

    Raises:
        InputError: if a test patient's case is in another list.
    """
    for name, cases in splits.items():
        for case in cases:
            if name != TEST and remembered.get(patients.get(case, "")) == TEST:
                raise InputError(
                    f"splits.json: {case} is in {name}, but the patient is a test patient; expected test patients to "
                    "stay ones, or another data set (--out)"
                )


def check_counts(people: int, earlier: Mapping[str, str], validation: int | None, test: int, remark: str = "") -> None:
    """Check that so many patients can be held out.

    Args:
        people: number of patients with contours, and of locked ones without.
        earlier: lists by patient.
        validation, test: see `assign`.
        remark: ends a message.

    Raises:
        OptionError: if no patient would be left for training, or fewer would be locked than are.
    """
    if not people:
        return
    there_are = f"there are {people} patients with contours"
    locked = _locked(earlier)
    most = max(0, locked, people - 1 - (validation or 1))
    if test and not 0 < test <= most:
        raise OptionError(
            f"--test: found {test}, expected 0 to {most}: {there_are}, and some must be left for training and "
            f"validation{remark}"
        )
    if 0 < test < locked:
        raise OptionError(
            f"--test: found {test}, expected at least {locked}: so many patients are locked, and stay so; a larger "
            f"number locks new patients{remark}"
        )
    if validation is not None and not 1 <= validation < people:
        raise OptionError(f"--validation: found {validation}, expected 1 to {people - 1}: {there_are}{remark}")


def _locked(roles: Mapping[str, str]) -> int:
    return sum(role == TEST for role in roles.values())


def assign(
    patients: Mapping[str, str], earlier: Mapping[str, str], validation: int | None, test: int = 0
) -> dict[str, str]:
    """Give every patient a list: the earlier one, else test and then validation until they have enough, else train.

    Case numbers do not depend on what the scans show, so taking the first patients is as good as drawing at random.

    Args:
        patients: by case, of cases with contours.
        earlier: lists by patient.
        validation: how many patients to hold out for validation; None for a fifth of those that are not for the test.
        test: how many patients to hold out for the test, with those of earlier runs, also if they have no contours
            now; 0 for no further ones. Only patients who are in no list yet are added.

    Raises:
        OptionError: see `check_counts`; converted cases are kept then.
    """
    everyone = list(dict.fromkeys(patients[case] for case in sorted(patients)))
    roles = {patient: earlier[patient] for patient in everyone if patient in earlier}
    away = _locked(earlier) - _locked(roles)
    tested = max(test - away, _locked(roles))
    held_out_target = max(1, round(VALIDATION_SHARE * (len(everyone) - tested))) if validation is None else validation
    check_counts(
        len(everyone) + away if everyone else 0,
        earlier,
        validation,
        test,
        "; converted cases are kept for the next run",
    )
    for patient in everyone:
        held_out = sum(role == VALIDATION for role in roles.values())
        role = VALIDATION if held_out < held_out_target and len(everyone) > 1 else TRAIN
        roles.setdefault(patient, TEST if _locked(roles) + away < test else role)
    return roles


def listed(patients: Mapping[str, str], roles: Mapping[str, str]) -> Splits:
    """Cases by list; the lists train and validation always exist."""
    splits: Splits = {TRAIN: [], VALIDATION: []}
    for case in sorted(patients):
        splits.setdefault(roles[patients[case]], []).append(case)
    return splits
