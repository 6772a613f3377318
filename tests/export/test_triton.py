"""The Triton repository: Triton's schema, the graph it describes, and batches that are the same model."""

import dataclasses
import hashlib
import resource
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from parotid_seg.contract import METADATA_KEY, Contract
from parotid_seg.errors import InputError, ModelError, OutputError, ParotidSegError
from parotid_seg.export.onnx_file import with_contract
from parotid_seg.export.triton.batched import BATCHED_KEY, check_batched, stacked, with_request_axis
from parotid_seg.export.triton.model_config import Serving, from_text
from parotid_seg.export.triton.repository import write_repository
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.engines.base import labels_of
from parotid_seg.runtime.engines.engine_file import sidecar_path
from parotid_seg.runtime.engines.onnxruntime.cpu import OnnxRuntimeBackend
from parotid_seg.scan.chunks import Chunk, chunks
from parotid_seg.scan.intensity import in_windows
from parotid_seg.scan.nifti import read_nifti
from tests.export.conftest import Translation, two_patients
from tests.fakes.sidecars import write_sidecar

pytestmark = pytest.mark.slow


CONTENT = DEFAULT_MODEL.read_bytes()
PLAIN = Serving(max_requests=0, device="cpu")
"""Needs no comparison, so it is quick."""


@pytest.fixture(scope="module")
def contract() -> Contract:
    props = {entry.key: entry.value for entry in onnx.load_from_string(CONTENT).metadata_props}
    return Contract.from_json(props[METADATA_KEY], where="packaged")


