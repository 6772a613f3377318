"""Peak memory of `parotid-seg infer` on one scan and on a folder of many: it must not grow with their number."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import nibabel
import numpy as np

MEASURE = """
import json, resource, subprocess, sys
done = subprocess.run([sys.executable, "-m", "parotid_seg", "infer", sys.argv[1], "--out", sys.argv[2], "--quiet"])
print(json.dumps({"status": done.returncode, "peak_kib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss}))
"""


def write_copies(scan: Path, folder: Path, count: int) -> None:
    """Copies of a scan that differ in one voxel, so that each is work of its own."""
    folder.mkdir()
    image = nibabel.load(scan)
    data = np.asarray(image.dataobj).copy()
    for index in range(count):
        data.flat[0] = -1000 + index
        nibabel.save(nibabel.Nifti1Image(data, image.affine, image.header), folder / f"copy{index}.nii.gz")


def peak_mib(scans: Path, out: Path) -> float:
    """Largest resident memory of one `infer` process over the scans, in MiB."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(scans), str(out)], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    if found["status"]:
        raise SystemExit(f"infer ended with status {found['status']}: {done.stderr}")
    return float(found["peak_kib"]) / 1024


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scan", type=Path, required=True)
    parser.add_argument("--copies", type=int, default=40)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_copies(arguments.scan, folder / "one", 1)
        write_copies(arguments.scan, folder / "many", arguments.copies)
        one, many = (peak_mib(folder / name, folder / f"{name}-out") for name in ("one", "many"))
    figures = {
        "date": datetime.now(UTC).date().isoformat(),
        "scan": arguments.scan.name,
        "copies": arguments.copies,
        "peak_mib_one": round(one, 1),
        "peak_mib_many": round(many, 1),
        "ratio": round(many / one, 3),
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": {name: metadata.version(name) for name in ("parotid-seg", "onnxruntime", "numpy", "nibabel")},
    }
    text = json.dumps(figures, indent=1)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(text + "\n")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
