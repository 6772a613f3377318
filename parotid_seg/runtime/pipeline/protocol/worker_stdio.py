"""Child processes of the package: command line, standard input and output, and why they ended."""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import sys
from pathlib import Path
from typing import IO, Any

KILL = 9
"""SIGKILL, a name that `signal` does not have on Windows."""
WAIT_S = 0.002
"""Seconds between questions whether a process has ended."""
PR_SET_PDEATHSIG = 1
"""Option of Linux's prctl: the signal to get when the parent dies."""


def command_of(module: str) -> list[str]:
    """The command line of a process that runs `main` of a module of this package.

    It imports the same package as this process, and nothing else from its folder or the current one; nibabel without
    pydicom. Ctrl-C is ignored from the beginning, see `ends`.
    """
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); "
        "sys.path.insert(0, sys.argv[1]); import parotid_seg; del sys.path[0]; "
        "import gc; gc.disable(); from parotid_seg.imports import import_nibabel; import_nibabel(); "
        f"from {module} import main; gc.freeze(); gc.enable(); main()"
    )
    return [sys.executable, "-P", "-c", program, str(Path(__file__).parents[3])]


def ends(parent_gone: int = KILL) -> tuple[IO[bytes], IO[bytes]]:
    """In a child process: the streams for messages and for answers.

    The process gets a signal when its parent has ended, and ignores Ctrl-C, which the parent handles. Output of
    libraries is redirected to standard error, so that it does not mix with the messages.
    """
    end_with_parent(parent_gone)
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return requests, answers


def end_with_parent(parent_gone: int = KILL) -> None:
    """In a child process: get a signal when the parent has ended, and ignore Ctrl-C, which the parent handles."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, parent_gone)


def send(message: object, stream: IO[Any]) -> None:
    """Write a pickled message; only to and from processes that are trusted, see docs/security.md."""
    pickle.dump(message, stream, protocol=pickle.HIGHEST_PROTOCOL)
    stream.flush()


def cause(status: int, process: str = "its process") -> str:
    """Why a process ended, from its exit status."""
    if status == -KILL:
        return f"{process} was killed, perhaps for want of memory"
    if status < 0:
        names = {each.value: each.name for each in signal.Signals}  # real-time signals have none
        return f"{process} was ended by {names.get(-status, f'signal {-status}')}"
    return f"{process} ended with status {status}"
