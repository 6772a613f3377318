"""The contract: what is written is read back, and nothing else is accepted."""

import dataclasses
import json
from typing import Any

import pytest

from parotid_seg.contract import SCHEMA_VERSION, Contract, Grid
from parotid_seg.errors import InputError, ModelError
from tests.calibrations import BOTH, USUAL

CONTRACT = Contract(
    labels=("background", "parotid_left", "parotid_right"),
    channels=("CT",),
    windows=((-200.0, 300.0),),
    grid=Grid(size=64, spacing_mm=2.0, offsets_mm=(-3, 0, 3)),
    weights="fp16",
    training={"data": "a", "epochs": 3},
)


def changed(**values: Any) -> dict[str, Any]:
    """A calibration with other values."""
    return {**dataclasses.asdict(BOTH), **values}


def ranged(**values: Any) -> dict[str, Any]:
    """An operating range with other values."""
    return {**dataclasses.asdict(USUAL), **values}


FEATURE = dataclasses.asdict(BOTH.features[0])


def test_round_trip() -> None:
    assert Contract.from_json(CONTRACT.to_json(), where="x") == CONTRACT
    several = dataclasses.replace(CONTRACT, channels=("CT", "T1"), windows=((-200.0, 300.0), None))
    assert Contract.from_json(several.to_json(), where="x") == several
    calibrated = dataclasses.replace(CONTRACT, calibrations=(BOTH,), operating_range=USUAL)
    assert Contract.from_json(calibrated.to_json(), where="x") == calibrated


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema_version": SCHEMA_VERSION + 1}, f"schema_version {SCHEMA_VERSION + 1}, expected {SCHEMA_VERSION}"),
        ({"schema_version": 6}, "schema_version 6, expected 7; export the checkpoint again"),
        ({"schema_version": True}, "schema_version true"),
        ({"graph_sha256": 5}, r"Expected `str`, got `int` - at `\$.graph_sha256`"),
        ({"labels": "background"}, r"Expected `array`, got `str` - at `\$.labels`"),
        ({"labels": ["background", 5]}, r"at `\$.labels\[1\]`"),
        ({"labels": ["background", "gland", "gland"]}, "at most 256 different names"),
        ({"windows": [["-200", 300]]}, r"at `\$.windows\[0\]\[0\]`"),
        ({"windows": [[-1e400, 300]]}, "expected a finite number"),
        ({"grid": {"size": 96.5}}, r"at `\$.grid.size`"),
        ({"grid": {"size": 10**9}}, "grid.size: found 1000000000, expected at most"),
        ({"grid": {"sizes": 96}}, "unknown field `\\$.grid.sizes`"),
        ({"grid": None}, r"at `\$.grid`"),
        ({"verification": []}, r"at `\$.verification`"),
        ({"precision": "fp12"}, "precision: found 'fp12'"),
        ({"cost": {"parameters": "1"}}, r"at `\$.cost"),
        ({"surprise": 1}, "surprise"),
        ({"labels": ["parotid_left"]}, "labels"),
        ({"labels": ["background", "parotid_left", "Ignore"]}, "expected structures only"),
        ({"grid": {"size": -1}}, "grid.size"),
        ({"windows": [[300, -200]]}, "two rising intensities"),
        ({"operating_range": {}}, r"missing required field `scan` - at `\$.operating_range`"),
        ({"operating_range": ranged(surprise=1)}, r"unknown field `\$.operating_range.surprise`"),
        ({"operating_range": ranged(margin="a")}, r"at `\$.operating_range.margin`"),
        (
            {"operating_range": ranged(scan=[{"name": "a", "low": 2.0, "high": 1.0}])},
            "feature a: found the range 2.0 to 1",
        ),
        (
            {"operating_range": ranged(scan=[{"name": "a", "low": 0.0, "high": 1.0}] * 2)},
            "a, a, expected each feature once",
        ),
        ({"calibrations": [{}]}, r"missing required field `structures` - at `\$.calibrations\[0\]`"),
        ({"calibrations": [changed(structures=["nose"])]}, "calibrations: found nose, expected each of the labels"),
        ({"calibrations": [changed(), changed()]}, "expected each of the labels at most once"),
        ({"calibrations": [changed(surprise=1)]}, r"unknown field `\$.calibrations\[0\].surprise`"),
        ({"calibrations": [changed(margin="a")]}, r"at `\$.calibrations\[0\].margin`"),
        ({"calibrations": [changed(structures=[])]}, "expected at least one structure"),
        ({"calibrations": [changed(features=[FEATURE, FEATURE])]}, "each feature once"),
        (
            {"calibrations": [changed(features=[{**FEATURE, "deviation": 0.0}])]},
            "expected finite numbers and a positive",
        ),
        ({"windows": [[-200, 300], None]}, "found 2 for 1 channels"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], words: str) -> None:
    text = json.dumps({**dataclasses.asdict(CONTRACT), **change})
    with pytest.raises(ModelError, match=words) as caught:
        Contract.from_json(text, where="model.onnx")
    assert str(caught.value).startswith("model.onnx")


@pytest.mark.parametrize("text", ["", "[]", "{}", "5", "null", "not json", "[" * 100_000, '{"schema_version": 5}'])
def test_unreadable_contracts(text: str) -> None:
    with pytest.raises(ModelError, match="the model's contract is not usable") as caught:
        Contract.from_json(text, where="model.onnx")
    assert "\n" not in str(caught.value)


def test_a_missing_field_is_refused() -> None:
    values = dataclasses.asdict(CONTRACT)
    del values["labels"]
    with pytest.raises(ModelError, match="labels"):
        Contract.from_json(json.dumps(values), where="model.onnx")


@pytest.mark.parametrize("values", [{"size": 0}, {"spacing_mm": float("nan")}, {"kernel_mm": -1}, {"offsets_mm": ()}])
def test_grids_check_themselves(values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="grid"):
        Grid(**values)
