"""The gate: what is the trained model passes, what is not is not written, by whatever it was sabotaged."""

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from parotid_seg.contract import Contract
from parotid_seg.errors import InputError, ModelError
from parotid_seg.export import verified_export as module
from parotid_seg.export.candidates import ExportCandidate, fastest, make, run_of, scores_of
from parotid_seg.export.export_options import ExportOptions
from parotid_seg.export.onnx_file import with_contract
from parotid_seg.export.ops_by_dtype import work_of
from parotid_seg.export.parity import Parity, ScanParity, contour_of
from parotid_seg.export.proof import prove, summary_of
from parotid_seg.export.verified_export import export
from parotid_seg.runtime.engines.engine_file import BatchProfile
from parotid_seg.runtime.engines.load import load_backend
from parotid_seg.runtime.engines.onnxruntime.cpu import computed_in
from parotid_seg.runtime.engines.rewriting.precision import lower
from parotid_seg.runtime.tolerance import GATES, QUANTISED, SAME
from parotid_seg.train.checkpoint import Checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("translated_before")]


def changed(model: onnx.ModelProto, names: str, change: Callable[..., Any]) -> onnx.ModelProto:
    """A copy with some of the constants changed."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    found = [each for each in copy.graph.initializer if names in each.name]
    assert found
    for constant in found:
        values = numpy_helper.to_array(constant)
        constant.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(change(values), values.dtype), constant.name))
    return copy


def windowed_differently(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model that adds 60 to every intensity before windowing."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.initializer.append(numpy_helper.from_array(np.array(60, np.float32), "shift"))
    node = next(node for node in copy.graph.node if node.op_type == "Max" and node.name.startswith("to_grid"))
    shift = onnx.helper.make_node("Add", [node.input[0], "shift"], ["shifted"], name="to_grid/Add")
    node.input[0] = "shifted"
    copy.graph.node.insert(list(copy.graph.node).index(node), shift)
    return copy


def mirrored(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model that gives its labels back with left and right of every row exchanged."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for name, value in (("starts", -1), ("ends", -(2**31)), ("axes", 2), ("steps", -1)):
        copy.graph.initializer.append(numpy_helper.from_array(np.array([value], np.int64), name))
    last = next(node for node in copy.graph.node if node.output[0] == "labels")
    last.output[0] = "unmirrored"
    copy.graph.node.append(
        onnx.helper.make_node("Slice", ["unmirrored", "starts", "ends", "axes", "steps"], ["labels"])
    )
    return copy


SABOTAGE = {
    "scaled weight": lambda model: changed(model, "unet.classify.bias", lambda v: v + np.array([0, 3, 0], np.float32)),
    "shifted window": windowed_differently,
    "swapped labels": lambda model: changed(model, "unet.classify", lambda v: v[[0, 2, 1]]),
    "mirrored axis": mirrored,
}


@pytest.mark.parametrize("sabotage", SABOTAGE)
def test_a_sabotaged_model_is_not_written(
    sabotage: str,
    run: Path,
    translated: tuple[onnx.ModelProto, Contract],
    two: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, contract = translated
    monkeypatch.setattr(module, "to_onnx", lambda *_, **__: (SABOTAGE[sabotage](model), contract))
    out = tmp_path / "bad.onnx"
    with pytest.raises(ModelError, match=r"not written: the exported model differs from the trained one: p\d_0000"):
        export(run / "best.pt", out, ExportOptions(verify=two / "imagesTr"))
    assert not out.exists()
    record = json.loads(out.with_suffix(".parity.json").read_text())
    assert record["passed"] is False
    assert not all(row["passed"] for row in record["candidates"][0]["rows"])
    assert out.with_suffix(".parity.png").stat().st_size > 10_000


def test_a_file_of_an_earlier_export_is_said_to_be_one(tmp_path: Path) -> None:
    proof = SimpleNamespace(failure="its masks differ", worst=SimpleNamespace(passed=True))
    out = tmp_path / "model.onnx"
    for earlier in (False, True):
        with pytest.raises(ModelError, match="not written: its masks differ") as failed:
            module._chosen([module._Tried(Any, proof, b"")], Any, {}, out, print)  # type: ignore[arg-type]
        assert failed.value.reason.endswith("; the file of this name is of an earlier export") == earlier
        out.write_bytes(b"earlier")


@pytest.fixture(scope="module")
def overflowing_graph(
    checkpoint: Checkpoint, translated: tuple[onnx.ModelProto, Contract], two: Path
) -> tuple[onnx.ModelProto, Contract, Parity]:
    """The same function as the trained model, but with values of several 100,000 between two layers.

    Returns:
        its graph and contract, and its masks.
    """
    block = "unet.encoder.layers.0.blocks.0.attn"
    weights = {name: value.clone() for name, value in checkpoint.weights.items()}
    weights[f"{block}.qkv.weight"][32:] *= 4e5  # the values; queries and keys are the first 2 x 16
    weights[f"{block}.qkv.bias"][32:] *= 4e5
    weights[f"{block}.proj.weight"] /= 4e5
    model, contract = translated
    model = changed(model, f"{block}.values.", lambda values: values * 4e5)
    model = changed(model, f"{block}.proj.weight", lambda values: values / 4e5)
    network = replace(checkpoint, weights=weights).network()
    return model, contract, Parity(network, contract, two / "imagesTr", BatchProfile(1, 7, 16))


def test_overflowing_activations_fail_in_fp16(overflowing_graph: tuple[onnx.ModelProto, Contract, Parity]) -> None:
    model, contract, parity = overflowing_graph
    work = work_of(model.SerializeToString(), parity.usual_chunk())
    whole = prove(ExportCandidate("fp32", model), with_contract(model, contract), parity, work)
    assert not whole.failure
    half = lower(model, "fp16", lambda _: False)
    proof = prove(ExportCandidate("fp16", half), with_contract(half, contract), parity, work)
    assert "differs from the trained one" in proof.failure
    assert proof.rows[0].not_finite or proof.rows[1].not_finite


def test_fallbacks_end_where_the_overflow_is(overflowing_graph: tuple[onnx.ModelProto, Contract, Parity]) -> None:
    model, _, parity = overflowing_graph
    said: list[str] = []
    candidate = make("fp16", model, parity, said.append)
    assert any("blocks.0.attn" in kept for kept in candidate.kept)
    assert not any("decoder" in kept or "layers.1" in kept for kept in candidate.kept)
    assert parity.quick(run_of(candidate.model), SAME).passed
    assert list(candidate.steps) == said
    assert sum("FAILED" in step for step in said) >= 5


def test_fp32_where_fp16_was_asked_fails(
    run: Path, two: Path, balls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "make", lambda precision, model, *_, **__: ExportCandidate(precision, model))
    with pytest.raises(ModelError, match=r"graph asks for 100\.0% fp32, expected fp16 in at least 90% of the network"):
        export(run / "best.pt", tmp_path / "m.onnx", ExportOptions("fp16", verify=two / "imagesTr"))
    with pytest.raises(ModelError, match=r"graph asks for 100\.0% fp32, expected int8 in at least 90% of the network"):
        export(run / "best.pt", tmp_path / "m.onnx", ExportOptions("int8", verify=balls / "imagesTr"))
    assert not list(tmp_path.glob("*.onnx"))


@pytest.mark.parametrize("precision", ["fp16", "int8", "auto"])
def test_precisions_pass_and_say_what_they_are(
    precision: str, run: Path, balls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The network was trained for seconds: what INT8 loses against contours depends on the CPU that trained it.
    monkeypatch.setitem(GATES, "int8", replace(QUANTISED, most_dsc_lost=0.05))
    said: list[str] = []
    out = tmp_path / "m.onnx"
    proof = export(run / "best.pt", out, ExportOptions(precision, verify=balls / "imagesTr"), said.append)
    backend = load_backend(out, "onnxruntime", "cpu")
    assert backend.contract.precision == proof.precision
    assert backend.ran.precision == computed_in(proof.precision), "on this CPU FP16 may be computed in FP32"
    assert precision in ("auto", proof.precision)
    assert backend.contract.verification["lowest_dsc"] >= GATES[proof.precision].least_dsc
    assert backend.contract.verification["multiply_adds"][proof.precision] >= 0.5  # a small network
    record = json.loads(out.with_suffix(".parity.json").read_text())
    assert record["model_sha256"] == backend.model_sha256
    assert [each["precision"] for each in record["candidates"]] == (
        ["fp32", "int8"] if precision == "auto" else [precision]
    )
    assert record["not_considered"] == {}
    assert record["seconds"].keys() >= {"translate", "trained model", f"prove {proof.precision}"}
    rows = record["candidates"][0]["rows"]
    assert {row["batch_size"] for row in rows} == {1, 16}
    assert len({tuple(row["size"]) for row in rows if row["scan"].startswith("p0")}) == 3
    assert all(row["dsc_lost"] is not None for row in rows if row["size"] == [24, 50, 50])
    assert any(row["not_finite"] == 0 for row in rows)


@pytest.fixture
def few(balls: Path, tmp_path: Path) -> Path:
    """Four of the scans."""
    folder = tmp_path / "few"
    folder.mkdir()
    for path in sorted((balls / "imagesTr").iterdir())[:4]:
        shutil.copy(path, folder)
    return folder


@pytest.mark.parametrize("engine", ["none", "tensorrt-rtx"])
def test_int8_is_refused_where_few_scans_can_speak_for_it(
    few: Path, tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ready_to_build", lambda *_: None)
    monkeypatch.setattr(module, "load_checkpoint", lambda _: SimpleNamespace(training={}, channels=("CT",)))
    wanted = "--precision int8: expected --verify with at least 5 scans, found"
    with pytest.raises(InputError, match=f"{wanted} no --verify; INT8 that passes on few scans fails on others"):
        export(tmp_path / "best.pt", tmp_path / "m.onnx", ExportOptions("int8", engine=engine))
    with pytest.raises(InputError, match=f"{wanted} 4 scans in {few};"):
        export(tmp_path / "best.pt", tmp_path / "m.onnx", ExportOptions("int8", engine=engine, verify=few))
    assert not list(tmp_path.glob("m.*"))


def test_auto_does_not_consider_int8_on_few_scans_and_says_so(run: Path, few: Path, tmp_path: Path) -> None:
    said: list[str] = []
    out = tmp_path / "m.onnx"
    assert export(run / "best.pt", out, ExportOptions("auto", verify=few), said.append).precision == "fp32"
    reason = f"expected --verify with at least 5 scans, found 4 scans in {few}"
    assert f"int8 is not considered: {reason}" in said
    record = json.loads(out.with_suffix(".parity.json").read_text())
    assert record["not_considered"] == {"int8": reason}
    assert [each["precision"] for each in record["candidates"]] == ["fp32"]


def test_a_slowed_candidate_is_not_taken(
    translated: tuple[onnx.ModelProto, Contract], parity: Parity, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, speeds = fastest(
        [ExportCandidate("fp32", translated[0]), ExportCandidate("int8", translated[0])], parity.usual_chunk()
    )
    assert set(speeds) == {"fp32", "int8"}
    assert chosen.precision in speeds
    monkeypatch.setattr("parotid_seg.export.candidates.LEAST_GAIN", 1e9)
    pair = [ExportCandidate("fp32", translated[0]), ExportCandidate("int8", translated[0])]
    assert fastest(pair, parity.usual_chunk())[0] is pair[0]


def test_scores_are_what_labels_are_chosen_by(translated: tuple[onnx.ModelProto, Contract], parity: Parity) -> None:
    inputs = parity.usual_chunk()
    scores = scores_of(translated[0])(inputs)
    np.testing.assert_array_equal(scores.argmax(axis=1), run_of(translated[0])(inputs))


def test_structures_that_the_trained_model_never_finds_are_named(parity: Parity) -> None:
    assert parity.never_found() == []
    without = copy.copy(parity)
    without.comparisons = [
        each._replace(expected=np.where(each.expected == 1, each.expected, 0)) for each in parity.comparisons
    ]
    assert without.never_found() == ["parotid_right"]


def test_what_is_never_found_is_told_and_recorded(
    run: Path, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Parity, "never_found", lambda _: ["parotid_right"])
    said: list[str] = []
    export(run / "best.pt", tmp_path / "m.onnx", ExportOptions(verify=few), said.append)
    assert any(line.startswith("warning: the trained model finds no parotid_right in the scans of") for line in said)
    assert json.loads((tmp_path / "m.parity.json").read_text())["never_found"] == ["parotid_right"]


def test_the_last_batch_is_ragged(parity: Parity) -> None:
    depth = parity.comparisons[0].volume.shape[0]
    assert depth % 7 or depth % 16


def test_contours_are_found_where_nnunet_has_them(tmp_path: Path) -> None:
    for folder in ("imagesTs", "labelsTs"):
        (tmp_path / folder).mkdir()
    (tmp_path / "labelsTs" / "a.nii.gz").touch()
    assert contour_of(tmp_path / "imagesTs" / "a_0000.nii.gz") == tmp_path / "labelsTs" / "a.nii.gz"
    assert contour_of(tmp_path / "imagesTs" / "b_0000.nii.gz") is None
    assert contour_of(tmp_path / "a_0000.nii.gz") is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "fp8"}, "--precision: found 'fp8', expected one of: fp32, fp16, int8, auto"),
        ({"weights": "int4"}, "--weights: found 'int4'"),
        ({"engine": "tflite"}, "--engine: found 'tflite', expected one of: none, tensorrt, tensorrt-rtx"),
    ],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        ExportOptions(**options)


def test_scans_of_equal_names_are_two(
    few: Path, checkpoint: Checkpoint, translated: tuple[onnx.ModelProto, Contract], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder for each patient, and the same file name in each."""
    monkeypatch.setattr(
        "parotid_seg.export.parity.torch_labels", lambda _, volume, *__: np.zeros(volume.shape, np.uint8)
    )
    for number, path in enumerate(sorted(few.iterdir())[:2]):
        (few / str(number)).mkdir()
        path.rename(few / str(number) / "ct.nii.gz")
    found = Parity(checkpoint.network(), translated[1], few, BatchProfile())
    other = sorted(path.name for path in few.glob("*.nii.gz"))
    assert list(dict.fromkeys(each.scan for each in found.comparisons)) == [*other, "0/ct.nii.gz", "1/ct.nii.gz"]
    rows = found.check(run_of(translated[0]), SAME)
    assert summary_of(rows)["scans"] == 4
    comparison, _ = found.labels_of(run_of(translated[0]), rows[-1])
    assert comparison is found.comparisons[-1]


