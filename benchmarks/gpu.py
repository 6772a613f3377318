"""Speed on an NVIDIA GPU: torch in its ways against our backends, on the same slices in one run, within minutes.

    python benchmarks/gpu.py SCANS --checkpoint best.pt --out DIR [--minutes 9] [--device cuda]

peaks       what the machine does at best: products in FP32, TF32 and FP16, copies on the device and over the bus
sweep       every engine and precision by batch size, taking turns, with copies, and computing alone; changed voxels
            against torch in FP32; share of the roofline
trace       DIR/trace.json: the engine's part of the pipeline on one scan, to be opened in chrome://tracing or Perfetto
end_to_end  `parotid-seg infer` by number of workers, with our fastest

Needs torch and timm; onnx and onnxscript to make the model files (or --fp32 and --fp16); and for our backends
onnxruntime-gpu, and tensorrt or tensorrt-rtx with pycuda. What is missing, fails or finds no time is named and left
out. DIR/gpu.json and DIR/gpu.md are written anew after every step, so a run that is cut leaves what it has. With
`--device cpu` the same code runs what there is on a CPU, which is for trying it and says nothing about GPUs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_end_to_end import end_to_end, trace
from gpu_engines import BackendContender, Contender, Half, TorchContender, measured_bus, measured_peaks, through
from gpu_record import Record, machine, percentiles, share_of_bus, traffic, within

from parotid_seg.bench.inputs import MOST_SCANS, in_memory, rotation
from parotid_seg.bench.peaks import Peaks
from parotid_seg.bench.roofline import roofline
from parotid_seg.bench.system_state import nvidia_smi_values
from parotid_seg.contract import Contract
from parotid_seg.errors import ParotidSegError
from parotid_seg.export.engine import build_engine
from parotid_seg.files import make_folder
from parotid_seg.runtime.engines.base import USUAL_BATCH
from parotid_seg.runtime.engines.engine_file import BatchProfile, EngineOptions
from parotid_seg.runtime.engines.load import gpu_index, load_backend
from parotid_seg.runtime.engines.model_file import read_model
from parotid_seg.runtime.engines.onnxruntime.profile import count
from parotid_seg.runtime.engines.tensorrt.library import LIBRARIES
from parotid_seg.scan.chunks import CroppedScan, Inputs, cut
from parotid_seg.scan.volume import Mask

REFERENCE = "torch fp32"
WARM_UP = 3
SHARE_OF_BUILDS, SHARE_OF_SWEEP = 0.35, 0.8
"""Of all the time: after that much no engine is built and no batch size begun any more."""
SHARE_OF_A_BUILD, SHARE_OF_COMPILING, SHARE_OF_A_SIZE = 0.15, 0.15, 0.08
"""Of all the time: the longest for one engine, for the warm-up of one contender, and for the rounds of a batch size."""


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


def make_models(options: argparse.Namespace, folder: Path) -> dict[str, Path]:
    """The model file in FP32 and in FP16: those that were named, or made from the checkpoint without the gate."""
    given = {name: path for name in ("fp32", "fp16") if (path := getattr(options, name))}
    if len(given) == 2:
        return given
    from parotid_seg.export.onnx_file import halve_weights, to_onnx, with_contract
    from parotid_seg.export.precision import lower
    from parotid_seg.train.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(options.checkpoint)
    model, contract = to_onnx(checkpoint)
    contract = replace(contract, weights="fp16")
    for name in {"fp32", "fp16"} - given.keys():
        lowered = lower(model, "fp16", lambda _: False) if name == "fp16" else halve_weights(model)
        given[name] = folder / f"{name}.onnx"
        given[name].write_bytes(with_contract(lowered, replace(contract, precision=name)))
    return given


def entries(options: argparse.Namespace, models: Mapping[str, Path], record: Record) -> dict[str, Entry]:
    """All that may take part on this device."""
    on_gpu = options.device != "cpu"
    found = {
        REFERENCE: Entry("fp32", partial(torch_contender, options, "fp32", tf32=False)),
        "torch fp16": Entry("fp16", partial(torch_contender, options, "fp16", tf32=True)),
    }
    if on_gpu:
        found["torch tf32"] = Entry("tf32", partial(torch_contender, options, "fp32", tf32=True))
        compiled = partial(torch_contender, options, "fp16", tf32=True, compile_mode=options.compile_mode)
        found[f"torch.compile {options.compile_mode} fp16"] = Entry("fp16", compiled)
    else:
        record.leave_out("torch with TF32, torch.compile with CUDA graphs", "needs a GPU")
    for precision, path in models.items():
        infer = {"--model": str(path), "--backend": "onnxruntime"}
        found[f"onnxruntime {precision}"] = Entry(precision, partial(loaded, options, path, "onnxruntime"), infer)
    for library in LIBRARIES:
        for precision, path in models.items():
            if not on_gpu:
                record.leave_out(f"{library} {precision}", "needs a GPU")
                continue
            engine = options.out / "models" / f"{precision}.{library}.engine"
            load = partial(built, options, path, engine, library, record.budget_s * SHARE_OF_A_BUILD)
            infer = {"--model": str(engine), "--backend": library}
            found[f"{library} {precision}"] = Entry(precision, load, infer)
    return found


def torch_contender(options: argparse.Namespace, precision: str, **how: Any) -> Contender:
    """The trained network in torch."""
    from parotid_seg.train.checkpoint import load_checkpoint

    net = load_checkpoint(options.checkpoint).network()
    return TorchContender(Half(net) if precision == "fp16" else net, torch.device(options.device), **how)


def loaded(options: argparse.Namespace, path: Path, backend: str) -> Contender:
    """A backend of ours. The gate was not run on these files, so they are not verified."""
    return BackendContender(load_backend(path, backend, options.device, allow_unverified=True))


def built(options: argparse.Namespace, path: Path, engine: Path, library: str, most_s: float) -> Contender:
    """An engine, built for all batch sizes of the sweep, on its backend."""
    most, started = max(options.batch_sizes), time.monotonic()

    def stop_late(*_: object) -> None:
        if time.monotonic() - started > most_s:
            raise TimeoutError(f"the build was stopped after {most_s:.0f} s")

    profile = BatchProfile(1, min(USUAL_BATCH, most), most)
    build_engine(path, engine, library=library, profile=profile, options=EngineOptions(), progress=stop_late)
    return loaded(options, engine, library)


def load_all(found: Mapping[str, Entry], record: Record) -> dict[str, Contender]:
    """Those that can be made ready here; how long each took is kept."""
    ready, seconds = {}, {}
    for name, entry in found.items():
        started = time.monotonic()
        contender = record.attempt(name, entry.load, until=SHARE_OF_BUILDS if name.startswith("tensorrt") else 1.0)
        if contender is not None:
            ready[name], seconds[name] = contender, round(time.monotonic() - started, 2)
    record.add("load_s", seconds)
    return ready


def warmed_up(contender: Contender, inputs: Sequence[Inputs], most_s: float) -> tuple[list[Mask], float]:
    """The labels after some passes, when graphs are replayed; and the seconds of the first, which may compile."""
    with within(most_s):
        started = time.monotonic()
        labels = through(contender, inputs)
        first_s = time.monotonic() - started
        for _ in range(WARM_UP - 1):
            labels = through(contender, inputs)
    return labels, first_s


def sweep_size(
    inputs: Sequence[Inputs], ready: dict[str, Contender], found: Mapping[str, Entry], record: Record, repeats: int
) -> dict[str, Any]:
    """All contenders in turns on the same chunks of one batch size; one that is too slow to start is dropped."""
    looks = len(inputs[0]["neighbours"])
    labels: dict[str, list[Mask]] = {}
    rows: dict[str, dict[str, Any]] = {}
    most_s = record.budget_s * SHARE_OF_COMPILING
    for name, contender in list(ready.items()):
        began, work = time.monotonic(), partial(warmed_up, contender, inputs, most_s)
        warm = record.attempt(f"{name}, batches of {looks}", work)
        if warm is not None:
            labels[name] = warm[0]
            rows[name] = {"first_pass_s": round(warm[1], 3), "ours": contender.ours}
        elif time.monotonic() - began >= most_s:
            record.leave_out(f"{name}, other batches", "stopped once; another shape would be compiled as slowly")
            del ready[name]
    if not rows:
        raise RuntimeError("no contender ran")
    timed = in_turns({name: ready[name] for name in rows}, inputs, repeats, record.budget_s * SHARE_OF_A_SIZE)
    for name, (passes, alone) in timed.items():
        row, contender = rows[name], ready[name]
        row |= {"ms": percentiles(passes), "alone_ms": percentiles(alone)}
        row["looks_a_second"] = 1000 * looks / row["ms"]["p50"]
        compute = record.attempt(
            f"{name}, batches of {looks}, computing alone", partial(contender.compute_ms, inputs, repeats)
        )
        row["compute_ms"] = percentiles(compute) if compute else None
        row["ran"] = contender.told
        row["precision"] = contender.told.get("precision", found[name].precision)
        row |= changed(labels.get(REFERENCE), labels[name])
    shape = " x ".join(map(str, inputs[0]["slices"].shape))
    chunk: dict[str, Any] = {"different": len(inputs), "looks": looks, "shape": shape}
    chunk |= traffic(dict(inputs[0]), next(iter(labels.values()))[0])
    return {"chunk": chunk, "contenders": rows, **compared(rows)}


def in_turns(
    ready: Mapping[str, Contender], inputs: Sequence[Inputs], repeats: int, most_s: float
) -> dict[str, tuple[list[float], list[float]]]:
    """Milliseconds a chunk of each: of passes over all inputs with chunks ahead, and of chunks one at a time."""
    found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in ready}
    began = time.monotonic()
    for number in range(repeats):
        if number and time.monotonic() - began > most_s:
            break
        for name, contender in ready.items():
            passes, alone = found[name]
            started = time.perf_counter()
            through(contender, inputs)
            passes.append(1000 * (time.perf_counter() - started) / len(inputs))
            for chunk in inputs:
                started = time.perf_counter()
                contender.start(chunk).result()
                alone.append(1000 * (time.perf_counter() - started))
    return found


def changed(reference: Sequence[Mask] | None, labels: Sequence[Mask]) -> dict[str, Any]:
    """Voxels that have another label than the reference gave them, and their share of the reference's structures."""
    if reference is None:
        return {"changed_voxels": None, "changed_of_structures": None}
    pairs = list(zip(reference, labels, strict=True))
    count = sum(int(np.count_nonzero(one != other)) for one, other in pairs)
    structures = sum(int(np.count_nonzero(one)) for one, _ in pairs)
    return {"changed_voxels": count, "changed_of_structures": count / structures if structures else None}


