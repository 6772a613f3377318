"""Ends a run of several processes early with one line, printed by the process that detects the failure first.

An error or the loss of one process ends all of them: the others find its connections closed, or torchrun ends them.
They agree on the reporting process through the store of their rendezvous.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from parotid_seg.errors import ParotidSegError
from parotid_seg.train.parallel import PATIENCE
from parotid_seg.train.time_limit import resume_advice
from parotid_seg.wording import Say

STORE_PATIENCE = timedelta(seconds=5)
"""Seconds for an answer of the store, which may be lost with its machine."""

SIGNAL_S = 1.0
"""Seconds to wait for a signal that arrives together with an error: torchrun also ends the processes that draw slices,
which torch reports as an error."""


@contextlib.contextmanager
def report_once(run: Path, tell: Say) -> Iterator[None]:
    """With several processes: if one ends early, a single one reports it, and the exit status is not 0.

    Bugs keep their traceback in every process that has them.

    Args:
        run: the run's folder.
        tell: called with the line.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    store, rank, count = next(iter(rendezvous("env://")))
    store.set_timeout(STORE_PATIENCE)
    noticed_by = f"noticed by process {rank} of {count}"
    once = threading.Lock()

    def end(line: str, status: int) -> NoReturn:
        """End at once, without Python's clean-up at exit, which may wait for processes that are gone."""
        with once:
            if _is_first(store):
                tell(line)
            sys.stdout.flush()
            os._exit(status)

    def stop(number: int) -> None:
        if number == signal.SIGINT:
            end(f"interrupted; {resume_advice(run)}", 130)
        end(
            f"training stopped from outside, or because a process was lost ({noticed_by}); {resume_advice(run)}",
            128 + number,
        )

    _on_signal(stop)
    try:
        yield
    except ParotidSegError as error:
        end(str(error), error.exit_status)
    except Exception as error:
        if not _is_of_connection(error):
            time.sleep(SIGNAL_S)
            raise
        lost = f"a process was lost, or gave no sign for {PATIENCE.total_seconds() / 60:g} minutes"
        end(f"training stopped: {lost} ({noticed_by}); {resume_advice(run)}", 1)
    if dist.is_initialized():
        dist.destroy_process_group()


def _is_first(store: Any) -> bool:
    """Whether this process is the first to report. If the store is lost, each counts as first."""
    try:
        return bool(store.add("told", 1) == 1)
    except (RuntimeError, dist.DistError):
        return True


def _is_of_connection(error: Exception) -> bool:
    """Whether an error means that another process does not answer; gloo's are recognised by their text only."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo/transport" in str(error))


def _on_signal(stop: Callable[[int], None]) -> None:
    """Call `stop` on Ctrl-C and on torchrun's signal to end, even while the main thread waits for another process.

    Python's own handlers would wait for the main thread. Its C handler writes the signal's number to a socket at once.
    """
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    signals = (signal.SIGINT, signal.SIGTERM)

    def listen() -> None:
        with sender:
            while (number := receiver.recv(1)[0]) not in signals:
                pass
        stop(number)

    def leave_alone() -> None:
        for each in signals:
            signal.signal(each, signal.SIG_DFL)

    for each in signals:
        signal.signal(each, lambda *_: None)
    signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=leave_alone)  # processes that draw slices share the socket
    threading.Thread(target=listen, daemon=True).start()
