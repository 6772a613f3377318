"""A commissioning from scans to report: limits, planted faults, drift and the choice of a model."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import nibabel
import numpy as np
import pytest
from msgspec import structs

from parotid_seg.commands.terminal import print_commission
from parotid_seg.commission.drift import MARK, MOST_HEAD
from parotid_seg.commission.record import CommissionRecord, read_commission
from parotid_seg.commission.report_page import FIGURES, OTHER_FIGURES, verdict_in_words
from parotid_seg.errors import InputError, OutputError, ScanError
from parotid_seg.records import schema_text
from parotid_seg.runtime.pipeline.journal import NAME as JOURNAL
from parotid_seg.scan.seen import HASH_DIGITS, hash_of_scan
from tests.commission.data import DESCRIPTION, Faulty, data_set, halved, run, shifted, swapped, worse, write_patient
from tests.runtime.report.drawn import Here

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("drawn_example")]

SCHEMA = Path(__file__).parents[2] / "docs" / "commission.schema.json"


def texts(record: CommissionRecord) -> str:
    return "\n".join(fault.text for fault in record.faults)


def test_a_right_model_meets_all_limits(data: Path, first: Path) -> None:
    record = read_commission(first).record
    assert record.passed
    assert all(each.met for each in record.limits)
    assert record.faults == []
    assert record.evaluation.means["glands dsc"].mean == 1
    assert sorted(record.masks) == ["p0", "p1", "p2", "p3"]
    assert record.example
    assert record.drift is None
    assert record.patients.data == str(data)
    schema = json.loads(SCHEMA.read_text())
    jsonschema.validate(json.loads((first / "commission.json").read_text()), schema)


def test_the_schema_in_docs_is_that_of_the_types(snapshot: Callable[[str, str | Path], None]) -> None:
    snapshot(schema_text(CommissionRecord), SCHEMA)


FAULTS = {
    "sides_exchanged": (
        swapped,
        "left and right seem exchanged between masks and references, DSC 0.00, 1.00 when exchanged",
    ),
    "shifted": (shifted(1), "the masks seem shifted against the references by 1 voxel to posterior"),
    "part_missing": (halved, "the upper part of the left parotid is missing in the masks, "),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_planted_faults_are_named(data: Path, first: Path, tmp_path: Path, kind: str) -> None:
    fault, words = FAULTS[kind]
    record = run(data, tmp_path, Faulty(fault), earlier=first)
    assert [each.kind for each in record.faults] == [kind]
    assert words in texts(record)
    assert ": 4 of 4 patients (p0, p1, p2 and 1 more)" in texts(record)
    assert record.drift
    assert [each.kind for each in record.drift.faults] == [kind], "against the earlier masks as well"
    assert words.replace("references", "earlier masks") in record.drift.faults[0].text
    assert ": 5 of 5 cases" in record.drift.faults[0].text, "the example, too"
    assert "nothing that is recorded is different" in record.drift.verdict
    assert not record.passed
    assert record.exit_status == 4
    page = (tmp_path / "report.html").read_text()
    assert words in page
    assert re.search(
        r"<h1>Commissioning: \d of 9 limits missed, 1 fault found, 1 fault against the earlier masks</h1>", page
    )


def test_a_fault_decides_the_exit_status_though_all_limits_are_met(data: Path, tmp_path: Path) -> None:
    record = run(data, tmp_path, Faulty(shifted(1)))
    assert record.passed
    assert [each.kind for each in record.faults] == ["shifted"]
    assert record.exit_status == 4
    alone = structs.replace(record, faults=[])
    assert alone.exit_status == 0
    assert structs.replace(alone, passed=False).exit_status == 4


def test_equal_runs_have_no_drift(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path)
    for number in (1, 2):
        record = run(data, tmp_path)
        assert record.drift
        assert record.drift.verdict.startswith("no drift: all 5 masks are equal to those of ")
        assert (record.drift.changed, record.drift.conditions, record.drift.faults) == ([], [], [])
        assert record.passed
        assert record.exit_status == 0
        assert len(list((tmp_path / "earlier").iterdir())) == number, "each is kept"


def test_another_model_and_window_are_named(data: Path, first: Path, tmp_path: Path) -> None:
    contract = replace(Here.contract, windows=((-160.0, 240.0),))
    record = run(data, tmp_path, Faulty(worse, "cd" * 32, contract), earlier=first)
    assert record.drift
    assert record.drift.verdict.startswith("drift: 5 of 5 masks differ from those of ")
    assert "model file abababababab -> cdcdcdcdcdcd; window CT -200 to 300 -> CT -160 to 240" in record.drift.verdict
    assert [each.name for each in record.drift.conditions] == ["model file", "window"]
    (limit,) = (each for each in record.limits if each.key == "earlier_dsc")
    assert not limit.met
    assert limit.found == pytest.approx(10 / 11)


def test_equal_masks_do_not_hide_an_earlier_change(data: Path, first: Path, tmp_path: Path) -> None:
    run(data, tmp_path, Faulty(worse), earlier=first)
    drift = run(data, tmp_path, Faulty(worse)).drift
    assert drift
    assert drift.verdict.startswith("no drift: all 5 masks are equal to those of ")
    (note,) = drift.notes
    assert note.startswith("5 of the 5 earlier masks themselves differed from those of ")
    assert note.endswith(f"; --earlier compares with those: {first / 'commission.json'}")


def test_a_change_without_effect_is_named_and_no_drift(data: Path, first: Path, tmp_path: Path) -> None:
    record = run(data, tmp_path, Faulty(sha256="cd" * 32), earlier=first)
    assert record.drift
    assert record.drift.verdict.endswith("without effect on a mask: model file abababababab -> cdcdcdcdcdcd")
    assert record.passed


def test_a_fault_against_earlier_masks_alone_is_in_the_title(data: Path, first: Path, tmp_path: Path) -> None:
    record = run(data, tmp_path, Faulty(halved), earlier=first)
    alone = structs.replace(record, faults=[], limits=[])
    assert verdict_in_words(alone) == "all limits met, 1 fault against the earlier masks"
    assert alone.exit_status == 4


def test_ignored_voxels_show_no_fault(tmp_path: Path) -> None:
    data = data_set(tmp_path / "data", 2)
    labels = {**DESCRIPTION["labels"], "ignore": 3}  # type: ignore[dict-item]
    (data / "dataset.json").write_text(json.dumps({**DESCRIPTION, "labels": labels}))
    for path in (data / "labelsTr").iterdir():
        image = nibabel.load(path)
        voxels = np.asarray(image.dataobj)
        upper = np.where(voxels == halved(voxels.T).T, voxels, 3)
        nibabel.save(nibabel.Nifti1Image(upper, image.affine), path)
    record = run(data, tmp_path / "out")
    assert any("labelled 'ignore'" in note for note in record.evaluation.notes)
    assert record.faults == []


def test_drift_without_the_earlier_masks(data: Path, first: Path, tmp_path: Path) -> None:
    alone = tmp_path / "kept.json"
    alone.write_bytes((first / "commission.json").read_bytes())
    record = run(data, tmp_path / "out", Faulty(worse), earlier=alone)
    assert record.drift
    assert [each.dsc for each in record.drift.changed] == [None] * 5
    assert any("earlier masks are not beside their record" in note for note in record.drift.notes)
    (limit,) = (each for each in record.limits if each.key == "earlier_dsc")
    assert (limit.met, limit.found) == (False, None)


def test_scans_that_changed_are_named(first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = data_set(tmp_path / "data")
    write_patient(data, "p1", up=2)
    for folder, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        (data / folder / f"p3{ending}").unlink()
    record = run(data, tmp_path / "out", earlier=first)
    assert record.drift
    assert [(each.patient, each.input_changed) for each in record.drift.changed] == [("p1", ["scan", "reference"])]
    assert "different since then: the scans of p1" in record.drift.verdict
    assert record.drift.gone == ["p3"]
    (limit,) = (each for each in record.limits if each.key == "earlier_dsc")
    assert limit.patients == 3
    print_commission(record, tmp_path / "out")
    assert "note: masks in the earlier run only: p3\n" in capsys.readouterr().out


def test_new_patients_are_not_counted_as_compared_with_earlier_masks(first: Path, tmp_path: Path) -> None:
    record = run(data_set(tmp_path / "data", 5), tmp_path / "out", earlier=first)
    assert record.drift
    assert record.drift.added == ["p4"]
    assert [each.patients for each in record.limits if each.key in ("earlier_dsc", "worst_dsc")] == [5, 4]


def test_what_an_interrupted_run_has_made_is_kept(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("parotid_seg.commission.commissioning._evaluated", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(data, tmp_path)
    lines = (tmp_path / "masks" / JOURNAL).read_text().count("\n")
    assert not (tmp_path / "commission.json").exists()
    assert run(data, tmp_path).passed
    assert (tmp_path / "masks" / JOURNAL).read_text().count("\n") == lines == 4


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_which_model_to_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = data_set(tmp_path / "data", 6)
    better = run(data, tmp_path / "a", against=Faulty(worse, "cd" * 32)).against
    assert better
    assert better.advice == "Use B (mine.onnx): it is better on these patients than other.onnx."
    assert better.comparison.missing == {"a": [], "b": [], "references": []}, "not the patients that are not used"
    assert (better.comparison.a, better.comparison.b) == (
        str(tmp_path / "a" / "against"),
        str(tmp_path / "a" / "masks"),
    )
    gain = next(each for each in better.comparison.differences if (each.structure, each.figure) == ("glands", "dsc"))
    assert gain.difference
    assert gain.difference > 0, "the commissioned model minus the other"
    page = (tmp_path / "a" / "report.html").read_text()
    assert "Use B" in page
    assert "<bdi>B is better: DSC of the glands" in page
    places = [page.index(f"<td>{each}</td><td>DSC (higher") for each in ("right parotid", "left parotid", "glands")]
    assert places == sorted(places), "the patient's right first, as everywhere"
    for figure in ("DSC (higher", "HD95, mm (lower", "added path length, mm (lower", "ml, absolute (lower"):
        assert f"{figure} is better)</td>" in page
    assert not any("--backend" in note for note in better.comparison.notes), "on one engine"
    elsewhere = Faulty(worse, "cd" * 32)
    elsewhere.ran = replace(Here.ran, precision="bf16")
    print_commission(run(data, tmp_path / "c", against=elsewhere), tmp_path / "c")
    told = "note: A ran on drawn on cpu, bf16; B on drawn on cpu, fp32: with --backend both run on one engine\n"
    assert told in capsys.readouterr().out
    kept = run(data, tmp_path / "b", Faulty(worse, "cd" * 32), against=Faulty()).against
    assert kept
    assert kept.advice == "Keep A (other.onnx): it is better on these patients than mine.onnx."


def test_no_verdict_on_equal_models(data: Path, tmp_path: Path) -> None:
    masks = run(data, tmp_path / "masks", against=Faulty(sha256="cd" * 32)).against
    network = replace(Here.contract, graph_sha256="ef" * 32)
    models = (Faulty(contract=network), Faulty(worse, sha256="cd" * 32, contract=network))
    same = run(data, tmp_path / "network", models[0], against=models[1]).against
    file = run(data, tmp_path / "file", against=Faulty()).against
    assert masks
    assert same
    assert file
    both = "A (other.onnx) and B (mine.onnx)"
    assert (masks.equal, masks.advice) == (
        "masks",
        f"{both} give equal masks of all 4 patients: these cannot tell which to use.",
    )
    assert (same.equal, same.advice) == (
        "network",
        f"{both} are the same network with the same weights: there is nothing to choose.",
    )
    assert (file.equal, file.advice) == ("file", f"{both} are the same model file: there is nothing to choose.")
    window = replace(network, windows=((-160.0, 240.0),))
    other = run(data, tmp_path / "window", models[0], against=Faulty(worse, sha256="cd" * 32, contract=window)).against
    assert other
    assert other.equal is None, "one network with two windows gives two kinds of masks"
    for name in ("masks", "network", "file"):
        assert "no verdict" not in (tmp_path / name / "report.html").read_text()


def test_patients_that_a_model_was_trained_on_are_named(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan = (data / "imagesTr" / "p1_0000.nii.gz",)
    known = hash_of_scan(scan, Here.contract.channels, Here.contract.windows)[:HASH_DIGITS]
    training = {"scans": [known, "0" * HASH_DIGITS], "scans_complete": True}
    models = [Faulty(worse, contract=replace(Here.contract, training=training)), Faulty(sha256="cd" * 32)]
    record = run(data, tmp_path / "out", models[0], against=models[1])
    assert record.against
    assert (record.model.trained_on, record.model.scans_complete) == (("p1",), True)
    assert (record.against.model.trained_on, record.against.model.scans_complete) == ((), False)
    assert record.against.advice.endswith(" But B was trained on 1 of these 4 patients, which counts in its favour.")
    print_commission(record, tmp_path / "out")
    texts = (
        "mine.onnx was trained on 1 of these 4 patients (p1): its figures are better than those of new patients",
        "other.onnx: not recorded which scans it was trained on; whether these patients are among them is not known",
    )
    printed, page = capsys.readouterr().out, (tmp_path / "out" / "report.html").read_text()
    for text in texts:
        assert text in printed
        assert text in page


def test_patients_without_a_mask_are_named_and_miss_a_limit(tmp_path: Path) -> None:
    data = data_set(tmp_path / "data", 2)
    scan = data / "imagesTr" / "p1_0000.nii.gz"
    scan.write_bytes(scan.read_bytes()[:-200])
    record = run(data, tmp_path / "out")
    assert list(record.patients.failed) == ["p1"]
    assert [each.key for each in record.limits if not each.met] == ["failed_patients"]
    assert "Without a mask" in (tmp_path / "out" / "report.html").read_text()


def test_dose(data: Path, tmp_path: Path) -> None:
    import nibabel

    doses = tmp_path / "doses"
    doses.mkdir()
    for number in range(4):
        like = nibabel.load(data / "labelsTr" / f"p{number}.nii.gz")
        gray = np.broadcast_to(np.arange(like.shape[2], dtype=np.float32), like.shape)
        nibabel.save(nibabel.Nifti1Image(gray, like.affine), doses / f"p{number}.nii.gz")
    record = run(data, tmp_path / "out", Faulty(worse), dose=doses)
    found = {each.structure: each for each in record.limits if each.key == "mean_dose_error_gy"}
    assert found["parotid_left"].found == pytest.approx(0.5), "a slice less, 1 Gy a slice"
    assert "error of the mean dose" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize("patients", [1, 3])
def test_the_page_claims_no_more_than_so_few_patients_show(tmp_path: Path, patients: int) -> None:
    run(data_set(tmp_path / "data", patients), tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert ("no shift by up to two voxels" in page) == (patients > 1)
    assert ("at least 3 are needed" in page) == (patients == 1)
    assert ("1.000 (1.000 to 1.000)" in page) == (patients > 1), "one patient has no interval"
    assert "No structure has an expected DSC: the model is not calibrated" in page
    titles = {**FIGURES, **OTHER_FIGURES}
    undosed = {name for name in titles if not name.endswith("_gy")}
    means = read_commission(tmp_path / "out").record.evaluation.means
    assert undosed == {name.split(" ")[-1] for name in means}, "every figure of evaluate"
    assert all(f"<tr><td>{titles[name][0]}</td>" in page for name in undosed)


def test_the_page_loads_nothing_and_escapes_names(tmp_path: Path) -> None:
    data = data_set(tmp_path / "data", 1)
    for folder, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        path = data / folder / f"p0{ending}"
        path.rename(path.with_name(f"<b>x{ending}"))
    run(data, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text("ascii")
    assert "default-src 'none'; img-src data:; style-src 'sha256-" in page
    assert "script-src 'none'" in page
    assert not re.search(r"<script|https?:|<b>x", page)
    assert "&lt;b&gt;x" in page
    assert "data:image/webp;base64," in page
    assert page.index(MARK.decode()) < MOST_HEAD, "an interrupted run knows its own page"


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        ({"ended": "../../x"}, "Invalid isoformat string"),
        ({"example": {"mask": "../p0.nii.gz"}}, "found the file name '../p0.nii.gz'"),
        ({"schema_version": 2}, "found schema_version 2, expected 1"),
        ({"more": 1}, "unknown field"),
    ],
)
def test_an_earlier_record_is_read_strictly(
    data: Path, first: Path, tmp_path: Path, field: dict[str, Any], reason: str
) -> None:
    content = json.loads((first / "commission.json").read_text())
    for name, value in field.items():
        content[name] = {**content[name], **value} if isinstance(value, dict) else value
    (tmp_path / "commission.json").write_text(json.dumps(content))
    with pytest.raises(InputError) as raised:
        run(data, tmp_path)
    assert reason in str(raised.value)
    assert str(raised.value).startswith(str(tmp_path / "commission.json"))


def test_a_missing_dose_is_an_error_before_anything_runs(data: Path, tmp_path: Path) -> None:
    doses = tmp_path / "doses"
    doses.mkdir()
    (doses / "p0.nii.gz").write_bytes((data / "labelsTr" / "p0.nii.gz").read_bytes())
    with pytest.raises(ScanError, match="found no dose named p1, expected one"):
        run(data, tmp_path / "out", dose=doses)
    assert not (tmp_path / "out" / "masks").exists()


def test_another_report_is_not_replaced(data: Path, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("<p>of infer</p>")
    with pytest.raises(OutputError, match="was not written by commission"):
        run(data, tmp_path)
    assert (tmp_path / "report.html").read_text() == "<p>of infer</p>"


def test_other_channels_are_refused(tmp_path: Path) -> None:
    data = data_set(tmp_path / "data", 1)
    description = json.loads((data / "dataset.json").read_text())
    (data / "dataset.json").write_text(json.dumps({**description, "channel_names": {"0": "T1"}}))
    with pytest.raises(InputError, match="channel_names: found T1, expected those of the model: CT"):
        run(data, tmp_path / "out")
