"""A folder that is commissioned again: with which run it is compared, and what is moved when."""

from dataclasses import replace
from pathlib import Path

import pytest

from parotid_seg.commission.record import read_commission
from parotid_seg.errors import InputError, OutputError, ScanError
from tests.commission.data import Faulty, data_set, run, worse

pytestmark = pytest.mark.usefixtures("drawn_example")


def other_patients(folder: Path) -> Path:
    """A data set of one patient with another name."""
    data = data_set(folder, 1)
    for kind, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        (data / kind / f"p0{ending}").rename(data / kind / f"other{ending}")
    return data


def test_the_run_that_ended_last_is_compared_with(data: Path, tmp_path: Path) -> None:
    first = run(data, tmp_path)
    run(data, tmp_path, Faulty(worse))
    (accepted,) = (tmp_path / "earlier").iterdir()
    accepted.rename(accepted.with_name("the first"))
    (tmp_path / "earlier" / "@eaDir").mkdir()
    (tmp_path / "earlier" / "notes.txt").touch()
    changed = tmp_path / "earlier" / "the first" / "commission.json"
    changed.write_text(changed.read_text().replace(first.ended, "2020-01-01T00:00:00+00:00"))
    record = run(data, tmp_path, Faulty(worse))
    assert record.drift
    assert record.drift.verdict.startswith("no drift: all 5 masks are equal to those of ")
    assert read_commission(Path(record.drift.earlier)).record.drift, "that of the second run"


@pytest.mark.parametrize("with_example", [True, False])
def test_no_patient_in_both_runs(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_example: bool
) -> None:
    if not with_example:
        monkeypatch.setattr("parotid_seg.commission.commissioning._example", lambda *_: None)
    record = run(other_patients(tmp_path / "data"), tmp_path / "out", earlier=first)
    assert record.drift
    assert record.drift.verdict.startswith("no drift can be told: no patient is in this run and in that of ")
    assert record.drift.verdict.endswith("; the mask of the packaged example is equal") == with_example
    (limit,) = (each for each in record.limits if each.key == "earlier_dsc")
    assert (limit.met, limit.found, limit.patients) == (False, None, 0)
    assert limit.note == "no patient is in both runs: use another --out for other patients"


def test_a_run_that_cannot_begin_moves_nothing(data: Path, first: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(data, out)
    before = sorted(path.relative_to(out) for path in out.rglob("*"))
    doses = tmp_path / "doses"
    doses.mkdir()
    (doses / "p0.nii.gz").write_bytes((data / "labelsTr" / "p0.nii.gz").read_bytes())

    of_t1 = Faulty(contract=replace(Faulty.contract, channels=("T1",)))
    with pytest.raises(ScanError, match="found no dose named p1"):
        run(data, out, dose=doses)
    with pytest.raises(InputError, match="expected those of the model: T1"):
        run(data, out, of_t1)
    with pytest.raises(InputError, match="expected those of the model: T1"):
        run(data, out, against=of_t1)
    assert sorted(path.relative_to(out) for path in out.rglob("*")) == before


@pytest.mark.parametrize("name", ["masks", "example", "against", "earlier"])
def test_nothing_is_written_through_a_link(data: Path, tmp_path: Path, name: str) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    for folder in (out, elsewhere):
        folder.mkdir()
    (out / name).symlink_to(elsewhere)
    with pytest.raises(OutputError, match=f"{name}: found a symbolic link, expected a folder"):
        run(data, out, against=Faulty())
    assert list(elsewhere.iterdir()) == []
