"""Which engine runs a model file and where: what was asked for, or an error; with "auto" a measured choice."""

from __future__ import annotations

from pathlib import Path

from parotid_seg.contract import UNSEALED_VERSION, Contract
from parotid_seg.errors import InputError, ModelError, OptionError, ParotidSegError
from parotid_seg.runtime.engines.autotune import Candidate, Say, choose, place_for
from parotid_seg.runtime.engines.base import OUTPUTS, Backend
from parotid_seg.runtime.engines.gpu import find_gpu, find_gpus
from parotid_seg.runtime.engines.model_file import output_names, read_model
from parotid_seg.runtime.engines.onnxruntime.cpu import OnnxRuntimeBackend
from parotid_seg.runtime.engines.tensorrt.library import LIBRARIES
from parotid_seg.system import available_cores, cpu_name

BACKENDS = ("auto", "onnxruntime", "tensorrt", "tensorrt-rtx", "openvino")
DEVICES = ("auto", "cpu", "cuda", "cuda:N")
CPU_BATCHES = (8, 16, 32)
GPU_BATCHES = (16, 32, 64)


def load_backend(
    model: Path,
    backend: str = "auto",
    device: str = "auto",
    *,
    threads: int | None = None,
    output: str = OUTPUTS[0],
    allow_unverified: bool = False,
    say: Say = lambda _: None,
) -> Backend:
    """Load a model file or an engine.

    Args:
        model: the .onnx or .engine file.
        backend: one of `BACKENDS`. By name it runs exactly this file; "auto" takes the fastest that is installed and
            gives the same masks, by a short trial that is made once on a machine (see `choose`).
        device: one of `DEVICES`; "auto" is the first GPU if there is one that can be used, and the CPU otherwise.
        threads: computing threads on the CPU; default: one a core.
        output: one of `OUTPUTS`.
        allow_unverified: whether a model may be used that `parotid-seg export` has not proven.
        say: told in one line what "auto" chose and why, and why something is not used.

    Raises:
        InputError: for a backend or device there is none of, that does not fit the file or the other one, or that is
            not installed: with the line that installs it.
        ModelError: if the file is missing, no model of ours, changed, unverified, or its contract does not fit.
    """
    if backend not in BACKENDS:
        raise OptionError(f"--backend: found {backend!r}, expected one of: {', '.join(BACKENDS)}")
    if backend == "openvino" and device not in ("auto", "cpu"):
        raise OptionError(f"--backend openvino: runs on the CPU, found --device {device}, expected auto or cpu")
    index = gpu_index(device)
    if model.suffix == ".engine":
        return _engine(model, backend, device, index or 0, output, allow_unverified)
    if backend in LIBRARIES:
        raise OptionError(
            f"--backend {backend}: runs engines, found {model.name}, expected an .engine file (--model); "
            f"parotid-seg export --engine {backend} builds one"
        )
    contract = read_model(model)[1]
    if contract.schema_version == UNSEALED_VERSION:
        say(
            f"{model.name}: exported by an older version, without a seal: nothing shows that its window, grid and "
            "labels are those of the export; export it again"
        )
    _check_verified(contract, model, allow_unverified)
    if backend == "openvino":
        from parotid_seg.runtime.engines.openvino import OpenVinoBackend

        return OpenVinoBackend(model, threads=threads, output=output)
    if device != "cpu":
        loaded = _on_gpu(model, contract, backend, device, index, output, say)
        if loaded is not None:
            return loaded
    if backend == "onnxruntime":
        return OnnxRuntimeBackend(model, threads=threads, output=output)
    from parotid_seg.runtime.engines.available import on_cpu

    candidates = on_cpu(model, contract, threads, output, say)
    machine = {"cpu": cpu_name(), "cores": available_cores(), "threads": threads}
    return _best(candidates, model, contract, CPU_BATCHES, {**machine, "output": output}, say)


