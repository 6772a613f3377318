"""The `parotid-seg` command with little patience for processes that hang."""

from datetime import timedelta

from parotid_seg import cli
from parotid_seg.train import ending, parallel

if __name__ == "__main__":
    parallel.PATIENCE = ending.PATIENCE = timedelta(seconds=12)
    cli.main()
