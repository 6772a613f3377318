"""The first question to a GPU: does onnxruntime run the model there, with the labels that it gives on the CPU?

Asked of every graph that `infer` may choose: the model file, FP16, and both with fused operators. The CPU's labels are
those of the model file. Each chunk's labels are compared when the chunk is the first of its shape (computed plainly),
the second (a CUDA graph is captured) and a later one (the graph is replayed). Chunks of a shape differ, so that a graph
that were replayed on old inputs would show. Each graph has a process of its own, as one that fails may end all work of
its process. OUT/probe.jsonl has a line for each graph; a graph whose line has no error is not probed again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpu.contenders import load_exactly
from gpu.inputs import GRAPHS, graph_file, make_scans
from gpu.isolated import isolated
from gpu.table import PHASES
from gpu.tried import NOTHING_RAN
from parotid_seg.bench.selection import in_memory, rotation
from parotid_seg.files import make_folder, write_text
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.engines.base import Backend, Times, labels_of
from parotid_seg.scan.chunks import Inputs
from parotid_seg.scan.volume import Mask

CHUNKS = 4
"""Different chunks of a size: those with the largest structures."""
TIMED, WARM = 30, 5
"""Timed chunks, and those before them."""


Expected = dict[int, list[tuple[Inputs, Mask]]]
"""By samples of a chunk: chunks, and their labels by the model file on the CPU."""


def expected_labels(model: Path, scans: Sequence[Path], sizes: Sequence[int]) -> Expected:
    """Chunks with large structures, and their labels; none of sizes for which the scans are too short."""
    cpu = load_exactly(model, "onnxruntime", "cpu")
    covered = in_memory([(scan,) for scan in scans], cpu.contract)
    found: Expected = {}
    for size in sizes:
        labelled = [(chunk, labels_of(cpu, chunk)) for chunk in rotation(covered, cpu.contract, size).chunks]
        if labelled:
            found[size] = sorted(labelled, key=lambda each: -np.count_nonzero(each[1]))[:CHUNKS]
    cpu.close()
    return found


def probe(name: str, model: Path, device: str, expected: Expected) -> dict[str, Any]:
    """What a graph does on a device, against the CPU: seconds to make and load it, changed voxels, times in ms by
    size."""
    started = time.monotonic()
    file = graph_file(name, model)
    made = time.monotonic()
    gpu = load_exactly(file, "onnxruntime", device)
    found: dict[str, Any] = {"ran": str(gpu.ran), "made_s": round(made - started, 2)}
    found |= {"load_s": round(time.monotonic() - made, 2), "sizes": {}}
    for size, labelled in expected.items():
        chunks, wanted = zip(*labelled, strict=True)
        found["sizes"][str(size)] = {**compared(gpu, chunks, wanted), "ms": times_ms(gpu, chunks)}
    gpu.close()
    return found


def compared(gpu: Backend, chunks: Sequence[Inputs], wanted: Sequence[Mask]) -> dict[str, dict[str, int]]:
    """Voxels with another label than is wanted, and voxels of structures that are wanted, by phase."""
    found = {phase: {"changed": 0, "of": 0} for phase in PHASES}
    for turn, index in enumerate((0, 1 % len(chunks), *range(len(chunks)))):
        counts = found[PHASES[min(turn, 2)]]
        counts["changed"] += int(np.count_nonzero(labels_of(gpu, chunks[index]) != wanted[index]))
        counts["of"] += int(np.count_nonzero(wanted[index]))
    return found


def times_ms(backend: Backend, chunks: Sequence[Inputs]) -> dict[str, float]:
    """Median milliseconds of the copy to the device, of computing, and of the copy back."""
    times = [backend.timed(chunks[turn % len(chunks)])[1] for turn in range(WARM + TIMED)][WARM:]
    return {name: round(1000 * float(np.median([getattr(each, name) for each in times])), 3) for name in Times._fields}


def main(words: Sequence[str] | None = None) -> None:
    """Probe all graphs; status 1 if one has an error, `NOTHING_RAN` if all have."""
    parser = argparse.ArgumentParser(
        prog="gpu probe", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for scans")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    parser.add_argument("--scans", type=Path, nargs="+", help="NIfTI scans; default: made from the example")
    parser.add_argument("--fp32", type=Path, default=DEFAULT_MODEL)
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 64], help="samples of a chunk")
    parser.add_argument("--seconds", type=float, default=30.0, help="for a graph")
    options = parser.parse_args(words)
    make_folder(options.out)
    make_folder(options.work)
    lines = {line["model"]: line for line in read_probe(options.out) if "error" not in line}
    missing = [name for name in GRAPHS if name not in lines]
    if not missing:
        return
    scans = options.scans or make_scans(options.work / "scans")
    expected = expected_labels(options.fp32, scans, options.sizes)
    for name in missing:
        given = (name, options.fp32, options.device, expected)
        try:
            if options.device == "cpu" and name.endswith("fused"):
                found = {"ran": "not on a CPU, which lacks its operators"}
            else:
                found = isolated(probe, *given, most_s=options.seconds)
        except (RuntimeError, TimeoutError) as error:  # the other graphs are probed, too
            found = {"error": str(error)}
        lines[name] = {"model": name, **found}
        print(json.dumps(lines[name]), flush=True)
        write_text("".join(json.dumps(line) + "\n" for line in lines.values()), options.out / "probe.jsonl")
    failed = ["error" in line for line in lines.values()]
    if any(failed):
        raise SystemExit(NOTHING_RAN if all(failed) else 1)


def read_probe(out: Path) -> list[dict[str, Any]]:
    """The lines of an earlier probe; none if there was none."""
    try:
        return [json.loads(line) for line in (out / "probe.jsonl").read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return []
