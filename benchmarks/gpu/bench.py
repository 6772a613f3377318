"""Speed on an NVIDIA GPU: torch in its ways against our backends, on the same slices in one run, within minutes.

peaks       what the machine does at best: products in FP32, TF32 and FP16, copies on the device and over the bus
sweep       every engine and precision by batch size, taking turns, with copies, and computing alone; changed voxels
            against torch in FP32; share of the roofline; memory
trace       DIR/trace.json.gz: the engine's part of the pipeline on one scan, to be opened in Perfetto
end_to_end  `parotid-seg infer` by number of workers, with our fastest; memory

The scans, the network for torch and the FP16 model are made from the package. torch needs timm; our backends need
onnxruntime-gpu, and tensorrt or tensorrt-rtx with pycuda. What is missing, fails or finds no time is named and skipped.
DIR/gpu.json and DIR/gpu.md are written anew after every part, so a run that is cut leaves what it has, and the same
command does the parts that are missing. With `--device cpu` the same code runs what there is on a CPU, which is for
trying it and says nothing about GPUs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from gpu.contenders import BackendContender, Contender, DeviceMemory, load_exactly, release_cached
from gpu.end_to_end import end_to_end, trace
from gpu.inputs import make_checkpoint, make_fp16, make_scans
from gpu.probe import read_probe
from gpu.record import Record, machine
from gpu.sweep import REFERENCE, fastest, sweep
from parotid_seg.bench.inputs import MOST_SCANS, in_memory
from parotid_seg.bench.roofline import Peaks, measured_peaks
from parotid_seg.bench.system_state import nvidia_smi_values
from parotid_seg.errors import ParotidSegError
from parotid_seg.export.build_engine import build_engine
from parotid_seg.files import hash_file, make_folder
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.engines.base import USUAL_BATCH
from parotid_seg.runtime.engines.engine_file import BatchProfile, EngineOptions
from parotid_seg.runtime.engines.load import gpu_index
from parotid_seg.runtime.engines.model_file import read_model
from parotid_seg.runtime.engines.tensorrt.library import LIBRARIES
from parotid_seg.scan.chunks import cut

SHARE_OF_BUILDS = 0.35
"""Of all the time: after that much no engine is built any more."""
SHARE_OF_A_BUILD = 0.15
"""Of all the time: the longest for one engine."""


@dataclass
class Entry:
    """One that may take part.

    Attributes:
        precision: what it is asked to compute in.
        load: makes it ready.
        infer: options with which `parotid-seg infer` uses it; none for torch.
    """

    precision: str
    load: Callable[[], Contender]
    infer: Mapping[str, str] = field(default_factory=dict)


def torch_entries(options: argparse.Namespace, record: Record) -> dict[str, Entry]:
    """The trained network in torch, where torch and timm can be imported."""
    try:
        import timm  # noqa: F401
        import torch

        from gpu.torch_contenders import contender
    except (ImportError, OSError) as error:  # OSError: a library of CUDA cannot be loaded
        record.skip("torch", f"cannot be imported: {str(error)[:200]}")
        return {}
    if options.device != "cpu" and not torch.cuda.is_available():
        record.skip("torch", f"torch {torch.__version__} finds no GPU")
        return {}
    checkpoint = options.checkpoint or make_checkpoint(options.work / "packaged.pt")
    of = partial(contender, checkpoint, options.device)
    found = {
        REFERENCE: Entry("fp32", partial(of, "fp32", tf32=False)),
        "torch fp16": Entry("fp16", partial(of, "fp16", tf32=True)),
    }
    if options.device == "cpu":
        record.skip("torch with TF32, torch.compile with CUDA graphs", "needs a GPU")
        return found
    found["torch tf32"] = Entry("tf32", partial(of, "fp32", tf32=True))
    compiled = partial(of, "fp16", tf32=True, compile_mode=options.compile_mode)
    found[f"torch.compile {options.compile_mode} fp16"] = Entry("fp16", compiled)
    return found


def our_entries(options: argparse.Namespace, models: Mapping[str, Path], record: Record) -> dict[str, Entry]:
    """Our backends on this device."""
    found = {}
    for precision, path in models.items():
        infer = {"--model": str(path), "--backend": "onnxruntime"}
        load = partial(loaded, path, "onnxruntime", options.device)
        found[f"onnxruntime {precision}"] = Entry(precision, load, infer)
    for library in LIBRARIES:
        for precision, path in models.items():
            if options.device == "cpu":
                record.skip(f"{library} {precision}", "needs a GPU")
                continue
            engine = options.work / f"{precision}.{library}.engine"
            load = partial(built, options, path, engine, library, record.budget_s * SHARE_OF_A_BUILD)
            infer = {"--model": str(engine), "--backend": library}
            found[f"{library} {precision}"] = Entry(precision, load, infer)
    return found


def loaded(path: Path, engine: str, device: str) -> Contender:
    """A backend of ours."""
    return BackendContender(load_exactly(path, engine, device))


def built(options: argparse.Namespace, path: Path, engine: Path, library: str, most_s: float) -> Contender:
    """An engine, built for all batch sizes of the sweep, on its backend."""
    most, started = max(options.batch_sizes), time.monotonic()

    def stop_late(*_: object) -> None:
        if time.monotonic() - started > most_s:
            raise TimeoutError(f"the build was stopped after {most_s:.0f} s")

    profile = BatchProfile(1, min(USUAL_BATCH, most), most)
    build_engine(path, engine, library=library, profile=profile, options=EngineOptions(), progress=stop_late)
    return loaded(engine, library, options.device)


def load_all(found: Mapping[str, Entry], record: Record, memory: DeviceMemory) -> dict[str, Contender]:
    """Those that can be made ready here; how long each took is kept."""
    ready, seconds = {}, {}
    for name, entry in found.items():
        started = time.monotonic()
        with memory.of(name):
            contender = record.attempt(name, entry.load, until=SHARE_OF_BUILDS if name.startswith("tensorrt") else 1.0)
        if contender is not None:
            ready[name], seconds[name] = contender, round(time.monotonic() - started, 2)
    record.add("load_s", seconds)
    return ready


def measure_peaks(options: argparse.Namespace, index: int, record: Record) -> None:
    """The peaks of the machine by torch, without it those by onnxruntime; and of a GPU those of the bus."""

    def by_torch() -> Peaks:
        from gpu import torch_contenders

        return torch_contenders.measured_peaks(options.device)

    def by_onnxruntime() -> Peaks:
        return measured_peaks("cpu" if options.device == "cpu" else "cuda", index)

    def bus() -> dict[str, float]:
        from gpu import torch_contenders

        return torch_contenders.measured_bus(options.device)

    if "peaks" not in record.content:
        found = record.attempt("peaks by torch", by_torch) or record.attempt("peaks by onnxruntime", by_onnxruntime)
        if found:
            record.add("peaks", asdict(found))
    if options.device != "cpu" and "bus" not in record.content and (speeds := record.attempt("bus", bus)):
        record.add("bus", speeds)


def after_sweep(
    options: argparse.Namespace, scans: Sequence[Path], found: Mapping[str, Entry], gpu: int | None, record: Record
) -> None:
    """The trace and the end-to-end runs, with the fastest of ours."""
    name, size, rate = fastest(record.content.get("sweep", {}))
    contract = read_model(Path(found[name].infer["--model"]))[1]
    covered = in_memory([(scan,) for scan in scans[:MOST_SCANS]], contract)
    if "trace" not in record.content:
        contender = found[name].load()
        assert isinstance(contender, BackendContender)
        work = partial(trace, contender.backend, covered[0], size, options.out / "trace.json.gz")
        if record.attempt("trace", lambda: (work(), True)):
            record.add("trace", {"file": "trace.json.gz", "of": f"one scan, {name}, batches of {size}"})
        record.attempt(f"closing {name}", contender.backend.close)
    samples = float(np.mean([sum(chunk.size for chunk in cut(scan, contract.grid, size)) for scan in covered]))
    about = {
        "scans": options.many,
        "with": name,
        "batch_size": size,
        "samples_a_scan": samples,
        "engine_scans_a_second": rate / samples,
    }
    how = {**found[name].infer, "--device": options.device, "--search": "full"}
    end_to_end(scans, how, options.workers, about, gpu, record)


def measure(options: argparse.Namespace, record: Record) -> None:
    """All parts that the record does not have yet, each as far as the time and the packages go."""
    index = gpu_index(options.device) or 0
    gpu = None if options.device == "cpu" else index
    make_folder(options.work)
    record.add("machine", machine(options.device, index))
    record.add("probe", read_probe(options.out))
    measure_peaks(options, index, record)
    scans = record.attempt("scans", lambda: options.scans or make_scans(options.work / "scans"))
    fp16 = record.attempt("model in FP16", lambda: options.fp16 or make_fp16(options.work / "fp16.onnx", options.fp32))
    if scans is None:
        return
    models = {"fp32": options.fp32, **({"fp16": fp16} if fp16 else {})}
    ours = our_entries(options, models, record)
    missing = [size for size in options.batch_sizes if str(size) not in record.content.get("sweep", {})]
    if missing:
        entries = {**(record.attempt("torch", partial(torch_entries, options, record)) or {}), **ours}
        contract = read_model(options.fp32)[1]
        covered = in_memory([(scan,) for scan in scans[:MOST_SCANS]], contract)
        memory = DeviceMemory(gpu)
        ready = load_all(entries, record, memory)
        precisions = {name: entry.precision for name, entry in entries.items()}
        sweep(missing, covered, options.fp32, contract, ready, precisions, record, options.repeats, memory)
        if gpu is not None:
            record.add("driver_after_the_sweep", nvidia_smi_values(gpu))
        close_all(ready, record)
    record.attempt("trace and end to end", lambda: after_sweep(options, scans, ours, gpu, record))


def close_all(ready: dict[str, Contender], record: Record) -> None:
    """Free the memory of all contenders."""
    for name, contender in ready.items():
        if isinstance(contender, BackendContender):
            record.attempt(f"closing {name}", contender.backend.close)
    ready.clear()
    release_cached()


def main(words: Sequence[str] | None = None) -> None:
    """Measure and write; status 1 if the time was too short for something."""
    parser = argparse.ArgumentParser(
        prog="gpu bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for scans, checkpoint, models and engines")
    parser.add_argument("--minutes", type=float, default=7.0, help="for everything; what does not fit is skipped")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    parser.add_argument("--scans", type=Path, nargs="+", help="NIfTI scans; default: made from the example")
    parser.add_argument("--checkpoint", type=Path, help="default: the packaged model's")
    parser.add_argument("--fp32", type=Path, default=DEFAULT_MODEL, help="the checkpoint's model file in FP32")
    parser.add_argument("--fp16", type=Path, help="the same in FP16; default: made from the other")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[64, 16, 256], help="in the order to try them")
    parser.add_argument("--repeats", type=int, default=20, help="rounds")
    parser.add_argument("--compile-mode", default="reduce-overhead", choices=("reduce-overhead", "max-autotune"))
    parser.add_argument("--workers", type=int, nargs="+", default=[4, 16], help="readers of the end-to-end runs")
    parser.add_argument("--many", type=int, default=40, help="scans of an end-to-end run, copied to be as many")
    options = parser.parse_args(words)
    make_folder(options.out)
    record = Record(options.out, options.minutes, {"device": options.device, "model": hash_file(options.fp32)})
    try:
        measure(options, record)
    except ParotidSegError as error:
        raise SystemExit(str(error)) from error
    record.save()
    print((options.out / "gpu.md").read_text())
    if record.out_of_time:
        raise SystemExit(1)
