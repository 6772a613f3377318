"""OpenVINO runs the packaged model: FP32 gives onnxruntime's masks, BF16 stays within its gate."""

import importlib
import importlib.util
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from parotid_seg.errors import InputError, ModelError
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.engines import openvino as module
from parotid_seg.runtime.engines.base import labels_of
from parotid_seg.runtime.engines.model_file import with_new_contract
from parotid_seg.runtime.engines.onnxruntime.cpu import OnnxRuntimeBackend
from parotid_seg.runtime.engines.openvino import OpenVinoBackend, computes_bf16, import_openvino
from parotid_seg.runtime.engines.private_file import write_private
from parotid_seg.runtime.tolerance import GATES, difference
from parotid_seg.scan.chunks import chunks, segmented
from parotid_seg.scan.intensity import Windows, in_windows
from parotid_seg.scan.nifti import read_nifti
from parotid_seg.scan.volume import Mask, Volume
from parotid_seg.system import available_cores
from tests.dicom_example import few_slices

pytestmark = pytest.mark.slow


needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="openvino is missing: pip install openvino"
)


@pytest.fixture(scope="module")
def reference() -> OnnxRuntimeBackend:
    return OnnxRuntimeBackend(DEFAULT_MODEL)


@pytest.fixture(scope="module")
def scan(
    reference: OnnxRuntimeBackend, head: nibabel.Nifti1Image, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Volume, Windows]:
    path = tmp_path_factory.mktemp("head") / "a.nii.gz"
    few_slices(head).to_filename(path)
    contract = reference.contract
    return in_windows(read_nifti(path).volume, contract.channels, contract.windows)


def mask_of(
    backend: OnnxRuntimeBackend | OpenVinoBackend, scan: tuple[Volume, NDArray[Any]], batch_size: int = 8
) -> Mask:
    volume, windows = scan
    return segmented(volume, windows, backend.contract.grid, batch_size, lambda chunk: labels_of(backend, chunk))