@pytest.fixture(scope="module")
def head_folder(head: nibabel.Nifti1Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("head")
    nibabel.save(head, folder / "head_0000.nii.gz")
    return folder


@pytest.fixture(scope="module")
def entry(head_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packaged model with a request axis, as a user gets it."""
    return write_repository(tmp_path_factory.mktemp("served") / "repository", DEFAULT_MODEL, verify=head_folder)


@pytest.fixture(scope="module")
def patients(head_folder: Path, contract: Contract) -> list[Chunk]:
    """One chunk each of three patients of one shape; voxels, windows and matrices differ."""
    read = read_nifti(head_folder / "head_0000.nii.gz").volume
    volume, windows = in_windows(read, contract.channels, contract.windows)
    shifted = dataclasses.replace(volume, voxels=np.roll(volume.voxels, 12, axis=2))
    mirrored = dataclasses.replace(volume, voxels=volume.voxels[..., ::-1])
    triples = ((volume, windows), (shifted, windows * 0.8), (mirrored, windows + 20))
    return [list(chunks(each, window, contract.grid, 8))[1] for each, window in triples]


def config_of(entry: Path) -> Any:
    return from_text((entry / "config.pbtxt").read_text(), where="test")


def described(tensors: Any, request_axis: bool) -> list[Any]:
    """Name, ONNX type and sizes of what a configuration says, as the server hands it to the graph."""
    types = {"TYPE_FP16": onnx.TensorProto.FLOAT16, "TYPE_FP32": onnx.TensorProto.FLOAT, "TYPE_UINT8": 2}
    names = {number: name for name, number in _schema().DataType.items()}
    leading = [-1] if request_axis else []
    return [(each.name, types[names[each.data_type]], [*leading, *each.dims]) for each in tensors]


def in_graph(values: Any) -> list[Any]:
    return [
        (
            value.name,
            value.type.tensor_type.elem_type,
            [dim.dim_value if dim.HasField("dim_value") else -1 for dim in value.type.tensor_type.shape.dim],
        )
        for value in values
    ]


def _schema() -> Any:
    from tritonclient.grpc import model_config_pb2

    return model_config_pb2


@pytest.mark.parametrize("max_requests", [0, 4])
def test_the_configuration_is_the_graphs(entry: Path, tmp_path: Path, max_requests: int) -> None:
    if max_requests == 0:
        entry = write_repository(tmp_path, DEFAULT_MODEL, PLAIN)
    config = config_of(entry)
    graph = onnx.load(entry / "1" / config.default_model_filename).graph
    assert config.max_batch_size == max_requests
    assert config.HasField("dynamic_batching") == (max_requests > 0)
    assert described(config.input, max_requests > 0) == in_graph(graph.input)
    assert described(config.output, max_requests > 0) == in_graph(graph.output)
    kinds = _schema().ModelInstanceGroup
    assert [(group.kind, group.count) for group in config.instance_group] == [
        (kinds.KIND_GPU if max_requests else kinds.KIND_CPU, 1)
    ]
    assert (config.backend, config.platform) == ("onnxruntime", "onnxruntime_onnx")
    assert config.version_policy.latest.num_versions == 1
    assert config.HasField("response_cache")
    assert not config.response_cache.enable


def test_without_a_request_axis_the_file_is_served_as_it_is(tmp_path: Path) -> None:
    entry = write_repository(tmp_path, DEFAULT_MODEL, dataclasses.replace(PLAIN, name="ct", version=7))
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert [name for name in files if "warmup" not in name] == [
        "ct/7/model.onnx",
        "ct/config.pbtxt",
        "ct/labels.txt",
    ]
    assert (entry / "7" / "model.onnx").read_bytes() == CONTENT


def test_labels_are_the_contracts(entry: Path, contract: Contract) -> None:
    (output,) = config_of(entry).output
    assert tuple((entry / output.label_filename).read_text().splitlines()) == contract.labels


def test_a_client_finds_the_contract_and_the_hashes(entry: Path, contract: Contract) -> None:
    parameters = {key: value.string_value for key, value in config_of(entry).parameters.items()}
    text = parameters[METADATA_KEY]
    assert Contract.from_json(text, where="parameters") == contract
    assert parameters["parotid_seg.contract_sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert parameters["parotid_seg.schema_version"] == str(contract.schema_version)
    assert parameters["parotid_seg.graph_sha256"] == contract.graph_sha256
    served = (entry / "1" / "model.onnx").read_bytes()
    assert parameters["parotid_seg.model_sha256"] == hashlib.sha256(served).hexdigest()


def test_the_warm_up_request_runs(entry: Path) -> None:
    config = config_of(entry)
    (warm,) = config.model_warmup
    types = {10: np.float16, 11: np.float32}
    inputs = {}
    for name, each in warm.inputs.items():
        shape, dtype = tuple(each.dims), types[each.data_type]
        if each.zero_data:
            inputs[name] = np.zeros(shape, dtype)
        else:
            inputs[name] = np.fromfile(entry / "warmup" / each.input_data_file, dtype).reshape(shape)
    session = onnxruntime.InferenceSession(entry / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    _, _, height, width = inputs["slices"].shape
    assert session.run(["labels"], stacked([inputs]))[0].shape == (1, 16, height, width)
    assert np.isfinite(inputs["window"]).all()
    assert inputs["window"][0, 0] < inputs["window"][0, 1]


def test_joined_requests_get_what_each_gets_alone(entry: Path, patients: list[Chunk]) -> None:
    alone = OnnxRuntimeBackend(DEFAULT_MODEL)
    expected = np.stack([labels_of(alone, chunk.inputs) for chunk in patients])
    session = onnxruntime.InferenceSession(entry / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    labels = session.run(["labels"], stacked([chunk.inputs for chunk in patients]))[0]
    assert (labels.shape, labels.dtype) == (expected.shape, np.uint8)
    assert np.count_nonzero(expected) > 250
    assert np.count_nonzero(labels != expected) <= 0.002 * np.count_nonzero(expected)
    assert not np.array_equal(expected[0], expected[1])


def test_a_batched_model_that_mixes_requests_up_is_found(contract: Contract, patients: list[Chunk]) -> None:
    batched = onnx.load_from_string(with_request_axis(CONTENT, contract))
    place = next(i for i, node in enumerate(batched.graph.node) if node.input and node.input[0] == "window")
    batched.graph.node[place].input[0] = "of_the_other"
    batched.graph.initializer.extend(
        numpy_helper.from_array(np.array([value]), name) for name, value in (("last", -1), ("stop", -99), ("first", 0))
    )
    reverse = onnx.helper.make_node("Slice", ["window", "last", "stop", "first", "last"], ["of_the_other"])
    batched.graph.node.insert(place, reverse)
    mixed = batched.SerializeToString()
    with pytest.raises(ModelError, match="differs from the model in"):
        check_batched(CONTENT, mixed, [(patients[0], patients[1])])
    check_batched(CONTENT, mixed, [(patients[0], patients[0])])


def test_a_comparison_on_air_proves_nothing(contract: Contract, patients: list[Chunk]) -> None:
    air = dataclasses.replace(
        patients[0], inputs={**patients[0].inputs, "slices": np.full_like(patients[0].inputs["slices"], -1000)}
    )
    with pytest.raises(ModelError, match="finds nothing"):
        check_batched(CONTENT, with_request_axis(CONTENT, contract), [(air, air)])


def test_the_batched_file_is_refused_where_its_shapes_do_not_fit(entry: Path) -> None:
    model = onnx.load(entry / "1" / "model.onnx")
    assert [each.key for each in model.metadata_props] == [BATCHED_KEY]
    with pytest.raises(ModelError, match="without parotid-seg's contract"):
        OnnxRuntimeBackend(entry / "1" / "model.onnx")


@pytest.mark.parametrize(
    ("found", "wrong"),
    [
        ("max_batch_size: 0", "max_batch: 0"),
        ("TYPE_FP16", "TYPE_HALF"),
        ("KIND_CPU", '"cpu"'),
        ("version_policy {", "version_policy ["),
    ],
)
def test_a_wrong_field_does_not_fit_the_schema(tmp_path: Path, found: str, wrong: str) -> None:
    text = (write_repository(tmp_path, DEFAULT_MODEL, PLAIN) / "config.pbtxt").read_text()
    text = f"max_batch_size: 0\n{text}"
    assert from_text(text, where="good").name == "parotid-seg"
    assert found in text
    with pytest.raises(InputError, match=r"bad\.pbtxt: does not fit Triton's model configuration"):
        from_text(text.replace(found, wrong, 1), where="bad.pbtxt")


def test_an_entry_is_not_overwritten(tmp_path: Path) -> None:
    entry = write_repository(tmp_path, DEFAULT_MODEL, PLAIN)
    before = (entry / "config.pbtxt").stat().st_mtime_ns
    for serving in (PLAIN, dataclasses.replace(PLAIN, version=2)):
        with pytest.raises(InputError, match="an entry of this name exists"):
            write_repository(tmp_path, DEFAULT_MODEL, serving)
    assert (entry / "config.pbtxt").stat().st_mtime_ns == before
    assert not (entry / "2").exists()


def test_missing_tritonclient_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)
    with pytest.raises(ParotidSegError, match=r"pip install 'parotid-seg\[triton\]'") as caught:
        write_repository(tmp_path / "r", DEFAULT_MODEL, PLAIN)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "r").exists()


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))  # the model is larger, the rest is not
    try:
        with pytest.raises(OutputError, match="cannot be written"):
            write_repository(tmp_path, DEFAULT_MODEL, PLAIN)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def engine(tmp_path: Path, contract: Contract) -> Path:
    path = tmp_path / "parotid-ct.engine"
    path.write_bytes(b"an engine")
    write_sidecar(path, contract)
    return path


def test_an_engine_comes_with_its_sidecars_contract(engine: Path, tmp_path: Path) -> None:
    entry = write_repository(tmp_path / "r", engine)
    config = config_of(entry)
    assert (config.backend, config.platform) == ("tensorrt", "tensorrt_plan")
    assert config.default_model_filename == "model.plan"
    assert (config.max_batch_size, config.HasField("dynamic_batching"), len(config.model_warmup)) == (0, False, 0)
    assert (entry / "1" / "model.plan").read_bytes() == b"an engine"
    assert described(config.input, False) == in_graph(onnx.load_from_string(CONTENT).graph.input)


@pytest.mark.parametrize(
    ("told", "message"),
    [({"library": "tensorrt-rtx"}, "tensorrt only"), ({"engine_sha256": "0" * 64}, "hash does not match")],
)
def test_an_engine_that_is_not_its_sidecars_or_not_tritons_is_refused(
    engine: Path, contract: Contract, tmp_path: Path, told: dict[str, str], message: str
) -> None:
    write_sidecar(engine, contract, **told)
    with pytest.raises((InputError, ModelError), match=message):
        write_repository(tmp_path / "bad", engine)
    assert not (tmp_path / "bad").exists()


def test_an_engine_without_its_sidecar_is_refused(engine: Path, tmp_path: Path) -> None:
    sidecar_path(engine).unlink()
    with pytest.raises(ModelError, match="no usable sidecar of the engine: cannot be read"):
        write_repository(tmp_path / "r", engine)


@pytest.mark.parametrize(
    ("serving", "message"),
    [(Serving(device="cpu"), "needs cuda"), (Serving(max_requests=4), "no request axis")],
)
def test_what_an_engine_cannot_do_is_refused(engine: Path, tmp_path: Path, serving: Serving, message: str) -> None:
    with pytest.raises(InputError, match=message):
        write_repository(tmp_path / "r", engine, serving)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "../x"}, "triton.name"),
        ({"version": 0}, "triton.version"),
        ({"device": "tpu"}, "expected one of: cuda, cpu"),
        ({"instances": 0}, "triton.instances"),
        ({"max_requests": -1}, "triton.max_requests"),
        ({"max_requests": 0, "delay_us": 5}, "joins none"),
    ],
)
def test_wrong_settings_are_told(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Serving(**wrong)


def test_foreign_models_are_refused(tmp_path: Path, contract: Contract) -> None:
    other = onnx.load_from_string(CONTENT)
    with pytest.raises(InputError, match=r"ending in \.onnx or \.engine"):
        write_repository(tmp_path / "r", tmp_path / "best.pt", PLAIN)
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ModelError, match="not an ONNX model"):
        write_repository(tmp_path / "r", tmp_path / "text.onnx", PLAIN)
    other.graph.input[2].type.tensor_type.shape.dim[0].dim_param = "free"
    (tmp_path / "other.onnx").write_bytes(with_contract(other, contract))
    with pytest.raises(ModelError, match=r"found Tensor\(name='rows'.*expected Tensor\(name='rows'"):
        write_repository(tmp_path / "r", tmp_path / "other.onnx", PLAIN)
    del other.metadata_props[:]
    onnx.save(other, tmp_path / "bare.onnx")
    with pytest.raises(ModelError, match="without parotid-seg's contract"):
        write_repository(tmp_path / "r", tmp_path / "bare.onnx", PLAIN)
    assert not (tmp_path / "r").exists()


def test_two_channels_and_a_half_precision_network(two_channels: Translation) -> None:
    """An untrained network gives labels all over, and takes each of two channels through a window of its own."""
    model, contract = onnx.ModelProto(), two_channels.contract
    model.CopyFrom(two_channels.model)
    halve_first_convolution(model)
    content = with_contract(model, contract)
    found, changed = check_batched(content, with_request_axis(content, contract), two_patients(contract))
    assert found > 10_000
    assert changed <= 0.002 * found


def halve_first_convolution(model: onnx.ModelProto) -> None:
    """As a graph of mixed precision has it: a cast before the convolution, one after it, one on the scores."""
    graph = model.graph
    place = next(i for i, node in enumerate(graph.node) if node.op_type == "Conv")
    conv = graph.node[place]
    cast = [onnx.helper.make_node("Cast", [name], [f"{name}.fp16"], to=onnx.TensorProto.FLOAT16) for name in conv.input]
    conv.input[:] = [node.output[0] for node in cast]
    back = onnx.helper.make_node("Cast", [f"{conv.output[0]}.fp16"], [conv.output[0]], to=onnx.TensorProto.FLOAT)
    conv.output[0] = back.input[0]
    graph.node.insert(place + 1, back)
    for node in reversed(cast):
        graph.node.insert(place, node)


def test_another_layout_gets_no_request_axis(contract: Contract) -> None:
    model = onnx.load_from_string(CONTENT)
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[0] == "slices_back":
            node.op_type = "Gemm"
    with pytest.raises(ModelError, match="not laid out as this version exports it"):
        with_request_axis(model.SerializeToString(), contract)
