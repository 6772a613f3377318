"""Peak memory of this process."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

MIB = 1 << 20
RESET_PEAK = "5"
"""What /proc/self/clear_refs takes to forget the peak; see proc(5)."""


def peak_mib() -> float:
    """The largest resident set of this process in MiB since `forget_peak`; since its start where that is
    unsupported."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    import resource  # on Unix only

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak / 1024


def forget_peak() -> None:
    """Reset the peak to the current use, where the system supports it (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text(RESET_PEAK)
