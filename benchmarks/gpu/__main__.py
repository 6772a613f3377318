"""python benchmarks/gpu COMMAND ...: see README.md in this folder, or --help of each command."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

COMMANDS = {
    "all": "gpu.steps",
    "bench": "gpu.bench",
    "bundle": "gpu.bundle",
    "kernels": "gpu.kernels",
    "planning": "gpu.planning",
    "probe": "gpu.probe",
    "setup": "gpu.install",
}

if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    sys.path[0:1] = [str(here.parent), str(here.parents[1])]  # this package, and parotid_seg of the same checkout
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        raise SystemExit(f"usage: python benchmarks/gpu {{{','.join(COMMANDS)}}} ... (see benchmarks/gpu/README.md)")
    importlib.import_module(COMMANDS[sys.argv[1]]).main(sys.argv[2:])
