"""Model files: the contract is read without the ONNX package, and a changed file is noticed."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from parotid_seg.calibration import FeatureRange, OperatingRange
from parotid_seg.contract import METADATA_KEY
from parotid_seg.errors import ModelError
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.engines.load import load_backend
from parotid_seg.runtime.engines.model_file import (
    SEAL_KEY,
    graph_hash,
    has_external_data,
    metadata,
    read_model,
    sealed,
    with_new_contract,
)
from parotid_seg.runtime.engines.protobuf import encoded
from tests.calibrations import BOTH, USUAL


def model(contract: str | None, graph: bytes = b"") -> bytes:
    """The bytes of an ONNX file that computes nothing; sealed if it has a contract."""
    content = b"\x08\x0a" + encoded(2, b"producer") + encoded(7, encoded(2, b"graph") + graph)
    if contract is None:
        return content
    return sealed(content + entry(METADATA_KEY, contract))


def entry(key: str, text: str) -> bytes:
    """An entry of an ONNX file's metadata."""
    return encoded(14, encoded(1, key.encode()) + encoded(2, text.encode()))


def contract_for(graph: bytes = b"", **changes: object) -> str:
    """The packaged model's contract, for another graph."""
    text = read_model(DEFAULT_MODEL).contract.to_json()
    return json.dumps({**json.loads(text), "graph_sha256": graph_hash(model(None, graph)), **changes})


def test_the_packaged_model_is_as_it_was_exported() -> None:
    content, contract, _ = read_model(DEFAULT_MODEL)
    assert contract.graph_sha256 == graph_hash(content)
    assert contract.labels == ("background", "parotid_left", "parotid_right")
    assert sealed(content) == content


def test_a_changed_graph_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(model(contract_for()))
    assert read_model(path).contract.graph_sha256 == hashlib.sha256(encoded(2, b"graph")).hexdigest()
    path.write_bytes(sealed(path.read_bytes().replace(b"graph", b"grape", 1)))
    with pytest.raises(ModelError, match="found a graph of SHA-256"):
        read_model(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"-200.0", b"-100.0"),
        (b"parotid_left", b"parotid_loft"),
        (b'"spacing_mm": 2.25', b'"spacing_mm": 2.75'),
    ],
    ids=["window", "label", "grid"],
)
def test_a_changed_contract_is_refused(tmp_path: Path, old: bytes, new: bytes) -> None:
    content = DEFAULT_MODEL.read_bytes()
    assert old in content
    path = tmp_path / "m.onnx"
    path.write_bytes(content.replace(old, new))
    with pytest.raises(ModelError, match=r"m\.onnx: not as it was exported: its seal"):
        load_backend(path)


def change_operator_set(content: onnx.ModelProto) -> None:
    content.opset_import[0].version = 19


def add_a_function(content: onnx.ModelProto) -> None:
    identity = helper.make_node("Identity", ["a"], ["b"])
    content.functions.append(helper.make_function("", "Softmax", ["a"], ["b"], [identity], content.opset_import))


@pytest.mark.parametrize("change", [change_operator_set, add_a_function])
def test_what_lies_beside_contract_and_graph_is_sealed_too(tmp_path: Path, change: Callable[..., None]) -> None:
    content = onnx.load(DEFAULT_MODEL)
    change(content)
    path = tmp_path / "m.onnx"
    onnx.save(content, path)
    with pytest.raises(ModelError, match="its seal"):
        read_model(path)


def test_a_file_that_is_only_written_anew_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(onnx.load(DEFAULT_MODEL), path)
    assert read_model(path).contract == read_model(DEFAULT_MODEL).contract


def test_a_model_without_its_seal_is_refused(tmp_path: Path) -> None:
    content = onnx.load(DEFAULT_MODEL)
    (seal,) = (each for each in content.metadata_props if each.key == SEAL_KEY)
    content.metadata_props.remove(seal)
    path = tmp_path / "m.onnx"
    onnx.save(content, path)
    with pytest.raises(ModelError, match="its seal"):
        read_model(path)


def with_calibration(name: str) -> bytes:
    """The packaged model with a calibration of one feature."""
    feature = dataclasses.replace(BOTH.features[0], name=name)
    contract = read_model(DEFAULT_MODEL).contract
    changed = dataclasses.replace(contract, calibrations=(dataclasses.replace(BOTH, features=(feature,)),))
    return with_new_contract(DEFAULT_MODEL.read_bytes(), changed)