def test_a_folder_without_scans(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"--verify: .*no scan"):
        export(run / "best.pt", tmp_path / "m.onnx", ExportOptions(verify=tmp_path / "empty"))
    assert not (tmp_path / "m.onnx").exists()


def test_a_failure_names_the_limits_that_it_is_beyond() -> None:
    row = ScanParity(
        scan="a", size=(3, 4, 5), batch_size=2, changed=9, changed_share=0.04, dsc=0.97, hd95_mm=2.0, volume_ml=0.1,
        dsc_lost=0.01, not_finite=3,
    )  # fmt: skip
    judged = row.judged(QUANTISED)
    assert judged.exceeded == (
        "DSC 0.9700, expected at least 0.98",
        "changed voxels 4.00%, expected at most 3.0%",
        "DSC against the contour lower by 0.0100, at most 0.005",
        "3 scores not finite, expected none",
    )
    assert not judged.passed
    assert str(judged).endswith(f"FAILED: {'; '.join(judged.exceeded)}")
    fine = replace(row, changed_share=0.01, dsc=0.99, dsc_lost=0.0, not_finite=0).judged(QUANTISED)
    assert (fine.passed, fine.exceeded) == (True, ())
    broken = replace(row, dsc=float("nan")).judged(QUANTISED)
    assert broken.exceeded[0] == "DSC nan, expected at least 0.98"
