"""Seconds of a scan's chunks in onnxruntime-web, the WebAssembly engine of browsers, on one thread, in node.

    npm install --prefix FOLDER onnxruntime-web
    python benchmarks/speed/browser.py SCAN --model FILE... --modules FOLDER/node_modules --out FILE.json

The chunks are those that `infer` gives to onnxruntime here, with `--search auto` and `--search full`; models and
searches take turns. Labels are compared with those computed here. Without --modules chunks are only recorded.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import numpy as np
from resources import machine_and_versions

from parotid_seg.files import write_text
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.engines.base import Backend, Pending
from parotid_seg.runtime.engines.load import load_backend
from parotid_seg.runtime.pipeline.sources import read_scan
from parotid_seg.runtime.segmentation.segment import segment_volume
from parotid_seg.runtime.segmentation.segmentation_options import Search, SegmentationOptions
from parotid_seg.scan.chunks import Inputs

SEARCHES: tuple[Search, ...] = ("auto", "full")


class Recorder(Backend):
    """A backend whose chunks and labels are written to a file.

    Args:
        backend: computes the labels.
        content: receives the arrays.

    Attributes:
        chunks: type, shape and place of every array.
    """

    def __init__(self, backend: Backend, content: IO[bytes]) -> None:
        self._backend, self._content = backend, content
        self.contract, self.model_sha256, self.ran = backend.contract, backend.model_sha256, backend.ran
        self.chunks: list[dict[str, Any]] = []

    def start(self, inputs: Inputs) -> Pending:
        """Compute a chunk, and write it."""
        done = self._backend.start(inputs)
        written = {name: self._written(np.asarray(each)) for name, each in inputs.items()}
        self.chunks.append({"inputs": written, "labels": self._written(done.result())})
        return done

    def _written(self, array: np.ndarray[Any, Any]) -> dict[str, Any]:
        self._content.write(bytes(-self._content.tell() % 8))
        place = {"type": str(array.dtype), "shape": array.shape, "offset": self._content.tell()}
        self._content.write(np.ascontiguousarray(array).tobytes())
        return place


def recorded(scan: Path, models: list[Path], folder: Path, turns: int) -> Path:
    """Record the chunks of a scan with every model and search."""
    runs = []
    volume = read_scan((scan,)).volume
    with (folder / "chunks.bin").open("wb") as content:
        for number, model in enumerate(models):
            for search in SEARCHES:
                recorder = Recorder(load_backend(model, "onnxruntime", "cpu", allow_unverified=True), content)
                segment_volume(recorder, volume, SegmentationOptions(search=search))
                runs.append({"model": str(number), "search": search, "chunks": recorder.chunks})
    path = folder / "chunks.json"
    named = {str(number): str(model.resolve()) for number, model in enumerate(models)}
    path.write_text(json.dumps({"content": "chunks.bin", "models": named, "runs": runs, "turns": turns}))
    return path


def measured(chunks: Path, modules: Path) -> list[dict[str, Any]]:
    """Run recorded chunks in node: what browser.mjs prints."""
    command = ["node", str(Path(__file__).with_suffix(".mjs")), str(modules), str(chunks)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def main() -> None:
    """Record, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=Path)
    parser.add_argument("--model", type=Path, nargs="+", default=[DEFAULT_MODEL])
    parser.add_argument("--modules", type=Path, help="folder node_modules with onnxruntime-web")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        chunks = recorded(arguments.scan, arguments.model, Path(folder), arguments.turns)
        runs = json.loads(chunks.read_text())["runs"]
        results = measured(chunks, arguments.modules) if arguments.modules else []
    found: dict[str, Any] = {"scan": arguments.scan.name, **machine_and_versions()}
    if arguments.modules:
        package = json.loads((arguments.modules / "onnxruntime-web" / "package.json").read_text())
        found["onnxruntime-web"] = package["version"]
    found["runs"] = []
    for run in runs:
        mine = [each for each in results if (each["model"], each["search"]) == (run["model"], run["search"])]
        found["runs"].append(
            {
                "model": arguments.model[int(run["model"])].name,
                "search": run["search"],
                "samples": sum(each["inputs"]["neighbours"]["shape"][0] for each in run["chunks"]),
                "seconds": [round(each["seconds"], 2) for each in mine],
                "median_s": round(statistics.median(each["seconds"] for each in mine), 2) if mine else None,
                "voxels_differing": max((each["differing"] for each in mine), default=None),
            }
        )
        print(json.dumps(found["runs"][-1]))
    write_text(json.dumps(found, indent=1), arguments.out)


if __name__ == "__main__":
    main()
