"""What of a CT's tissue is the patient."""

import numpy as np
from numpy.typing import NDArray

from parotid_seg.scan.ct.patient import of_patient

SIZE = 60
ROWS, COLUMNS = np.indices((SIZE, SIZE))


def disc(row: int, column: int, radius: int) -> NDArray[np.bool_]:
    return np.hypot(ROWS - row, COLUMNS - column) <= radius


HEAD, ARM, TABLE = disc(25, 30, 14), disc(25, 5, 4), (ROWS >= 46) & (ROWS < 49)


def test_table_and_arms_are_not_the_patient() -> None:
    (patient,) = of_patient((HEAD | ARM | TABLE)[None], (5.0, 5.0))
    assert np.array_equal(patient, HEAD)


def test_a_table_that_the_patient_lies_on_goes_but_beneath_him() -> None:
    table = (ROWS >= 39) & (ROWS < 42)
    (patient,) = of_patient((HEAD | table)[None], (5.0, 5.0))
    assert not patient[~disc(25, 30, 22)].any()
    assert patient[HEAD].mean() > 0.99


def test_each_slice_has_its_own_patient() -> None:
    """Shoulders would join the arms beside the head in three dimensions."""
    shoulders = (abs(ROWS - 25) < 12) & (COLUMNS < 55)
    head, below = of_patient(np.stack([HEAD | ARM, shoulders]), (5.0, 5.0))
    assert np.array_equal(head, HEAD)
    assert np.array_equal(below, shoulders)


def test_thickness_is_in_mm() -> None:
    assert of_patient(TABLE[None], (10.0, 10.0)).any()
    assert not of_patient(TABLE[None], (5.0, 5.0)).any()


def test_a_scan_cropped_within_the_patient_is_all_patient() -> None:
    assert of_patient(np.ones((2, 4, 4), bool), (5.0, 5.0)).all()
