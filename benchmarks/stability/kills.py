"""SIGKILL at random moments, to the main process or a worker: after a rerun every mask must be there, whole and equal.

    python benchmarks/stability/kills.py SCAN --kills 200 --scans 24 --out FILE.json

Copies of a scan that differ a little are segmented undisturbed once. Then the same run is killed again and again and
started anew until it ends by itself; the folder must hold byte for byte what the undisturbed one does, and nothing else
(but for times: journal, summary and run.json are compared by what they say of masks).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import nibabel
import numpy as np
from watch import family

from parotid_seg.files import write_text


def write_scans(scan: Path, folder: Path, count: int) -> None:
    """Copies that differ in brightness, cut to the middle third of the slices to be quick."""
    folder.mkdir()
    image = nibabel.load(scan)
    third = image.shape[2] // 3
    head = image.slicer[:, :, third : 2 * third]
    stored = np.asarray(head.dataobj)
    for index in range(count):
        nibabel.save(nibabel.Nifti1Image(stored + np.int16(index), head.affine), folder / f"s{index}.nii.gz")


def start(scans: Path, out: Path) -> subprocess.Popen[bytes]:
    """The command, in a group of its own."""
    command = [sys.executable, "-m", "parotid_seg", "infer", str(scans), "--out", str(out), "--quiet"]
    return subprocess.Popen(
        [*command, "--backend", "onnxruntime"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def differences(out: Path, expected: Path) -> list[str]:
    """What is not as in the undisturbed folder."""
    found = []
    names = [{str(path.relative_to(each)) for path in each.rglob("*")} for each in (out, expected)]
    found += [f"{name}: only in one of the folders" for name in names[0] ^ names[1]]
    found += [
        f"{name}: other bytes"
        for name in names[0] & names[1]
        if name.endswith((".nii.gz", ".png")) and (out / name).read_bytes() != (expected / name).read_bytes()
    ]
    with (out / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    found += [f"{row['case']}: {row['status']}, {row['reason']}" for row in rows if row["status"] == "failed"]
    twice = [case for case, count in Counter(row["case"] for row in rows).items() if count > 1]
    return found + [f"{case}: twice in summary.csv" for case in twice]


def main() -> None:
    """Kill, rerun, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=Path)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--scans", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    rng, rounds = random.Random(arguments.seed), 0
    killed: Counter[str] = Counter()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_scans(arguments.scan, folder / "scans", arguments.scans)
        begun = time.monotonic()
        if start(folder / "scans", folder / "expected").wait():
            raise SystemExit("the undisturbed run failed")
        usual_s = time.monotonic() - begun
        while killed.total() < arguments.kills:
            rounds += 1
            out = folder / f"round{rounds}"
            while True:
                process = start(folder / "scans", out)
                while process.poll() is None and killed.total() < arguments.kills:
                    time.sleep(rng.uniform(0, usual_s / 2))
                    main_process = rng.random() < 0.5
                    victims = [process.pid] if main_process else family(process.pid)[1:]
                    if process.poll() is None and victims:
                        os.kill(rng.choice(victims), signal.SIGKILL)
                        killed["main process" if main_process else "worker"] += 1
                if process.wait() == 0:
                    break
            wrong += [f"round {rounds}: {each}" for each in differences(out, folder / "expected")]
            print(f"{killed.total()} kills, {rounds} rounds, {len(wrong)} differences", flush=True)
    result = {"kills": dict(killed), "rounds": rounds, "scans_a_round": arguments.scans, "differences": wrong}
    write_text(json.dumps(result, indent=1) + "\n", arguments.out)
    print(json.dumps(result, indent=1))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