@needs_openvino
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_gives_the_masks_and_says_what_it_computed_in(
    reference: OnnxRuntimeBackend, scan: tuple[Volume, Windows], precision: str
) -> None:
    if precision == "bf16" and not computes_bf16():
        pytest.skip("this CPU has no BF16")
    backend = OpenVinoBackend(DEFAULT_MODEL, precision=precision)
    assert (backend.ran.device, backend.ran.precision) == ("cpu", precision)
    assert backend.ran.backend.startswith("openvino 20")
    assert (backend.model_sha256, backend.contract) == (reference.model_sha256, reference.contract)
    expected, found = mask_of(reference, scan), mask_of(backend, scan)
    assert {1, 2} <= set(np.unique(expected))
    apart = difference(expected, found, scan[0].spacing_mm, 3)
    assert GATES[precision].admits(apart), apart
    backend.close()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of compiled models, not made yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "parotid-seg" / "openvino"


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Gets an entry for each time that a model is compiled."""
    found: list[object] = []
    core = import_openvino().Core
    real = core.compile_model

    def compile_model(*words: Any) -> Any:
        found.append(words)
        return real(*words)

    monkeypatch.setattr(core, "compile_model", compile_model)
    return found


@needs_openvino
def test_a_compiled_model_is_kept_for_the_next_process(
    scan: tuple[Volume, Windows], store: Path, compiled: list[object]
) -> None:
    first = OpenVinoBackend(DEFAULT_MODEL)
    (file,) = store.iterdir()
    assert (stat.S_IMODE(store.stat().st_mode), len(compiled)) == (0o700, 1)
    second = OpenVinoBackend(DEFAULT_MODEL)
    assert len(compiled) == 1
    assert np.array_equal(mask_of(first, scan), mask_of(second, scan))
    assert (second.ran, second.contract, second.model_sha256) == (first.ran, first.contract, first.model_sha256)
    OpenVinoBackend(DEFAULT_MODEL, threads=available_cores() + 1)
    assert len(compiled) == 2
    assert file in store.iterdir()


@needs_openvino
@pytest.mark.parametrize(
    "spoil",
    [
        lambda file: file.write_bytes(file.read_bytes()[:-1]),
        lambda file: write_private(b"not a model", file),
        lambda file: file.chmod(0o666),
    ],
    ids=["cut", "refused by OpenVINO", "file of all"],
)
def test_a_kept_model_that_cannot_be_used_is_made_anew(
    store: Path, compiled: list[object], spoil: Callable[[Path], object]
) -> None:
    OpenVinoBackend(DEFAULT_MODEL)
    (file,) = store.iterdir()
    spoil(file)
    OpenVinoBackend(DEFAULT_MODEL)
    assert len(compiled) == 2
    OpenVinoBackend(DEFAULT_MODEL)
    assert len(compiled) == 2


@needs_openvino
def test_a_place_that_cannot_be_written_is_no_error(store: Path, compiled: list[object]) -> None:
    store.parent.mkdir(parents=True)
    store.write_text("")
    for count in (1, 2):
        OpenVinoBackend(DEFAULT_MODEL)
        assert len(compiled) == count


@needs_openvino
@pytest.mark.usefixtures("without_home")
def test_without_a_home_folder_nothing_is_kept(compiled: list[object]) -> None:
    for count in (1, 2):
        OpenVinoBackend(DEFAULT_MODEL)
        assert len(compiled) == count


@needs_openvino
def test_a_model_that_changes_while_it_is_used_is_not_loaded_again(
    scan: tuple[Volume, Windows], store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_SHAPES", 1)
    store.parent.mkdir(parents=True)
    store.write_text("")
    model = tmp_path / "model.onnx"
    shutil.copy(DEFAULT_MODEL, model)
    backend = OpenVinoBackend(model)
    small, large = (next(chunks(*scan, backend.contract.grid, size)).inputs for size in (1, 2))
    labels_of(backend, small)
    changed = replace(backend.contract, training={"data": "other"})
    model.write_bytes(with_new_contract(model.read_bytes(), changed))
    with pytest.raises(ModelError, match="changed since it was loaded"):
        labels_of(backend, large)


@needs_openvino
@pytest.mark.usefixtures("store")
def test_another_type_than_asked_for_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Compiled:
        def __init__(self, real: Any) -> None:
            self._real = real

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

        def get_property(self, name: object) -> Any:
            return import_openvino().Type.f16

    real = import_openvino().Core.compile_model
    monkeypatch.setattr(import_openvino().Core, "compile_model", lambda *words: Compiled(real(*words)))
    with pytest.raises(InputError, match="computes in f16 on this CPU, expected f32"):
        OpenVinoBackend(DEFAULT_MODEL)


@needs_openvino
@pytest.mark.usefixtures("store")
def test_its_errors_are_one_line_whenever_it_raises_them(
    scan: tuple[Volume, Windows], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("could not create a primitive\nat src/node.cpp:7")

    backend, said = (
        OpenVinoBackend(DEFAULT_MODEL),
        r"^OpenVINO 20\S* cannot run the model \(could not create a primitive\)$",
    )
    inputs = next(chunks(*scan, backend.contract.grid, 1)).inputs
    for name in ("start_async", "wait"):
        with monkeypatch.context() as patched:
            patched.setattr(import_openvino().InferRequest, name, fail)
            for compute in (backend.timed, lambda chunk: backend.start(chunk).result()):
                with pytest.raises(ModelError, match=said):
                    compute(inputs)
    monkeypatch.setattr(import_openvino().Core, "get_property", fail)
    with pytest.raises(ModelError, match=r"has no CPU device here \(could not create a primitive\)$"):
        computes_bf16()


@needs_openvino
def test_chunks_handed_in_ahead_come_back_in_their_places(
    reference: OnnxRuntimeBackend, scan: tuple[Volume, Windows]
) -> None:
    volume, windows = scan
    backend = OpenVinoBackend(DEFAULT_MODEL)
    made = [chunk.inputs for chunk in chunks(volume, windows, backend.contract.grid, 2)]
    assert len(made) > 3
    pending = [backend.start(inputs) for inputs in made]
    for inputs, each in zip(reversed(made), reversed(pending), strict=True):
        assert np.count_nonzero(each.result() != labels_of(reference, inputs)) <= 1


@needs_openvino
def test_the_model_is_loaded_anew_after_many_shapes_even_with_chunks_under_way(
    reference: OnnxRuntimeBackend, scan: tuple[Volume, Windows], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_SHAPES", 2)
    volume, windows = scan
    backend = OpenVinoBackend(DEFAULT_MODEL)
    loaded = backend._compiled
    first: Any = None
    for batch_size in (1, 2, 3):
        inputs = next(chunks(volume, windows, backend.contract.grid, batch_size)).inputs
        first = first or (inputs, backend.start(inputs))
        assert np.array_equal(backend.start(inputs).result(), labels_of(reference, inputs))
    assert backend._compiled is not loaded
    free = len(backend._free)
    assert np.array_equal(first[1].result(), labels_of(reference, first[0]))
    assert len(backend._free) == free, "a request of the model loaded before is not used again"
    assert np.array_equal(backend.start(first[0]).result(), labels_of(reference, first[0]))


@needs_openvino
def test_a_chunk_of_too_many_voxels_does_not_fit(scan: tuple[Volume, Windows], monkeypatch: pytest.MonkeyPatch) -> None:
    backend = OpenVinoBackend(DEFAULT_MODEL)
    inputs = next(chunks(*scan, backend.contract.grid, 4)).inputs
    assert backend.fits(inputs)
    monkeypatch.setattr(module, "MOST_VOXELS", inputs["slices"].size - 1)
    assert not backend.fits(inputs)


@needs_openvino
def test_what_the_model_does_not_have_is_an_error() -> None:
    with pytest.raises(ModelError, match="found outputs labels, expected probabilities"):
        OpenVinoBackend(DEFAULT_MODEL, output="probabilities")


def test_without_the_package_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(InputError, match=r"package openvino is missing .*: pip install openvino$"):
        OpenVinoBackend(DEFAULT_MODEL)


@needs_openvino
def test_importing_it_reports_nothing(tmp_path: Path) -> None:
    (tmp_path / "openvino_telemetry.py").write_text("raise SystemExit('it was going to tell')")
    code = "from parotid_seg.runtime.engines.openvino import import_openvino; import_openvino().Core()"
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": paths}, check=True, timeout=60)


@needs_openvino
def test_signals_are_handled_after_another_thread_has_freed_an_engine() -> None:
    """In a process of its own, because it would end by a segmentation fault (see `cpu_core`)."""
    program = f"""
import os, signal, threading
from pathlib import Path
from parotid_seg.runtime.engines.openvino import OpenVinoBackend, computes_bf16

signal.signal(signal.SIGTERM, lambda *_: print("handled", flush=True))
computes_bf16()
backends = [OpenVinoBackend(Path({str(DEFAULT_MODEL)!r}))]
thread = threading.Thread(target=lambda: backends.pop().close())
thread.start()
thread.join()
os.kill(os.getpid(), signal.SIGTERM)
"""
    ran = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "handled\n"), ran.stderr
