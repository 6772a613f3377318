"""Which tested patients a model was trained on, and which of two models to use, in words."""

from dataclasses import replace
from pathlib import Path

from parotid_seg.commission.labelled import choose
from parotid_seg.commission.record import CommissionModelRecord
from parotid_seg.commission.tested_models import Hashes, advice, in_words, model_record
from parotid_seg.files import hash_file
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.compare import ComparisonRecord
from parotid_seg.scan.seen import Seen, hash_of_scan
from parotid_seg.train.data.data_set import open_data_set
from parotid_seg.train.data.patients import load_patients
from tests.runtime.report.drawn import Here


def test_a_scan_has_the_hash_that_training_records(data: Path, tmp_path: Path) -> None:
    patients = load_patients(open_data_set(data), ["p1"], tmp_path, (-200.0, 300.0))
    chosen = choose(data).patients
    assert Hashes(chosen).of("p1", Here.contract) == patients[0].sha256
    training = Seen().record([patients[0].sha256])
    contract = replace(Here.contract, training=training)
    assert model_record("x", "", contract, chosen, Hashes(chosen)).trained_on == ("p1",)


def test_channels_are_read_in_their_order(data: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("p0", "p1")):
        (tmp_path / f"p_{number:04d}.nii.gz").symlink_to(data / "imagesTr" / f"{name}_0000.nii.gz")
    chosen = choose(data).patients["p0"]
    files = replace(chosen, scan=tmp_path / "p_0000.nii.gz").channels(2)
    channels, windows = ("T1", "T2"), (None, None)
    assert hash_of_scan(files, channels, windows) != hash_of_scan(files[::-1], channels, windows)


PACKAGED = hash_file(DEFAULT_MODEL)


def model(name: str, sha256: str, *trained_on: str, complete: bool = True) -> CommissionModelRecord:
    return CommissionModelRecord(name=name, sha256=sha256, trained_on=trained_on, scans_complete=complete)


def test_what_is_not_recorded_is_said() -> None:
    assert in_words(model("m", ""), 3) == "m was trained on none of these scans, compared voxel by voxel"
    assert "not recorded" in in_words(model("m", "", complete=False), 3)
    both = in_words(model("m", "", "p1", "p2", complete=False), 3)
    assert "m was trained on 2 of these 3 patients (p1, p2): " in both
    assert both.endswith("which other scans it was trained on is not recorded")


def comparison(patients: int) -> ComparisonRecord:
    return ComparisonRecord(
        schema_version=1,
        a="a",
        b="b",
        references="r",
        verdict="",
        better=None,
        notes=[],
        patients=[f"p{number}" for number in range(patients)],
        missing={},
        differences=[],
    )


def test_the_model_that_is_known_is_kept() -> None:
    packaged, mine, other = model("the packaged model", PACKAGED), model("mine", "12"), model("other", "34")
    assert advice(comparison(6), packaged, mine, None).endswith("or A than B: keep A (the packaged model).")
    assert advice(comparison(6), mine, packaged, None).endswith("or A than B: keep B (the packaged model).")
    assert advice(comparison(6), other, mine, None).endswith("or A than B: keep A (other).")
    assert advice(comparison(1), packaged, mine, None) == (
        "1 patient is too few to choose between A (the packaged model) and B (mine): keep A (the packaged model)."
    )
