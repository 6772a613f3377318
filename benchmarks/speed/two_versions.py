"""`parotid-seg infer` of two checkouts in turns: is a change slower, or does it need more memory?

    python benchmarks/speed/two_versions.py OLD NEW SCANS --turns 9 [--measure cpu] --out FILE.json

OLD and NEW are checkouts (git worktree add OLD COMMIT). Each turn runs both on the same scans, each into a new folder;
turns begin with OLD and NEW alternately. Both use the environment that runs this script. `--measure seconds` is from
start to end, `cpu` the CPU time of all processes together, which other work on the machine changes less, and `memory`
their peak memory together (Linux).
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from resources import machine_and_versions
from watch import watch

from parotid_seg.files import write_text

MEASURES = {"seconds": ("seconds", "s"), "cpu": ("cpu_seconds", "s"), "memory": ("peak_mib", "MiB")}
"""Names and units of what is measured."""


def measured(checkout: Path, scans: Path, backend: str, measure: str) -> float:
    """What the command takes, see `MEASURES`."""
    environment = ["env", "-C", str(checkout), f"PYTHONPATH={checkout}"]
    with tempfile.TemporaryDirectory() as folder:
        options = ["--out", f"{folder}/masks", "--backend", backend, "--quiet"]
        command = [sys.executable, "-m", "parotid_seg", "infer", str(scans), *options]
        before = _cpu_seconds()
        seen = watch([*environment, *command], memory=measure == "memory")
    found = {"seconds": seen.seconds, "cpu": _cpu_seconds() - before, "memory": seen.peak_mib}[measure]
    return round(found) if measure == "memory" else round(found, 2)


def _cpu_seconds() -> float:
    """CPU time of all processes that have been waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


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
    parser.add_argument("--measure", choices=MEASURES, default="seconds")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    old, new = arguments.old.resolve(), arguments.new.resolve()
    scans, backend, measure = arguments.scans.resolve(), arguments.backend, arguments.measure
    what, unit = MEASURES[measure]
    found: dict[str, list[float]] = {"old": [], "new": []}
    for turn in range(arguments.turns):
        for name in ("old", "new") if turn % 2 == 0 else ("new", "old"):
            checkout = old if name == "old" else new
            found[name].append(measured(checkout, scans, backend, measure))
        print(f"turn {turn + 1}: old {found['old'][-1]} {unit}, new {found['new'][-1]} {unit}", flush=True)
    ratios = sorted(round(after / before, 3) for before, after in zip(found["old"], found["new"], strict=True))
    print(f"new over old, turn by turn: median {statistics.median(ratios)}, from {ratios[0]} to {ratios[-1]}")
    content = {
        "commits": {"old": commit_of(old), "new": commit_of(new)},
        "scans": len(list(scans.glob("*.nii.gz"))) if scans.is_dir() else 1,
        "backend": backend,
        what: found,
        "ratios": ratios,
        **machine_and_versions(),
    }
    write_text(json.dumps(content, indent=1) + "\n", arguments.out)


if __name__ == "__main__":
    main()
