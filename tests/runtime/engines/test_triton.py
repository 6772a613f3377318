"""A model on a server, through tritonclient and a stand-in that speaks Triton's protocol."""

import dataclasses
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from parotid_seg.contract import METADATA_KEY
from parotid_seg.errors import DeviceMemoryError, ModelError, ParotidSegError
from parotid_seg.export.triton.model_config import Serving
from parotid_seg.export.triton.repository import write_repository
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.engines import triton_client
from parotid_seg.runtime.engines.base import labels_of
from parotid_seg.runtime.engines.onnxruntime.cpu import OnnxRuntimeBackend
from parotid_seg.runtime.engines.triton_client import CONTRACT_HASH_KEY, MODEL_HASH_KEY, TritonBackend
from parotid_seg.runtime.pipeline.infer_options import InferOptions
from parotid_seg.runtime.pipeline.run import Summary, infer
from parotid_seg.runtime.segmentation.segment import prepare, segment_volume
from parotid_seg.scan.chunks import Inputs, SliceChunker, chunks
from parotid_seg.scan.intensity import Windows, in_windows
from parotid_seg.scan.nifti import read_nifti
from parotid_seg.scan.volume import Orientation, Volume
from tests.command_line import Run
from tests.dicom_series import ct_voxels
from tests.fakes.triton_server import DIED, StandIn
from tests.small_files import summary_rows

pytestmark = pytest.mark.slow


