"""Whether many runs in one process hold on to anything: descriptors, threads, child processes, memory.

    python benchmarks/stability/many_runs.py --runs 200 --out FILE.json         # readers, writers, workers; no model
    python benchmarks/stability/many_runs.py --runs 20 --model --out FILE.json  # with the packaged model

Each run does two scans, one of which cannot be read, into a folder of its own, with two worker processes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import nibabel
import numpy as np
from resources import held, write_counts

from parotid_seg.models import DEFAULT_MODEL, example_folder
from parotid_seg.runtime.engines.base import Backend, Done, ExecutionInfo
from parotid_seg.runtime.engines.load import load_backend
from parotid_seg.runtime.pipeline.infer_options import InferOptions
from parotid_seg.runtime.pipeline.run import infer
from parotid_seg.scan.chunks import Inputs

EVERY = 20
"""Counts are taken after so many runs."""
WORKERS = 2


class Fixed(Backend):
    """Stands in for a model: finds two glands at fixed places."""

    def __init__(self, real: Backend) -> None:
        self.contract, self.model_sha256 = real.contract, real.model_sha256
        self.ran = ExecutionInfo("stand-in", "CPU", "none")

    def start(self, inputs: Inputs) -> Done:
        """Two glands at fixed places."""
        labels = np.zeros([len(inputs[name]) for name in ("slices_back", "rows_back", "columns_back")], np.uint8)
        rows, columns = labels.shape[1:]
        labels[:, rows // 2 : 2 * rows // 3, columns // 5 : columns // 3] = 2
        labels[:, rows // 2 : 2 * rows // 3, 2 * columns // 3 : 4 * columns // 5] = 1
        return Done(labels)


def make_scans(folder: Path, real: bool) -> list[Path]:
    """A small CT of air, fat, muscle and bone or, for the model, the example's; and a file that is none."""
    if real:
        image = nibabel.load(next((example_folder() / "imagesTr").glob("*.nii.gz"))).slicer[:, :, 25:55]  # the glands
    else:
        random = np.random.default_rng(0)
        voxels = np.full((44, 40, 24), -1000, np.int16)
        voxels[2:42, 2:38] = random.normal(-105, 15, (40, 36, 24))
        voxels[5:39, 5:35] = random.normal(40, 15, (34, 30, 24))
        voxels[18:26, 28:34] = random.uniform(200, 1400, (8, 6, 24))
        image = nibabel.Nifti1Image(voxels, np.diag([-5.0, -5.0, 5.0, 1.0]))
    nibabel.save(image, folder / "head.nii.gz")
    (folder / "none.nii.gz").write_bytes(b"no scan")
    return [folder / "head.nii.gz", folder / "none.nii.gz"]


def run(count: int, backend: Backend, folder: Path) -> list[dict[str, float]]:
    """Do so many runs; the counts."""
    scans = make_scans(folder, not isinstance(backend, Fixed))
    options = InferOptions(workers=WORKERS)
    counts, begun = [], time.perf_counter()
    for number in range(1, count + 1):
        summary = infer(scans, folder / f"out{number}", lambda: backend, options)
        if (summary.done, summary.failed) != (1, 1):
            raise SystemExit(f"run {number}: {summary.done} done and {summary.failed} failed, expected 1 and 1")
        if number == 1 or number % EVERY == 0 or number == count:
            counts.append({"runs": number, "seconds": round(time.perf_counter() - begun, 1), **held()})
            print(counts[-1], flush=True)
    return counts


def main() -> None:
    """Run, write, and fail if anything grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--model", action="store_true", help="segment with the packaged model")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    real = load_backend(DEFAULT_MODEL, "onnxruntime")
    with tempfile.TemporaryDirectory() as folder:
        counts = run(options.runs, real if options.model else Fixed(real), Path(folder))
    write_counts({"runs": options.runs, "model": options.model}, counts, options.out)


if __name__ == "__main__":
    main()
