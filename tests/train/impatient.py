"""The `parotid-seg` command with little patience for processes that hang."""

from datetime import timedelta

from parotid_seg.train import ending, parallel
from tests.train.torchrun import without_pictures


def command(*words):
    """Run it, in a process of its own."""
    parallel.PATIENCE = ending.PATIENCE = timedelta(seconds=12)
    without_pictures(*words)
