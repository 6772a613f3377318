"""Speed on an NVIDIA GPU: torch in its ways against our backends, on the same slices in one run, within minutes.

In this order, the most important first:

first_use   what `infer` does on its first use: graphs that are made, the choice of `auto` and its reasons, seconds
peaks       what the machine does at best: products in FP32, TF32 and FP16, copies on the device and over the bus
sweep       by batch size, taking turns, with copies, and computing alone; changed voxels against torch in FP32; share
            of the roofline; memory. First torch eager and every graph that `infer` may choose from; then, beside
            torch in FP32 and the fastest of ours, what must be compiled or built: torch.compile, TensorRT; and then the
            last graph with other options of onnxruntime
trace       DIR/trace.json.gz: the engine's part of the pipeline on one scan, to be opened in Perfetto
end_to_end  `parotid-seg infer` by number of workers, with our fastest; memory

The scans, the network for torch and the graphs are made from the package. torch needs timm; our backends need
onnxruntime-gpu and onnx, and tensorrt or tensorrt-rtx with pycuda. What is missing, fails or finds no time is named
and skipped. DIR/gpu.json and DIR/gpu.md are written anew after every part, so a run that is cut leaves what it has,
and the same command does the parts that are missing. With `--device cpu` the same code runs what there is on a CPU,
which is for trying it and says nothing about GPUs.
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
from gpu.first_use import first_use
from gpu.inputs import GRAPHS, VARIANTS, graph_file, make_checkpoint, make_scans
from gpu.probe import read_probe
from gpu.record import Record, machine
from gpu.sweep import REFERENCE, fastest, left_of, sweep
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
SHARE_OF_FIRST_USE = 0.25
"""Of all the time: the longest for the first use of `infer`."""
FIRST, COMPILED, TRIALS = PARTS = "first", "compiled", "trials"
"""Parts of the sweep: those that start at once; those that must be compiled or built; and other options of onnxruntime,
last, since an error of a GPU may end all work of a process."""


@dataclass
class Entry:
    """One that may take part.

    Attributes:
        precision: what it is asked to compute in.
        load: makes it ready.
        infer: options with which `parotid-seg infer` uses it; none for torch and for trials of other options.
        part: of the sweep.
    """

    precision: str
    load: Callable[[], Contender]
    infer: Mapping[str, str] = field(default_factory=dict)
    part: str = FIRST


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
    found[f"torch.compile {options.compile_mode} fp16"] = Entry("fp16", compiled, part=COMPILED)
    return found


def our_entries(options: argparse.Namespace, models: Mapping[str, Path], record: Record) -> dict[str, Entry]:
    """Our backends on this device, with files by name of the graph."""
    found = {}
    for graph, path in models.items():
        infer = {"--model": str(path), "--backend": "onnxruntime"}
        load = partial(loaded, path, "onnxruntime", options.device)
        found[f"onnxruntime {graph}"] = Entry(graph.split()[0], load, infer)
    for variant, provider in VARIANTS.items() if GRAPHS[-1] in models else ():
        load = partial(with_provider, models[GRAPHS[-1]], provider, gpu_index(options.device) or 0)
        found[f"onnxruntime {GRAPHS[-1]}, {variant}"] = Entry("fp16", load, part=TRIALS)
    for library in LIBRARIES:
        for precision in (graph for graph in models if graph in ("fp32", "fp16")):
            if options.device == "cpu":
                record.skip(f"{library} {precision}", "needs a GPU")
                continue
            engine = options.work / f"{precision}.{library}.engine"
            load = partial(built, options, models[precision], engine, library, record.budget_s * SHARE_OF_A_BUILD)
            infer = {"--model": str(engine), "--backend": library}
            found[f"{library} {precision}"] = Entry(precision, load, infer, COMPILED)
    return found


def loaded(path: Path, engine: str, device: str) -> Contender:
    """A backend of ours."""
    return BackendContender(load_exactly(path, engine, device))


def with_provider(path: Path, provider: Mapping[str, str], gpu: int) -> Contender:
    """A graph on onnxruntime with other options of its CUDA provider."""
    from parotid_seg.runtime.engines.onnxruntime.cuda import OnnxRuntimeCudaBackend

    return BackendContender(OnnxRuntimeCudaBackend(path, device=gpu, provider=provider), provider)


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
    ready, seconds = {}, dict(record.content.get("load_s", {}))
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
    name, size, rate = fastest(record.content.get("sweep", {}), [name for name, entry in found.items() if entry.infer])
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


def graph_files(options: argparse.Namespace, record: Record) -> dict[str, Path]:
    """Files of the graphs that can be made and run here, by name."""
    found = {}
    for name in GRAPHS:
        if options.device == "cpu" and name.endswith("fused"):
            record.skip(f"onnxruntime {name}", "needs a GPU")
            continue
        given = options.fp16 if name == "fp16" else None
        path = given or record.attempt(f"graph {name}", partial(graph_file, name, options.fp32))
        if path is not None:
            found[name] = path
    return found


def sweeps(
    options: argparse.Namespace, scans: Sequence[Path], ours: Mapping[str, Entry], gpu: int | None, record: Record
) -> None:
    """All parts of the sweep, as far as they were not measured yet."""
    missing = {part: left_of(part, options.batch_sizes, record.content) for part in PARTS}
    if not any(missing.values()):
        return
    entries = {**(record.attempt("torch", partial(torch_entries, options, record)) or {}), **ours}
    precisions = {name: entry.precision for name, entry in entries.items()}
    contract = read_model(options.fp32)[1]
    covered = in_memory([(scan,) for scan in scans[:MOST_SCANS]], contract)
    memory = DeviceMemory(gpu)
    ready: dict[str, Contender] = {}
    for part, sizes in missing.items():
        names = [name for name, entry in entries.items() if entry.part == part]
        if not (names and sizes):
            continue
        if part != FIRST:  # beside them, so that they are measured in turns with what they are compared with
            best = record.attempt("the fastest of ours", partial(fastest, record.content.get("sweep", {}), ours))
            names = [name for name in (REFERENCE, best[0] if best else "") if name in entries] + names
        ready |= load_all({name: entries[name] for name in names if name not in ready}, record, memory)
        turns = {name: ready[name] for name in names if name in ready}
        if not any(entries[name].part == part for name in turns):
            continue
        sweep(part, sizes, covered, options.fp32, contract, turns, precisions, record, options.repeats, memory)
    if gpu is not None:
        record.add("driver_after_the_sweep", nvidia_smi_values(gpu))
    close_all(ready, record)


def measure(options: argparse.Namespace, record: Record) -> None:
    """All parts that the record does not have yet, each as far as the time and the packages go."""
    index = gpu_index(options.device) or 0
    gpu = None if options.device == "cpu" else index
    make_folder(options.work)
    record.add("machine", machine(options.device, index))
    record.add("probe", read_probe(options.out))
    if "first_use" not in record.content:
        most_s = record.budget_s * SHARE_OF_FIRST_USE
        found = record.attempt("first use", partial(first_use, options.fp32, options.device, most_s))
        if found:
            record.add("first_use", found)
    measure_peaks(options, index, record)
    scans = record.attempt("scans", lambda: options.scans or make_scans(options.work / "scans"))
    if scans is None:
        return
    ours = our_entries(options, graph_files(options, record), record)
    sweeps(options, scans, ours, gpu, record)
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
    parser.add_argument("--work", type=Path, required=True, help="folder for scans, checkpoint and engines")
    parser.add_argument("--minutes", type=float, default=7.0, help="for everything; what does not fit is skipped")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    parser.add_argument("--scans", type=Path, nargs="+", help="NIfTI scans; default: made from the example")
    parser.add_argument("--checkpoint", type=Path, help="default: the packaged model's")
    parser.add_argument("--fp32", type=Path, default=DEFAULT_MODEL, help="the checkpoint's model file in FP32")
    parser.add_argument("--fp16", type=Path, help="the same in FP16; default: as infer makes it")
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
