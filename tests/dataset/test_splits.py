"""Patients stay together and stay in their list."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parotid_seg.dataset.splits import TEST, TRAIN, VALIDATION, assign, listed, roles_of
from parotid_seg.errors import InputError

PATIENTS = st.dictionaries(st.integers(0, 99).map("case_{:04d}".format), st.integers(0, 12).map(str), min_size=1)


@given(PATIENTS, PATIENTS)
def test_a_growing_set_never_trains_on_what_it_was_validated_on(first: Any, more: Any) -> None:
    grown = first | {case: patient for case, patient in more.items() if case not in first}
    before = assign(first, {}, None)
    after = assign(grown, before, None)
    assert all(after[patient] == role for patient, role in before.items())
    splits = listed(grown, after)
    assert sorted(splits[TRAIN] + splits[VALIDATION]) == sorted(grown)
    assert not {grown[case] for case in splits[TRAIN]} & {grown[case] for case in splits[VALIDATION]}
    assert roles_of(grown, splits) == after
    everyone, held_out = len(set(grown.values())), sum(role == VALIDATION for role in after.values())
    assert held_out >= (1 if everyone > 1 and len(before) > 1 else 0)


def test_so_many_patients_are_held_out() -> None:
    patients = {f"case_{number:04d}": str(number % 10) for number in range(20)}
    assert sum(role == VALIDATION for role in assign(patients, {}, None).values()) == 2
    assert sum(role == VALIDATION for role in assign(patients, {}, 7).values()) == 7
    for wrong in (0, 10):
        with pytest.raises(InputError, match="expected 1 to 9: there are 10 patients"):
            assign(patients, {}, wrong)
    assert assign({"case_0001": "a"}, {}, None) == {"a": TRAIN}
    assert assign({}, {}, None) == {}


def test_a_list_of_the_users_own_is_kept() -> None:
    patients = {"case_0001": "a", "case_0002": "a", "case_0003": "b", "case_0004": "c"}
    roles = roles_of(patients, {"test": ["case_0001"], TRAIN: ["case_0003", "other"]})
    assert roles == {"a": "test", "b": TRAIN}
    assert listed(patients, assign(patients, roles, None)) == {
        TRAIN: ["case_0003"],
        VALIDATION: ["case_0004"],
        "test": ["case_0001", "case_0002"],
    }
    with pytest.raises(InputError, match="case_0002 is in validation, another scan of the same patient in train"):
        roles_of(patients, {TRAIN: ["case_0001"], VALIDATION: ["case_0002"]})


def test_so_many_patients_are_locked() -> None:
    patients = {f"case_{number:04d}": str(number % 10) for number in range(20)}
    roles = assign(patients, {}, None, 4)
    assert [sum(role == name for role in roles.values()) for name in (TEST, VALIDATION, TRAIN)] == [4, 1, 5]
    more = {**patients, **{f"case_1{number:03d}": f"new{number}" for number in range(10)}}
    later = assign(more, roles, None)
    assert {patient for patient, role in later.items() if role == TEST} == {
        patient for patient, role in roles.items() if role == TEST
    }
    for wrong in (-1, 9):
        with pytest.raises(InputError, match=r"--test: found .* expected 0 to 8: there are 10 patients"):
            assign(patients, {}, None, wrong)
    with pytest.raises(InputError, match="--test: found 8, expected 0 to 7"):
        assign(patients, {}, 2, 8)


def locked(roles: dict[str, str]) -> set[str]:
    return {patient for patient, role in roles.items() if role == TEST}


def test_a_larger_number_locks_new_patients_and_moves_none() -> None:
    patients = {f"case_{number:04d}": str(number) for number in range(10)}
    roles = assign(patients, {}, None, 4)
    assert assign(patients, roles, None, 6) == roles, "there are no new ones"
    more = {**patients, **{f"case_1{number:03d}": f"new{number}" for number in range(3)}}
    later = assign(more, roles, None, 6)
    assert locked(later) == {*locked(roles), "new0", "new1"}
    assert roles.items() <= later.items()
    with pytest.raises(InputError, match="--test: found 3, expected at least 4: so many patients are locked"):
        assign(more, roles, None, 3)


def test_locked_patients_without_contours_are_counted() -> None:
    patients = {f"case_{number:04d}": str(number) for number in range(10)}
    roles = assign(patients, {}, None, 4)
    away = {case: patient for case, patient in patients.items() if case != "case_0000"}
    assert roles["0"] == TEST
    assert len(locked(assign({**away, "case_1000": "new"}, roles, None, 4))) == 3
    assert locked(assign({**away, "case_1000": "new"}, roles, None, 5)) >= {"new"}