def test_a_model_is_calibrated_without_a_change_of_its_graph(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(with_calibration("volume"))
    content, contract, _ = read_model(path)
    assert [each.features[0].name for each in contract.calibrations] == ["volume"]
    assert graph_hash(content) == graph_hash(DEFAULT_MODEL.read_bytes())
    path.write_bytes(content.replace(b'"intercept": 0.8', b'"intercept": 0.9'))
    with pytest.raises(ModelError, match="its seal"):
        read_model(path)


def test_a_calibration_by_an_unknown_feature_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(with_calibration("mood"))
    with pytest.raises(
        ModelError, match="its calibration: found the feature 'mood', expected one of: volume, side_ratio"
    ):
        read_model(path)


def test_a_contract_of_another_graph_is_not_written() -> None:
    contract = dataclasses.replace(read_model(DEFAULT_MODEL).contract, graph_sha256="0" * 64)
    with pytest.raises(ValueError, match="another graph"):
        with_new_contract(DEFAULT_MODEL.read_bytes(), contract)


def test_metadata_of_the_same_name_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(sealed(model(contract_for()) + entry(METADATA_KEY, contract_for())))
    with pytest.raises(ModelError, match="not an ONNX model"):
        read_model(path)
    assert set(metadata(model(contract_for()))) == {METADATA_KEY, SEAL_KEY}


def external(name: str = "w", location: str = "/etc/passwd") -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def with_initializer(tensor: TensorProto) -> onnx.ModelProto:
    return helper.make_model(helper.make_graph([], "g", [], [], [tensor]))


def within_node(**attribute: Any) -> onnx.ModelProto:
    return helper.make_model(helper.make_graph([helper.make_node("Any", [], ["x"], **attribute)], "g", [], []))


def within_function(tensor: TensorProto) -> onnx.ModelProto:
    found = with_initializer(helper.make_tensor("w", TensorProto.FLOAT, [1], [0.0]))
    node = helper.make_node("Constant", [], ["b"], value=tensor)
    found.functions.append(helper.make_function("d", "F", [], ["b"], [node], [helper.make_opsetid("", 20)]))
    return found


def sparse(tensor: TensorProto) -> onnx.SparseTensorProto:
    return onnx.SparseTensorProto(values=tensor, dims=[1])


def within_sparse_initializer(tensor: TensorProto) -> onnx.ModelProto:
    found = with_initializer(helper.make_tensor("w", TensorProto.FLOAT, [1], [0.0]))
    found.graph.sparse_initializer.append(sparse(tensor))
    return found


def within_training(tensor: TensorProto) -> onnx.ModelProto:
    found = with_initializer(helper.make_tensor("w", TensorProto.FLOAT, [1], [0.0]))
    found.training_info.add().initialization.initializer.append(tensor)
    return found


EXTERNAL = {
    "initializer": with_initializer(external()),
    "attribute": within_node(value=external()),
    "attributes": within_node(values=[external()]),
    "subgraph": within_node(body=with_initializer(external()).graph),
    "subgraphs": within_node(bodies=[within_node(value=external()).graph]),
    "sparse attribute": within_node(value=sparse(external())),
    "sparse initializer": within_sparse_initializer(external()),
    "function": within_function(external()),
    "training": within_training(external()),
    "location without the flag": with_initializer(TensorProto(name="w", external_data=external().external_data)),
    "flag without a location": with_initializer(TensorProto(name="w", data_location=TensorProto.EXTERNAL)),
}


@pytest.mark.parametrize("content", EXTERNAL.values(), ids=EXTERNAL)
def test_weights_in_other_files_are_refused_wherever_they_are_named(tmp_path: Path, content: onnx.ModelProto) -> None:
    helper.set_model_props(
        content,
        {METADATA_KEY: contract_for(graph_sha256=hashlib.sha256(content.graph.SerializeToString()).hexdigest())},
    )
    path = tmp_path / "m.onnx"
    path.write_bytes(sealed(content.SerializeToString()))
    with pytest.raises(ModelError, match=r"its weights lie in another file \(external data\)"):
        load_backend(path)


def test_a_model_with_all_of_its_weights_is_not_external() -> None:
    assert not has_external_data(DEFAULT_MODEL.read_bytes())
    assert not has_external_data(with_initializer(helper.make_tensor("w", 1, [1], [0.0])).SerializeToString())


@pytest.mark.parametrize("where", [0.2, 0.5, 0.9])
def test_a_flipped_bit_is_noticed(tmp_path: Path, where: float) -> None:
    content = bytearray(DEFAULT_MODEL.read_bytes())
    content[int(where * len(content))] ^= 1
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=r"m\.onnx: (found a graph|not an ONNX model|its weights lie)"):
        load_backend(tmp_path / "m.onnx")


@pytest.mark.parametrize("content", [b"", b"text", b"\xff" * 40, DEFAULT_MODEL.read_bytes()[:100_000], model(None)[:9]])
def test_what_is_no_model(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ModelError, match="not an ONNX model"):
        read_model(tmp_path / "m.onnx")


def test_a_foreign_model(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(model(None))
    with pytest.raises(ModelError, match="without parotid-seg's contract"):
        read_model(tmp_path / "m.onnx")


def test_a_checkpoint_is_named_with_the_command_that_makes_a_model_of_it(tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    path.write_bytes(b"PK\x03\x04 and more")
    with pytest.raises(ModelError, match=r"best.pt: a training run's checkpoint .*; parotid-seg export makes a model"):
        read_model(path)


SURPRISE = (FeatureRange("surprise", 0.0, 1.0),)


@pytest.mark.parametrize(
    ("ranges", "words"),
    [
        (dataclasses.replace(USUAL, scan=SURPRISE), "operating range of scans"),
        (dataclasses.replace(USUAL, structures=SURPRISE), "operating range"),
    ],
)
def test_an_operating_range_of_an_unknown_feature_is_refused(
    tmp_path: Path, ranges: OperatingRange, words: str
) -> None:
    changed = dataclasses.replace(read_model(DEFAULT_MODEL).contract, operating_range=ranges)
    (tmp_path / "m.onnx").write_bytes(with_new_contract(DEFAULT_MODEL.read_bytes(), changed))
    with pytest.raises(ModelError, match=f"its {words}: found the feature 'surprise', expected one of"):
        read_model(tmp_path / "m.onnx")