def compared(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The fastest of torch and of ours, and how many times as fast ours is."""
    best: dict[str, str] = {}
    for name, row in rows.items():
        side = "ours" if row["ours"] else "torch"
        if side not in best or row["looks_a_second"] > rows[best[side]]["looks_a_second"]:
            best[side] = name
    if len(best) < 2:
        return {"best": best, "ours_over_torch": None}
    ratio = rows[best["ours"]]["looks_a_second"] / rows[best["torch"]]["looks_a_second"]
    return {"best": best, "ours_over_torch": ratio}


def sweep(
    options: argparse.Namespace,
    scans: Sequence[CroppedScan],
    model: Path,
    contract: Contract,
    ready: dict[str, Contender],
    entries: Mapping[str, Entry],
    record: Record,
) -> None:
    """All batch sizes, each written when it is done, with its share of the roofline where peaks are known."""
    sizes: dict[str, Any] = {}
    for size in options.batch_sizes:
        inputs = rotation(scans, contract, size)
        if not inputs:
            record.leave_out(f"batches of {size}", "no scan has so many slices")
            continue
        work = partial(sweep_size, inputs, ready, entries, record, options.repeats)
        result = record.attempt(f"batches of {size}", work, until=SHARE_OF_SWEEP)
        if result is None:
            continue
        counted = record.attempt(f"operations of batches of {size}", partial(count, model.read_bytes(), inputs[0]))
        for row in result["contenders"].values():
            if "peaks" in record.content and counted:
                computing_ms = (row["compute_ms"] or row["ms"])["p50"]
                found = roofline(counted, computing_ms / 1000, row["precision"], Peaks(**record.content["peaks"]))
                row["roofline"] = found and asdict(found)
            if "bus" in record.content:
                row["share_of_bus"] = share_of_bus(row["ms"]["p50"], result["chunk"], record.content["bus"])
        sizes[str(size)] = result
        record.add("sweep", sizes)


def fastest(sizes: Mapping[str, Any]) -> tuple[str, int, float]:
    """Name, batch size and samples a second of the fastest of ours."""
    found = [
        (row["looks_a_second"], name, int(size))
        for size, result in sizes.items()
        for name, row in result["contenders"].items()
        if row["ours"]
    ]
    if not found:
        raise RuntimeError("none of our backends ran")
    rate, name, size = max(found)
    return name, size, rate


def after_sweep(
    options: argparse.Namespace,
    scans: Sequence[Path],
    covered: Sequence[CroppedScan],
    contract: Contract,
    ready: dict[str, Contender],
    found: Mapping[str, Entry],
    record: Record,
) -> None:
    """The trace and the end-to-end runs, with the fastest of ours; the others are let go before."""
    name, size, rate = fastest(record.content.get("sweep", {}))
    contender = ready[name]
    assert isinstance(contender, BackendContender)
    work = partial(trace, contender.backend, covered[0], size, options.out / "trace.json")
    if record.attempt("trace", lambda: (work(), True)):
        record.add("trace", {"file": "trace.json", "of": f"one scan, {name}, batches of {size}"})
    looks = float(np.mean([sum(chunk.size for chunk in cut(scan, contract.grid, size)) for scan in covered]))
    for each, other in ready.items():
        if isinstance(other, BackendContender):
            record.attempt(f"closing {each}", other.backend.close)
    ready.clear()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    told = {
        "scans": options.many,
        "with": name,
        "batch_size": size,
        "looks_a_scan": looks,
        "engine_scans_a_second": rate / looks,
    }
    how = {**found[name].infer, "--device": options.device}
    end_to_end(scans, how, options.workers, told, record)


def measure(options: argparse.Namespace, record: Record) -> None:
    """All parts, each as far as the time and the packages go."""
    scans = sorted(options.scans.glob("*.nii.gz"))
    if not scans:
        raise SystemExit(f"{options.scans}: no .nii.gz in it")
    index = gpu_index(options.device) or 0
    if options.device != "cpu":
        torch.cuda.set_device(index)
    make_folder(options.out / "models")
    record.add("machine", machine(options.device, index))
    peaks = record.attempt("peaks", partial(measured_peaks, torch.device(options.device)))
    if peaks:
        record.add("peaks", asdict(peaks))
    if options.device != "cpu" and (bus := record.attempt("bus", partial(measured_bus, torch.device(options.device)))):
        record.add("bus", bus)
    models = record.attempt("model files", lambda: make_models(options, options.out / "models"))
    if models is None:
        return
    contract = read_model(models["fp32"])[1]
    covered = in_memory([(scan,) for scan in scans[:MOST_SCANS]], contract)
    found = entries(options, models, record)
    ready = load_all(found, record)
    sweep(options, covered, models["fp32"], contract, ready, found, record)
    if options.device != "cpu":
        record.add("driver_after_the_sweep", nvidia_smi_values(index))
    record.attempt("trace and end to end", lambda: after_sweep(options, scans, covered, contract, ready, found, record))


def main(words: Sequence[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", type=Path, help="folder of NIfTI scans")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything; what does not fit is left out")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    parser.add_argument("--fp32", type=Path, help="the checkpoint's model file in FP32; default: made here")
    parser.add_argument("--fp16", type=Path, help="the same in FP16")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[16, 1, 64, 4], help="in the order to try them")
    parser.add_argument("--repeats", type=int, default=30, help="rounds")
    parser.add_argument("--compile-mode", default="reduce-overhead", choices=("reduce-overhead", "max-autotune"))
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="of the end-to-end runs")
    parser.add_argument("--many", type=int, default=100, help="scans of an end-to-end run, copied to be as many")
    options = parser.parse_args(words)
    make_folder(options.out)
    record = Record(options.out, options.minutes)
    try:
        measure(options, record)
    except ParotidSegError as error:
        raise SystemExit(str(error)) from error
    record.save()
    print((options.out / "gpu.md").read_text())


if __name__ == "__main__":
    main()
