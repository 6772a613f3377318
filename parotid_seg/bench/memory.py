"""How much memory this process takes, and took at most."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

MIB = 1 << 20
RESET_PEAK = "5"
"""What /proc/self/clear_refs takes to forget the peak; see proc(5)."""


def peak_mib() -> float:
    """The largest resident set of this process since `forget_peak`, or where that cannot be done since its start."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    import resource  # on Unix only

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak / 1024


def forget_peak() -> None:
    """Let the peak be what is taken now, where the system allows it (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text(RESET_PEAK)
