"""What a process holds of the system; for scripts that look whether it grows."""

from __future__ import annotations

import os
import threading
from pathlib import Path


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