NAME = "parotid-seg"
MODEL_SHA256 = hashlib.sha256(DEFAULT_MODEL.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packaged model as it is."""
    folder = tmp_path_factory.mktemp("served") / "plain"
    write_repository(folder, DEFAULT_MODEL, Serving(max_requests=0, device="cpu"))
    return folder


@pytest.fixture(scope="module")
def batched(head_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packaged model with a request axis: another file, so another model, under the same name."""
    folder = tmp_path_factory.mktemp("served") / "batched"
    write_repository(folder, DEFAULT_MODEL, Serving(max_requests=4, device="cpu"), verify=head_file.parent)
    return folder


@pytest.fixture(scope="module")
def head_file(head: nibabel.Nifti1Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dozen slices through the glands, to be quick."""
    path = tmp_path_factory.mktemp("head") / "head_0000.nii.gz"
    nibabel.save(head.slicer[:, :, 3:15], path)
    return path


@pytest.fixture(scope="module")
def volume(head_file: Path) -> Volume:
    return read_nifti(head_file).volume


@pytest.fixture(scope="module")
def local() -> OnnxRuntimeBackend:
    return OnnxRuntimeBackend(DEFAULT_MODEL)


@pytest.fixture(scope="module")
def chunk(volume: Volume, local: OnnxRuntimeBackend) -> Inputs:
    """The inputs of the first chunk."""
    covered = prepare(volume, local.contract).crop_to_grid()
    return SliceChunker(covered, local.contract.grid).chunk(0, 4).inputs


@pytest.fixture
def server(repository: Path) -> Iterator[Any]:
    with StandIn(repository) as running:
        yield running


def one_line(text: str, *words: str) -> None:
    assert len(text.splitlines()) == 1, text
    assert all(word in text for word in words), text


def test_masks_of_the_example_scan_are_those_of_a_local_run(
    repository: Path, local: OnnxRuntimeBackend, example: nibabel.Nifti1Image, tmp_path: Path
) -> None:
    nibabel.save(example, tmp_path / "example.nii.gz")
    volume = read_nifti(tmp_path / "example.nii.gz").volume
    expected = segment_volume(local, volume)
    with StandIn(repository) as server:
        backend = TritonBackend(server.address)
        found = segment_volume(backend, volume)
        backend.close()
    np.testing.assert_array_equal(found.mask, expected.mask)
    assert found == dataclasses.replace(expected, mask=found.mask)
    assert found.mask.max() == 2
    assert server.most_at_once > 1


def test_a_model_with_a_request_axis_gives_the_same_masks(
    batched: Path, local: OnnxRuntimeBackend, volume: Volume
) -> None:
    expected = segment_volume(local, volume).mask
    with StandIn(batched) as server:
        found = segment_volume(TritonBackend(server.address), volume).mask
    assert np.count_nonzero(found != expected) <= 0.002 * np.count_nonzero(expected)
    assert np.count_nonzero(expected) > 250


def test_it_tells_what_runs(server: StandIn, local: OnnxRuntimeBackend) -> None:
    backend = TritonBackend(server.address)
    assert backend.contract == local.contract
    assert backend.model_sha256 == MODEL_SHA256
    assert backend.ran.backend == "triton 2.51.0, parotid-seg version 1 (onnxruntime_onnx)"
    assert (backend.ran.device, backend.ran.precision) == (server.address, "fp32")
    output, times = backend.timed(next(chunks(*an_empty_scan(64), backend.contract.grid, 2)).inputs)
    assert not output.any()
    assert times.compute > 0


def an_empty_scan(size: int) -> tuple[Volume, Windows]:
    voxels = ct_voxels((16, size, size))[None]
    volume = Volume(voxels, (3.0, 0.4, 0.4), Orientation((0, 1, 2), (False,) * 3))
    return in_windows(volume, ("CT",), ((-100.0, 300.0),))


def test_requests_and_answers_larger_than_grpcs_own_limit_go_through(
    server: StandIn, local: OnnxRuntimeBackend
) -> None:
    inputs = next(chunks(*an_empty_scan(512), local.contract.grid, 16)).inputs
    labels = labels_of(TritonBackend(server.address), inputs)
    assert inputs["slices"].nbytes >= 2 * labels.nbytes >= 2 * 4 * 2**20
    assert not labels.any()


def test_what_the_server_does_not_take_is_sent_in_smaller_chunks(
    repository: Path, local: OnnxRuntimeBackend, example: nibabel.Nifti1Image, tmp_path: Path
) -> None:
    nibabel.save(example.slicer[:, :, 20:60:2], tmp_path / "coarse.nii.gz")
    volume = read_nifti(tmp_path / "coarse.nii.gz").volume
    inputs = SliceChunker(prepare(volume, local.contract).crop_to_grid(), local.contract.grid).chunk(0, 16).inputs
    size = sum(array.nbytes for array in inputs.values())
    with StandIn(repository, largest=size * 3 // 4) as server:
        backend = TritonBackend(server.address)
        with pytest.raises(DeviceMemoryError, match="of this size is not taken") as caught:
            backend.start(inputs).result()
        found = segment_volume(backend, volume).mask
    one_line(str(caught.value), server.address)
    np.testing.assert_array_equal(found, segment_volume(local, volume, batch_size=4).mask)


def test_more_than_a_message_can_hold_is_not_sent(server: StandIn, chunk: Inputs) -> None:
    huge = np.broadcast_to(np.float16(0), (1, 4096, 512, 512))
    with pytest.raises(DeviceMemoryError, match="a request of 2048 MiB, expected less than 2047"):
        TritonBackend(server.address).start({**chunk, "slices": huge})
    assert not server.answered


def test_two_clients_at_once_get_their_own_masks(server: StandIn, local: OnnxRuntimeBackend, volume: Volume) -> None:
    mirrored = dataclasses.replace(volume, voxels=volume.voxels[..., ::-1].copy())
    both = [volume, mirrored]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda each: segment_volume(TritonBackend(server.address), each).mask, both))
    for mask, each in zip(found, both, strict=True):
        np.testing.assert_array_equal(mask, segment_volume(local, each).mask)
    assert not np.array_equal(found[0], found[1])


def test_a_folder_of_scans_resumes_and_another_model_redoes_it(
    command: Run,
    repository: Path,
    batched: Path,
    head_file: Path,
    volume: Volume,
    local: OnnxRuntimeBackend,
    tmp_path: Path,
) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    for name in ("one", "two"):
        shutil.copy(head_file, scans / f"{name}_0000.nii.gz")
    with StandIn(repository) as server:
        first = command("infer", scans, "--out", out, "--triton", server.address, "--tta", "--no-pictures")
        assert (first.returncode, first.stderr) == (0, "")
        assert "no probabilities to average" in first.stdout
        answered = server.answered
        again = run(scans, out, server.address, InferOptions(tta=True, pictures=False))
        assert (again.done, again.skipped, server.answered) == (0, 2, answered)
    expected = segment_volume(local, volume)
    for name in ("one.nii.gz", "two.nii.gz"):
        found = volume.orientation.to_canonical(np.asarray(nibabel.load(out / name).dataobj))
        np.testing.assert_array_equal(found, expected.mask)
    assert {row["backend"] for row in summary_rows(out)} == {"triton 2.51.0, parotid-seg version 1 (onnxruntime_onnx)"}
    assert json.loads((out / "run.json").read_text())["model"]["sha256"] == MODEL_SHA256
    with StandIn(batched) as server:
        redone = run(scans / "one_0000.nii.gz", out, server.address, InferOptions(tta=True, pictures=False))
    assert (redone.done, redone.skipped) == (1, 0)


def run(scans: Path, out: Path, address: str, options: InferOptions) -> Summary:
    return infer([scans], out, lambda: TritonBackend(address), options)


def test_a_server_that_shuts_down_is_one_line(command: Run, repository: Path, head_file: Path, tmp_path: Path) -> None:
    with StandIn(repository, stops=True) as server:
        ended = command("infer", head_file, "--out", tmp_path / "out", "--triton", server.address)
    assert ended.returncode == 1
    one_line(ended.stderr, server.address, "has stopped", "finished cases are kept")
    assert not list((tmp_path / "out").glob("*.nii.gz"))


def test_a_server_that_dies_leaves_what_is_finished(repository: Path, head_file: Path, tmp_path: Path) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    for name in ("a", "b", "c"):
        shutil.copy(head_file, scans / f"{name}_0000.nii.gz")
    words = [sys.executable, "-m", "tests.fakes.triton_server", str(repository), "2"]  # a scan is one chunk
    running = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3])
    address = running.stdout.readline().strip()
    with pytest.raises(ParotidSegError, match="has stopped") as caught:
        run(scans, out, address, InferOptions(pictures=False, workers=1, search="full"))
    one_line(str(caught.value), address, "finished cases are kept, and the same command goes on with the rest")
    assert running.wait(30) == DIED
    running.stdout.close()
    finished = [row["case"] for row in summary_rows(out) if row["status"] == "done"]
    assert len(finished) == 2
    assert not list(out.glob("*.part*"))
    with StandIn(repository) as server:
        resumed = run(scans, out, server.address, InferOptions(pictures=False, search="full"))
    assert (resumed.done, resumed.skipped, resumed.failed) == (1, 2, 0)


def test_a_slow_server_times_out(repository: Path, chunk: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_client, "COMPUTED_S", 0.3)
    with StandIn(repository, delay_s=2.0) as server:
        backend = TritonBackend(server.address)
        with pytest.raises(ParotidSegError, match=r"no answer within 0\.3 s; finished cases are kept") as caught:
            backend.start(chunk).result()
    one_line(str(caught.value), server.address, NAME)


def test_an_answer_that_the_client_loses(server: StandIn, chunk: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_client, "COMPUTED_S", 0.2)
    monkeypatch.setattr(triton_client, "DELIVERED_S", 0.1)
    backend = TritonBackend(server.address)
    monkeypatch.setattr(backend._client, "async_infer", lambda *_, **__: None)
    with pytest.raises(ParotidSegError, match=r"no answer within 0\.3 s; finished cases are kept"):
        backend.start(chunk).result()


def test_a_server_that_is_not_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(ParotidSegError, match="cannot be reached") as caught:
            TritonBackend(address)
    one_line(str(caught.value), address, "8001", "without TLS")


def test_a_server_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parotid_seg.runtime.engines.triton_client.ASKED_S", 0.3)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        with pytest.raises(ParotidSegError, match=r"no answer|cannot be reached") as caught:
            TritonBackend(f"127.0.0.1:{mute.getsockname()[1]}")
    one_line(str(caught.value))


def test_a_model_that_is_not_there_or_not_ready(server: StandIn) -> None:
    with pytest.raises(ModelError, match=r"model mine: no such model is ready there; ready are: parotid-seg$"):
        TritonBackend(server.address, "mine")
    server.unready.add(NAME)
    with pytest.raises(ModelError, match="model parotid-seg: no such model is ready there; ready are: none"):
        TritonBackend(server.address)


def changed_contract(config: Any, **fields: Any) -> None:
    """The configuration with another contract and its hash."""
    values = config.parameters
    text = json.dumps({**json.loads(values[METADATA_KEY].string_value), **fields})
    values[METADATA_KEY].string_value = text
    values[CONTRACT_HASH_KEY].string_value = hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config.parameters.pop(METADATA_KEY), f"no parameter {METADATA_KEY}, expected a model that"),
        (lambda config: config.parameters.pop(MODEL_HASH_KEY), f"no parameter {MODEL_HASH_KEY}"),
        (lambda config: setattr(config.parameters[MODEL_HASH_KEY], "string_value", "\x1b[2J"), "expected a SHA-256"),
        (lambda config: setattr(config.parameters[METADATA_KEY], "string_value", "{}"), "was changed"),
        (lambda config: changed_contract(config, schema_version=3), "schema_version 3, expected 7"),
        (lambda config: changed_contract(config, verification={}), "--allow-unverified"),
        (lambda config: config.input.pop(), "found inputs"),
        (lambda config: setattr(config.output[0], "name", "scores"), "found outputs scores, expected labels"),
    ],
)
def test_a_model_that_is_none_of_ours(server: StandIn, change: Callable[..., Any], message: str) -> None:
    change(server.configs[NAME])
    with pytest.raises(ModelError, match=message) as caught:
        TritonBackend(server.address)
    one_line(str(caught.value), server.address)
    assert str(caught.value).isprintable()


def test_an_unverified_model_is_used_if_that_is_wanted(server: StandIn) -> None:
    changed_contract(server.configs[NAME], verification={})
    assert not TritonBackend(server.address, allow_unverified=True).contract.verification


def test_two_versions_have_one_contract_between_them(server: StandIn) -> None:
    server.versions[NAME] = ["1", "2"]
    with pytest.raises(ModelError, match="found versions 1, 2, expected one"):
        TritonBackend(server.address)


def test_a_version_that_goes_away_ends_the_run(server: StandIn, chunk: Inputs) -> None:
    backend = TritonBackend(server.address)
    server.versions[NAME] = ["2"]
    with pytest.raises(ParotidSegError, match="version 1 is not at ready state"):
        backend.start(chunk).result()


def test_a_chunk_that_the_model_does_not_take(server: StandIn, chunk: Inputs) -> None:
    backend = TritonBackend(server.address)
    wrong = {**chunk, "rows": chunk["rows"][:-1]}
    with pytest.raises(ModelError, match=r"refused \(INVALID_ARGUMENT: unexpected shape for input 'rows'") as caught:
        backend.start(wrong).result()
    one_line(str(caught.value))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda answer: answer.raw_output_contents.__setitem__(0, b"\x09" * len(answer.raw_output_contents[0])),
         "found label 9, expected 0 to 2"),
        (lambda answer: answer.raw_output_contents.__setitem__(0, b"\0"), "cut off"),
        (lambda answer: answer.outputs[0].shape.append(1), r"expected UINT8 of shape"),
        (lambda answer: setattr(answer.outputs[0], "datatype", "INT8"), "found INT8 of shape"),
        (lambda answer: answer.ClearField("outputs"), "found no labels"),
    ],
)  # fmt: skip
def test_answers_that_are_no_labels(repository: Path, chunk: Inputs, edit: Callable[..., Any], message: str) -> None:
    with StandIn(repository, edit=edit) as server, pytest.raises(ModelError, match=message) as caught:
        TritonBackend(server.address).start(chunk).result()
    one_line(str(caught.value), server.address)


def test_a_hostile_version_is_one_plain_line(repository: Path) -> None:
    with StandIn(repository, version="2\n\x1b[31m") as server:
        told = TritonBackend(server.address).ran.backend
    assert told.isprintable()


def test_a_proxy_gets_nothing(server: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "grpc_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert TritonBackend(server.address).model_sha256 == MODEL_SHA256
    assert os.environ["http_proxy"]