def output_for(model: Path, flips: bool, say: Say = lambda _: None) -> str:
    """Which output to ask a model for: probabilities if there are two looks to average and it gives them.

    Args:
        model: the .onnx or .engine file.
        flips: whether each slice is looked at in the mirror, too.
        say: told if there is nothing to average.

    Raises:
        ModelError: if the file is not a model of ours.
    """
    labels, probabilities = OUTPUTS
    if not flips:
        return labels
    if model.suffix != ".engine" and probabilities in output_names(model):
        return probabilities
    say(
        f"{model.name} gives no probabilities to average: --tta tells how certain the masks are and leaves them as "
        "they are"
    )
    return labels


def gpu_index(device: str) -> int | None:
    """The number of the GPU that a name asks for; None for "auto" and "cpu".

    Raises:
        InputError: for any other name, or if there is no such GPU.
    """
    if device in ("auto", "cpu"):
        return None
    kind, _, number = device.partition(":")
    if kind != "cuda" or (device != "cuda" and not number.isdecimal()):
        raise OptionError(f"--device: found {device!r}, expected one of: {', '.join(DEVICES)}")
    index, gpus = int(number or 0), find_gpus()
    if not gpus:
        raise InputError(f"--device {device}: found no NVIDIA GPU, expected one that its driver shows (nvidia-smi -L)")
    if index >= len(gpus):
        found = ", ".join(f"cuda:{each} {gpu}" for each, gpu in enumerate(gpus))
        raise InputError(f"--device {device}: no such GPU, found {found}")
    return index


def _on_gpu(
    model: Path, contract: Contract, backend: str, device: str, index: int | None, output: str, say: Say
) -> Backend | None:
    """The model on a GPU; None if none was asked for and none can be used."""
    gpu = find_gpu(index or 0)
    if gpu is None:
        return None
    from parotid_seg.runtime.engines.available import on_gpu
    from parotid_seg.runtime.engines.onnxruntime.cuda import check_provider

    try:
        check_provider()
        if backend == "onnxruntime":
            from parotid_seg.runtime.engines.onnxruntime.cuda import OnnxRuntimeCudaBackend

            return OnnxRuntimeCudaBackend(model, device=index or 0, output=output)
        candidates = on_gpu(model, contract, index or 0, output, say)
        return _best(candidates, model, contract, GPU_BATCHES, {"gpu": str(gpu), "output": output}, say)
    except ParotidSegError as error:
        if device != "auto":
            raise
        say(f"{gpu} is not used, but the CPU: {error}")
        return None


def _best(
    candidates: list[Candidate],
    model: Path,
    contract: Contract,
    sizes: tuple[int, ...],
    machine: dict[str, object],
    say: Say,
) -> Backend:
    if len(candidates) == 1:
        loaded = candidates[0].make()
        say(f"{candidates[0].name}: the only engine for this model here")
        return loaded
    from parotid_seg.runtime.engines.available import facts_of
    from parotid_seg.runtime.engines.engine_benchmark import EngineBenchmark

    names = [candidate.name for candidate in candidates]
    place = place_for({**facts_of(model), **machine, "candidates": names})
    return choose(candidates, contract.precision, sizes, EngineBenchmark(contract), place, say)


def _engine(engine: Path, backend: str, device: str, index: int, output: str, allow_unverified: bool) -> Backend:
    from parotid_seg.runtime.engines.engine_file import read_sidecar

    sidecar = read_sidecar(engine)
    if backend not in ("auto", sidecar.library):
        raise OptionError(f"--backend {backend}: found {engine.name}, an engine for {sidecar.library}")
    if device == "cpu":
        raise OptionError(f"--device cpu: found {engine.name}, an engine, expected auto or cuda; engines run on GPUs")
    _check_verified(sidecar.contract, engine, allow_unverified)
    from parotid_seg.runtime.engines.tensorrt.engine import TensorRtBackend

    return TensorRtBackend(engine, device=index, output=output)


def _check_verified(contract: Contract, where: Path, allow_unverified: bool) -> None:
    if not (contract.verification or allow_unverified):
        raise ModelError(
            f"{where}: not verified: nothing shows that it is the model that was trained; export its checkpoint "
            "(parotid-seg export), or use it all the same with --allow-unverified"
        )
