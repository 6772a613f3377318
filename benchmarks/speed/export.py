"""Exports of one checkpoint in every precision: the gate's table, sizes, time and memory of each step.

    python benchmarks/speed/export.py runs/compact/best.pt --verify DIR --out FILE.json

Each export runs in a process of its own, so that its peak memory is its own. With --engine tensorrt-rtx (no GPU needed)
or tensorrt, FP32 and FP16 engines are built, too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from parotid_seg.files import write_text
from parotid_seg.runtime.engines.engine_file import sidecar_path
from parotid_seg.system import versions_of


def one(checkpoint: Path, out: Path, verify: Path, precision: str, engine: str) -> None:
    """Export, and leave what it took in `out` with the ending .took.json."""
    from parotid_seg.errors import ModelError
    from parotid_seg.export.export_options import ExportOptions
    from parotid_seg.export.verified_export import export

    started = time.perf_counter()
    try:
        export(checkpoint, out, ExportOptions(precision, verify=verify, engine=engine), report=print)
    except ModelError as error:
        print(error)
    took = {
        "total_seconds": round(time.perf_counter() - started, 1),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    write_text(json.dumps(took), out.with_suffix(".took.json"))


def main() -> None:
    """Export in every precision and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--verify", type=Path, required=True, help="scans for the gate, with contours if there are")
    parser.add_argument("--engine", default="none", help="none, tensorrt or tensorrt-rtx")
    parser.add_argument("--precisions", nargs="*", default=["fp32", "fp16", "int8", "auto"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs=2, metavar=("PRECISION", "MODEL.onnx"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        precision, model = arguments.only
        engine = arguments.engine if precision in ("fp32", "fp16") else "none"
        one(arguments.checkpoint, Path(model), arguments.verify, precision, engine)
        return
    names = "parotid-seg", "torch", "onnx", "onnxruntime"
    found: dict[str, Any] = {"versions": versions_of(names), "cores": os.cpu_count()}
    found |= {"python": platform.python_version(), "date": time.strftime("%F"), "exports": {}}
    with tempfile.TemporaryDirectory() as folder:
        for precision in arguments.precisions:
            model = Path(folder) / f"{precision}.onnx"
            words = [sys.executable, __file__, str(arguments.checkpoint), "--verify", str(arguments.verify)]
            words += ["--engine", arguments.engine, "--out", str(arguments.out), "--only", precision, str(model)]
            subprocess.run(words, check=True)
            record = json.loads(model.with_suffix(".parity.json").read_text())
            entry = {**json.loads(model.with_suffix(".took.json").read_text()), **record}
            entry["model_bytes"] = model.stat().st_size if model.exists() else None
            if sidecar_path(model.with_suffix(".engine")).exists():
                entry["engine_bytes"] = model.with_suffix(".engine").stat().st_size
            found["exports"][precision] = entry
    write_text(json.dumps(found, indent=1) + "\n", arguments.out)


if __name__ == "__main__":
    main()
