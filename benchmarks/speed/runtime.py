"""Speed and memory of `parotid-seg infer`: against a plain torch loop, against its own engine alone, and as it grows.

    python benchmarks/speed/runtime.py SCANS --checkpoint best.pt --int8 M.onnx --out FILE.json
        [--parts race engines clinical flat start]

race      end to end on SCANS, alternating with the bare engine on the same slices already in memory; and the plain loop
engines   every engine that is installed, bare, on the same slices; and which of them `auto` takes
clinical  512 x 512 x 200 scans made by resampling real ones: seconds by stage, peak memory
flat      peak memory and open files on a few and on many small scans
start     from the command to the first mask of a small scan, against the least that could be done

Every part is one run on one machine, and its figures are ratios of times measured side by side.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import nibabel
import numpy as np
from scipy import ndimage
from watch import watch

from parotid_seg.files import write_text
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.engines.base import Backend, labels_of
from parotid_seg.runtime.engines.load import load_backend
from parotid_seg.runtime.engines.openvino import OpenVinoBackend
from parotid_seg.runtime.segmentation.segment import prepare, segment_volume
from parotid_seg.scan.chunks import Inputs, cut
from parotid_seg.scan.nifti import read_nifti
from parotid_seg.system import cpu_name, versions_of

STARTS = 5
REPEATS = 3
RACED = ("onnxruntime", "auto")
"""Engines of the part race: the one that is always there, and the one that is chosen."""
FEW = 10
"""Scans of the smaller run of the part flat."""
CLINICAL = (200, 512, 512)
"""Slices, rows, columns."""
BARE_START = """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
session.run(["labels"], dict(numpy.load(sys.argv[2])))
"""


def infer(scans: list[Path], out: Path, *options: str) -> list[str]:
    """The command."""
    return [sys.executable, "-m", "parotid_seg", "infer", *map(str, scans), "--out", str(out), *options]


def in_memory(backend: Backend, scans: list[Path]) -> list[Inputs]:
    """All scans as the model takes them."""
    found: list[Inputs] = []
    for scan in scans:
        covered = prepare(read_nifti(scan).volume, backend.contract).crop_to_grid()
        found += [chunk.inputs for chunk in cut(covered, backend.contract.grid, backend.batch_size)]
    return found


def seconds_of(work: Callable[[], object]) -> float:
    """How long it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def run_all(backend: Backend, inputs: list[Inputs]) -> None:
    """The engine and nothing else."""
    for each in inputs:
        labels_of(backend, each)


