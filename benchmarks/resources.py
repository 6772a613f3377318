"""What a process holds of the system, for scripts that look whether it grows; and what a result was measured with."""

from __future__ import annotations

import json
import os
import platform
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from parotid_seg.files import write_text
from parotid_seg.system import available_cores, cpu_name, versions_of


def held() -> dict[str, float]:
    """Open descriptors, threads, child processes and MiB of memory of this process."""
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "threads": threading.active_count(),
        "children": len(children),
        "mib": round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1),
    }


def write_counts(record: dict[str, Any], counts: Sequence[dict[str, float]], out: Path) -> None:
    """Write a record with counts of `held`, the first and the last of the process among them; exit if any has grown."""
    write_text(json.dumps({**record, "counts": counts, **machine_and_versions()}, indent=1) + "\n", out)
    grown = [name for name in ("descriptors", "threads", "children") if counts[-1][name] > counts[0][name]]
    if grown:
        sys.exit(f"grew: {', '.join(grown)}")


def machine_and_versions() -> dict[str, Any]:
    """Processor, cores, and versions of Python and of the packages that segment, for the record of a result."""
    return {
        "processor": cpu_name(),
        "cores": available_cores(),
        "python": platform.python_version(),
        "versions": versions_of(("parotid-seg", "onnxruntime", "openvino", "numpy", "nibabel")),
    }
