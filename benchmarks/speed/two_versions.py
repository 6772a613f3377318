"""`parotid-seg infer` of two checkouts in turns: is a change slower?

    python benchmarks/speed/two_versions.py OLD NEW SCANS --turns 9 --out FILE.json

OLD and NEW are checkouts (git worktree add OLD COMMIT). Each turn runs both on the same scans, each into a new folder;
turns begin with OLD and NEW alternately. Both use the environment that runs this script.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from resources import machine_and_versions

from parotid_seg.files import write_text


def seconds_of(checkout: Path, scans: Path, backend: str) -> float:
    """How long the command takes, from its start to its end."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "parotid_seg", "infer", str(scans), "--out", f"{folder}/masks"]
        begun = time.perf_counter()
        subprocess.run(
            [*command, "--backend", backend, "--quiet"],
            check=True,
            cwd=checkout,
            env={**environment, "PYTHONPATH": str(checkout)},
        )
        return time.perf_counter() - begun


def commit_of(checkout: Path) -> str:
    """The commit that is checked out; empty outside of git."""
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, metavar="OLD")
    parser.add_argument("new", type=Path, metavar="NEW")
    parser.add_argument("scans", type=Path, metavar="SCANS", help="folder of scans, or one scan")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    old, new = arguments.old.resolve(), arguments.new.resolve()
    seconds: dict[str, list[float]] = {"old": [], "new": []}
    for turn in range(arguments.turns):
        for name in ("old", "new") if turn % 2 == 0 else ("new", "old"):
            checkout = old if name == "old" else new
            seconds[name].append(round(seconds_of(checkout, arguments.scans.resolve(), arguments.backend), 2))
        print(f"turn {turn + 1}: old {seconds['old'][-1]} s, new {seconds['new'][-1]} s", flush=True)
    ratios = sorted(round(after / before, 3) for before, after in zip(seconds["old"], seconds["new"], strict=True))
    print(f"new over old, turn by turn: median {statistics.median(ratios)}, from {ratios[0]} to {ratios[-1]}")
    found = {
        "commits": {"old": commit_of(old), "new": commit_of(new)},
        "backend": arguments.backend,
        "seconds": seconds,
        "ratios": ratios,
        **machine_and_versions(),
    }
    write_text(json.dumps(found, indent=1) + "\n", arguments.out)


if __name__ == "__main__":
    main()
