"""The `parotid-seg` command with little patience for processes that hang."""

from datetime import timedelta
from typing import Any

from parotid_seg.train import exit_status, parallel
from tests.train.processes.torchrun import without_pictures


def command(*words: Any) -> None:
    """Run it, in a process of its own."""
    parallel.PATIENCE = exit_status.PATIENCE = timedelta(seconds=6)  # type: ignore[attr-defined]
    exit_status.STORE_PATIENCE = timedelta(seconds=1)
    without_pictures(*words)