def race(scans: list[Path], checkpoint: Path, folder: Path) -> dict[str, Any]:
    """End to end, bare, and the plain loop, with each engine of `RACED`."""
    few = scans[:: max(1, len(scans) // 8)]
    (folder / "plain").mkdir()
    command = [sys.executable, str(Path(__file__).with_name("plain_loop.py")), str(checkpoint), str(folder / "plain")]
    plain = list(json.loads(watch([*command, *map(str, few)], memory=False).output.splitlines()[-1]).values())
    found: dict[str, Any] = {"scans": len(scans), "plain_loop_s_a_scan": plain, "engines": {}}
    for name in RACED:
        backend = load_backend(DEFAULT_MODEL, name)
        inputs = in_memory(backend, scans)
        run_all(backend, inputs[:5])
        ours, bare = [], []
        for repeat in range(REPEATS):
            out = folder / f"{name}{repeat}"
            ours.append(watch(infer(scans, out, "--backend", name), memory=False).seconds / len(scans))
            bare.append(seconds_of(partial(run_all, backend, inputs)) / len(scans))
        end_to_end, engine = statistics.median(ours), statistics.median(bare)
        found["engines"][name] = {
            "ran": vars(backend.ran),
            "end_to_end_s_a_scan": ours,
            "engine_alone_s_a_scan": bare,
            "times_the_plain_loop": float(np.mean(plain)) / end_to_end,
            "of_the_engine_alone": engine / end_to_end,
            "stages_s_a_scan": stages(folder / f"{name}0"),
        }
    return found


def stages(out: Path) -> dict[str, float]:
    """Mean seconds of each stage by summary.csv."""
    with (out / "summary.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["status"] == "done"]
    return {name: float(np.mean([float(row[f"{name}_s"]) for row in rows])) for name in ("read", "segment", "write")}


def engines(scans: list[Path], folder: Path, int8: Path | None) -> dict[str, Any]:
    """Every engine, alternating, on the same slices; and the one that `auto` takes without what it knew before."""
    model = folder / "model.onnx"
    shutil.copy(DEFAULT_MODEL, model)
    if int8:
        shutil.copy(int8, folder / "model.int8.onnx")
    candidates = engine_candidates(int8)
    loaded = {name: load() for name, load in candidates.items()}
    inputs = in_memory(next(iter(loaded.values())), scans[:6])
    times: dict[str, list[float]] = {name: [] for name in loaded}
    for backend in loaded.values():
        run_all(backend, inputs[:3])
    for _ in range(REPEATS + 2):
        for name, backend in loaded.items():
            times[name].append(seconds_of(partial(run_all, backend, inputs)))
    looks = sum(len(each["neighbours"]) for each in inputs)
    said = subprocess.run(
        infer(scans[:1], folder / "auto", "--model", str(model)),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache")},
    ).stdout.splitlines()
    rates = {name: looks / statistics.median(each) for name, each in times.items()}
    return {"looks_a_second": rates, "fastest": max(rates, key=lambda name: rates[name]), "auto": said[:2]}


def clinical(scans: list[Path], folder: Path, count: int = 4) -> dict[str, Any]:
    """Large scans."""
    (folder / "large").mkdir()
    for scan in scans[:count]:
        image = nibabel.load(scan)
        stored = np.asarray(image.dataobj, np.float32)
        shape = CLINICAL[::-1]
        zoom = np.array(shape) / stored.shape
        fine = np.round(ndimage.zoom(stored, zoom, order=1)).astype(np.int16)
        affine = image.affine @ np.diag([*(np.array(stored.shape) / fine.shape), 1.0])
        nibabel.save(nibabel.Nifti1Image(fine, affine), folder / "large" / scan.name)
    seen = watch(infer([folder / "large"], folder / "large-out"))
    found = stages(folder / "large-out")
    total = sum(found.values())
    return {
        "scans": count,
        "size": CLINICAL,
        "seconds_a_scan": seen.seconds / count,
        "stages_s_a_scan": found,
        "share_of_stages": {name: value / total for name, value in found.items()},
        "peak_mib": seen.peak_mib,
    }


def flat(scans: list[Path], folder: Path, most: int) -> dict[str, Any]:
    """Memory and files."""
    small = head_of(scans[0])
    stored = np.asarray(small.dataobj).copy()
    found = {}
    for count in (FEW, most):
        (folder / f"small{count}").mkdir()
        for index in range(count):
            stored.flat[0] = -1000 + index
            copy = nibabel.Nifti1Image(stored, small.affine, small.header)
            nibabel.save(copy, folder / f"small{count}" / f"s{index}.nii.gz")
        options = ("--no-pictures", "--quiet")
        command = infer([folder / f"small{count}"], folder / f"small-out{count}", *options)
        seen = watch(command)
        found[count] = {"peak_mib": seen.peak_mib, "peak_files": seen.peak_files, "seconds": seen.seconds}
    return {"scans": found, "memory_ratio": found[most]["peak_mib"] / found[FEW]["peak_mib"]}


def head_of(scan: Path) -> nibabel.Nifti1Image:
    """The slices that show the glands."""
    image = nibabel.load(scan)
    found = segment_volume(load_backend(DEFAULT_MODEL, "onnxruntime"), read_nifti(scan).volume)
    stored = read_nifti(scan).volume.orientation.to_storage(found.mask)
    shown = np.flatnonzero(stored.any(axis=(0, 1)))
    return image.slicer[:, :, max(0, shown[0] - 2) : shown[-1] + 3]


def start(scans: list[Path], folder: Path) -> dict[str, Any]:
    """To the first mask."""
    small = folder / "start.nii.gz"
    nibabel.save(head_of(scans[0]), small)
    backend = load_backend(DEFAULT_MODEL, "onnxruntime")
    arrays: dict[str, Any] = dict(in_memory(backend, [small])[0])
    np.savez(folder / "start.npz", **arrays)
    ours, bare = [], []
    for repeat in range(STARTS):
        out = folder / f"start{repeat}"
        ours.append(watch(infer([small], out, "--quiet"), first=out / "start.nii.gz", memory=False).first_s)
        command = [sys.executable, "-c", BARE_START, str(DEFAULT_MODEL), str(folder / "start.npz")]
        bare.append(watch(command, memory=False).seconds)
    first, least = statistics.median(filter(None, ours)), statistics.median(bare)
    return {"first_mask_s": first, "bare_s": least, "ratio": first / least, "all": {"ours": ours, "bare": bare}}


def engine_candidates(int8: Path | None) -> dict[str, Callable[[], Backend]]:
    """Engines to compare."""
    found: dict[str, Callable[[], Backend]] = {
        "onnxruntime fp32": lambda: load_backend(DEFAULT_MODEL, "onnxruntime"),
        **{f"openvino {each}": partial(OpenVinoBackend, DEFAULT_MODEL, precision=each) for each in ("fp32", "bf16")},
    }
    if int8:
        found["onnxruntime int8"] = lambda: load_backend(int8, "onnxruntime")
    return found


def main() -> None:
    """Measure, print and write."""
    parts = ("race", "engines", "clinical", "flat", "start")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", type=Path, help="folder of NIfTI scans, imagesTs of a data set")
    parser.add_argument("--checkpoint", type=Path, required=True, help="of the packaged model, for the plain loop")
    parser.add_argument("--parts", nargs="*", choices=parts, default=parts)
    parser.add_argument("--int8", type=Path, help="the packaged model in INT8 (parotid-seg export --precision int8)")
    parser.add_argument("--many", type=int, default=1000, help="scans of the part flat")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    scans = sorted(arguments.scans.glob("*.nii.gz"))
    found: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for part in arguments.parts:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            found[part] = {
                "race": lambda folder=folder: race(scans, arguments.checkpoint, folder),
                "engines": lambda folder=folder: engines(scans, folder, arguments.int8),
                "clinical": lambda folder=folder: clinical(scans, folder),
                "flat": lambda folder=folder: flat(scans, folder, arguments.many),
                "start": lambda folder=folder: start(scans, folder),
            }[part]()
        print(part, json.dumps(found[part], indent=1), flush=True)
    packages = ("parotid-seg", "onnxruntime", "openvino", "torch", "numpy", "scipy", "nibabel", "isal")
    found["machine"] = {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": cpu_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions_of(packages),
    }
    write_text(json.dumps(found, indent=1) + "\n", arguments.out)


if __name__ == "__main__":
    main()
