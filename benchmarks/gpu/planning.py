"""How long a graph takes when the number of samples changes: cuDNN then plans the convolutions anew.

Of each graph, and each way in which onnxruntime has cuDNN search (`cudnn_conv_algo_search`): chunks of several numbers
of samples in turn, each computed plainly the first time, captured the second, and replayed from then on.
OUT/planning.jsonl has a line for each.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpu.bench import with_provider
from gpu.contenders import load_exactly
from gpu.inputs import graph_file
from parotid_seg.files import make_folder, write_text
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.engines.base import labels_of
from parotid_seg.runtime.engines.engine_benchmark import usual_chunk
from parotid_seg.runtime.engines.load import gpu_index

TRIED = (
    ("fp16 fused", "HEURISTIC"),
    ("fp16 fused", "DEFAULT"),
    ("fp32 fused", "HEURISTIC"),
    ("fp32 fused", "DEFAULT"),
    ("fp16 fused", "EXHAUSTIVE"),
)
"""Graphs and searches; parotid-seg uses HEURISTIC."""
ORDER = (64, 48, 64, 20, 48, 64, 20)
"""Samples of the chunks."""
TIMED = 30
"""Replayed chunks of the first number of samples, for the time of computing."""


def planning(graph: str, search: str, model: Path, device: str, order: Sequence[int]) -> dict[str, Any]:
    """What a graph takes with a search: ms of each chunk in turn, with its samples; and ms of computing alone."""
    started = time.monotonic()
    if device == "cpu":
        backend = load_exactly(model, "onnxruntime", device)
    else:
        provider = {"cudnn_conv_algo_search": search}
        backend = with_provider(graph_file(graph, model), provider, gpu_index(device) or 0).backend
    backend.batch_size = 1  # else smaller chunks would be padded
    load_s = time.monotonic() - started
    chunks = {samples: usual_chunk(backend.contract, samples) for samples in set(order)}
    in_turn = []
    for samples in order:
        started = time.perf_counter()
        labels_of(backend, chunks[samples])
        in_turn.append((samples, round(1000 * (time.perf_counter() - started), 1)))
    alone = [backend.timed(chunks[order[0]])[1].compute for _ in range(TIMED)]
    backend.close()
    computing_ms = round(1000 * float(np.median(alone)), 3)
    return {"load_s": round(load_s, 2), "samples_and_ms": in_turn, "computing_ms": computing_ms}


def main(words: Sequence[str] | None = None) -> None:
    """Measure all; status 1 if one fails."""
    parser = argparse.ArgumentParser(
        prog="gpu planning", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    parser.add_argument("--fp32", type=Path, default=DEFAULT_MODEL)
    parser.add_argument("--samples", type=int, nargs="+", default=ORDER, help="of the chunks, in turn")
    options = parser.parse_args(words)
    make_folder(options.out)
    lines: list[str] = []
    for graph, search in TRIED:
        try:
            found = planning(graph, search, options.fp32, options.device, options.samples)
        except Exception as error:  # the others are measured, too
            found = {"error": str(error)[:300]}
        lines.append(json.dumps({"graph": graph, "search": search, **found}))
        print(lines[-1], flush=True)
        write_text("\n".join(lines) + "\n", options.out / "planning.jsonl")
    if any("error" in json.loads(line) for line in lines):
        raise SystemExit(1)
