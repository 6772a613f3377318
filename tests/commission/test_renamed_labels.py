"""Drift between commissionings whose masks have labels of other names, numbers or structures."""

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from parotid_seg.contract import Contract
from tests.commission.data import Faulty, run
from tests.runtime.report.drawn import Here

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("drawn_example")]


def renamed(*labels: str) -> Contract:
    return replace(Here.contract, labels=("background", *labels))


def test_numbers_that_mean_another_structure_are_drift(data: Path, first: Path, tmp_path: Path) -> None:
    drift = run(data, tmp_path, Faulty(contract=renamed("parotid_right", "parotid_left")), earlier=first).drift
    assert drift
    assert [each.dsc for each in drift.changed] == [0] * 5, "the voxels are equal, their names are not"
    assert [each.kind for each in drift.faults] == ["sides_exchanged"]


class Spelled(Faulty):
    """With other names of the same structures."""

    agreement: ClassVar[dict[str, float]] = {}


def test_the_same_structures_spelled_otherwise_are_no_drift(data: Path, first: Path, tmp_path: Path) -> None:
    drift = run(data, tmp_path, Spelled(contract=renamed("Parotid_L", "Parotid_R")), earlier=first).drift
    assert drift
    assert drift.verdict.startswith("no drift: all 5 masks are equal to those of ")


def with_a_third(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    more = labels.copy()
    more[3:5, :3, :3] = 3
    return more


def test_a_structure_that_only_one_run_has_is_drift(data: Path, first: Path, tmp_path: Path) -> None:
    three = Faulty(with_a_third, contract=renamed("parotid_left", "parotid_right", "thyroid"))
    record = run(data, tmp_path / "three", three, earlier=first)
    assert record.drift
    assert {each.dsc for each in record.drift.changed} == {0}
    assert record.drift.changed[0].volumes_ml["thyroid"] > 0
    back = run(data, tmp_path / "two", earlier=tmp_path / "three").drift
    assert back
    assert {each.dsc for each in back.changed} == {0}
    assert back.changed[0].volumes_ml["thyroid"] == -record.drift.changed[0].volumes_ml["thyroid"]
    (limit,) = (each for each in record.limits if each.key == "earlier_dsc")
    assert not limit.met
