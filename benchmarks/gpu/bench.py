"""Speed on an NVIDIA GPU: torch in its ways against our backends, on the same slices in one run, within minutes.

In these parts, the most important first:

first-use   what `infer` does on its first use: graphs that are made, the choice of `auto` and its reasons, seconds
eager       what the machine does at best: products in FP32, TF32 and FP16, copies on the device and over the bus; then
            torch eager and every graph that `infer` may choose from by batch size, taking turns, with copies, and
            computing alone; changed voxels against torch in FP32; share of the roofline; memory
compiled    the same of torch.compile with CUDA graphs, beside torch in FP32 and the fastest of ours
end-to-end  `parotid-seg infer` by number of workers, with our fastest; memory; and DIR/trace.json.gz: the engine's part
            of the pipeline on one scan, to be opened in Perfetto
options     as `compiled`, of the last graph with other options of onnxruntime
engines     as `compiled`, of TensorRT

The scans, the network for torch and the graphs are made from the package. torch needs timm; our backends need
onnxruntime-gpu and onnx, and tensorrt or tensorrt-rtx with pycuda. What is missing, fails or finds no time is named
and skipped. DIR/gpu.json and DIR/gpu.md are written anew after every part, so a run that is cut leaves what it has,
and the same command does what is missing. With `--device cpu` the same code runs what there is on a CPU,
which is for trying it and says nothing about GPUs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from gpu.contenders import BackendContender, Contender, DeviceMemory, load_exactly, release_cached
from gpu.end_to_end import end_to_end, trace
from gpu.first_use import first_use, left_by_an_earlier
from gpu.inputs import GRAPHS, VARIANTS, graph_file, make_checkpoint, make_scans
from gpu.probe import read_probe
from gpu.record import Record, machine
from gpu.sweep import REFERENCE, fastest, left_of, sweep
from parotid_seg.bench.roofline import Peaks, measured_peaks
from parotid_seg.bench.selection import MOST_SCANS, in_memory
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

SHARE_OF_A_BUILD = 0.35
"""Of the time: the longest for building one engine."""
FIRST_USE, EAGER, COMPILED, END_TO_END, OPTIONS, BUILT = PARTS = (
    *("first-use", "eager", "compiled"),
    *("end-to-end", "options", "engines"),
)


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
    part: str = EAGER


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
        trial = partial(with_provider, models[GRAPHS[-1]], provider, gpu_index(options.device) or 0)
        found[f"onnxruntime {GRAPHS[-1]}, {variant}"] = Entry("fp16", trial, part=OPTIONS)
    for library in LIBRARIES:
        for precision in (graph for graph in models if graph in ("fp32", "fp16")):
            if options.device == "cpu":
                record.skip(f"{library} {precision}", "needs a GPU")
                continue
            engine = options.work / f"{precision}.{library}.engine"
            load = partial(built, options, models[precision], engine, library, record.budget_s * SHARE_OF_A_BUILD)
            infer = {"--model": str(engine), "--backend": library}
            found[f"{library} {precision}"] = Entry(precision, load, infer, BUILT)
    return found


def loaded(path: Path, engine: str, device: str) -> Contender:
    """A backend of ours."""
    return BackendContender(load_exactly(path, engine, device))


def with_provider(path: Path, provider: Mapping[str, str], gpu: int) -> BackendContender:
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
            contender = record.attempt(name, entry.load)
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
    """The end-to-end runs and the trace, with the fastest of ours."""
    name, size, rate = fastest(record.content.get("sweep", {}), [name for name, entry in found.items() if entry.infer])
    contract = read_model(Path(found[name].infer["--model"])).contract
    covered = in_memory([(scan,) for scan in scans[:MOST_SCANS]], contract)
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
    if "trace" not in record.content:
        contender = found[name].load()
        assert isinstance(contender, BackendContender)
        work = partial(trace, contender.backend, covered[0], size, options.out / "trace.json.gz")
        if record.attempt("trace", lambda: (work(), True)):
            record.add("trace", {"file": "trace.json.gz", "of": f"one scan, {name}, batches of {size}"})
        record.guarded(f"closing {name}", contender.backend.close)


def graph_files(options: argparse.Namespace, record: Record) -> dict[str, Path]:
    """Files of the graphs that can be made and run here, by name."""
    found = {}
    failed = {line["model"]: line["error"] for line in read_probe(options.out) if "error" in line}
    for name in GRAPHS:
        if options.device == "cpu" and name.endswith("fused"):
            record.skip(f"onnxruntime {name}", "needs a GPU")
            continue
        if name in failed:  # it would perhaps end all work of this process
            record.skip(f"onnxruntime {name}", f"failed in the probe: {failed[name]}")
            continue
        given = options.fp16 if name == "fp16" else None
        path = given or record.attempt(f"graph {name}", partial(graph_file, name, options.fp32))
        if path is not None:
            found[name] = path
    return found


def measure_sweep(
    options: argparse.Namespace,
    part: str,
    scans: Sequence[Path],
    ours: Mapping[str, Entry],
    gpu: int | None,
    record: Record,
) -> None:
    """A part that compares by batch size, as far as it was not measured yet."""
    sizes = left_of(part, options.batch_sizes, record.content)
    entries = {**(record.attempt("torch", partial(torch_entries, options, record)) or {}), **ours} if sizes else {}
    names = [name for name, entry in entries.items() if entry.part == part]
    if not names:
        return
    if part != EAGER:  # beside them, so that they are measured in turns with what they are compared with
        best = record.attempt("the fastest of ours", partial(fastest, record.content.get("sweep", {}), ours))
        names = [name for name in (REFERENCE, best[0] if best else "") if name in entries] + names
    contract = read_model(options.fp32).contract
    covered = in_memory([(scan,) for scan in scans[:MOST_SCANS]], contract)
    memory = DeviceMemory(gpu)
    ready = load_all({name: entries[name] for name in names}, record, memory)
    if any(entries[name].part == part for name in ready):
        precisions = {name: entry.precision for name, entry in entries.items()}
        sweep(part, sizes, covered, options.fp32, contract, ready, precisions, record, options.repeats, memory)
    if gpu is not None:
        record.add("driver_after_the_sweep", nvidia_smi_values(gpu))
    close_all(ready, record)


def measure_first_use(options: argparse.Namespace, record: Record) -> None:
    """The first use, or what there is of it when it fails or the time is over."""
    before = left_by_an_earlier(options.out) or record.content.get(FIRST_USE, {})
    if before:
        record.add(FIRST_USE, before)
    if before and "stopped" not in before:
        return
    found = record.attempt("first use", partial(first_use, options.fp32, options.device, options.out, record.left_s))
    if found and len(found) >= len(before):
        record.add(FIRST_USE, found)
    if found and "stopped" in found:
        record.skip("the rest of the first use", found["stopped"])
        record.out_of_time = True


def measure(options: argparse.Namespace, record: Record) -> None:
    """All wanted parts that the record does not have yet, each as far as the time and the packages go."""
    index = gpu_index(options.device) or 0
    gpu = None if options.device == "cpu" else index
    make_folder(options.work)
    record.add("machine", machine(options.device, index))
    record.add("probe", read_probe(options.out))
    for record.part in options.parts:
        if record.part == FIRST_USE:
            measure_first_use(options, record)
            continue
        if record.part == EAGER:
            measure_peaks(options, index, record)
        scans = record.attempt("scans", lambda: options.scans or make_scans(options.work / "scans"))
        if scans is None:
            continue
        ours = our_entries(options, graph_files(options, record), record)
        if record.part == END_TO_END:
            record.attempt("end to end and trace", partial(after_sweep, options, scans, ours, gpu, record))
            continue
        measure_sweep(options, record.part, scans, ours, gpu, record)


def is_lost(device: str) -> bool:
    """Whether a GPU does no more work for this process, as after an illegal access, as far as torch can tell."""
    torch = sys.modules.get("torch")
    if device == "cpu" or torch is None or not torch.cuda.is_available():
        return False
    try:
        torch.cuda.synchronize(gpu_index(device) or 0)
    except Exception:  # whatever the driver says
        return True
    return False


def close_all(ready: dict[str, Contender], record: Record) -> None:
    """Free the memory of all contenders."""
    for name, contender in ready.items():
        if isinstance(contender, BackendContender):
            record.guarded(f"closing {name}", contender.backend.close)
    ready.clear()
    release_cached()


def main(words: Sequence[str] | None = None) -> None:
    """Measure and write; status 1 if something failed or the time was too short for it."""
    parser = argparse.ArgumentParser(
        prog="gpu bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for scans, checkpoint and engines")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure; default: everything")
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything; what does not fit is skipped")
    parser.add_argument("--until", type=float, help="the same as a time, in seconds since 1970; imports count, too")
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
    key = {"device": options.device, "model": hash_file(options.fp32)}
    minutes = options.minutes if options.until is None else (options.until - time.time()) / 60
    record = Record(options.out, minutes, key, options.parts, is_lost=partial(is_lost, options.device))
    try:
        measure(options, record)
    except ParotidSegError as error:
        raise SystemExit(str(error)) from error
    record.save()
    if set(options.parts) == set(PARTS):
        print((options.out / "gpu.md").read_text())
    if record.failed or record.out_of_time:
        raise SystemExit(1)
