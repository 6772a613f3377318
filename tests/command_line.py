"""`parotid-seg` run by tests: in this process, which is quick, or in one of its own, as a user does."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from typing import IO, Any

import pytest
import typer

from parotid_seg.cli import app, main

Run = Callable[..., "subprocess.CompletedProcess[str]"]
IGNORED = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)
"""Warnings that Python does not show by default."""
BUILT = cache(typer.main.get_command)
"""Makes the commands' parser, which takes longer than many a command, once only."""


def in_process(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command in this process.

    What Python, its warnings and libraries in C write is captured. An error that is not expected becomes a traceback
    and exit status 1, as Python makes it.
    """
    words = ["parotid-seg", *map(str, arguments)]
    with pytest.MonkeyPatch.context() as patch, _written_to(1, "stdout") as out, _written_to(2, "stderr") as err:
        patch.setattr(sys, "argv", words)
        patch.setattr(typer.main, "get_command", BUILT)
        with _warnings_shown():
            status = _status()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        return subprocess.CompletedProcess(words, status, _text(out), _text(err))


def own_process(*arguments: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    words = [sys.executable, "-m", "parotid_seg", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=timeout, check=False)


def parse(name: str, words: list[str]) -> None:
    """Parse the words of a subcommand without running it.

    Raises:
        parotid_seg.commands.shared.UsageError: as the command does.
    """
    commands: Any = BUILT(app)
    parent = commands.make_context(
        "parotid-seg", [name, *words]
    )  # whose settings a command keeps from its first use on
    commands.commands[name].make_context(name, words, parent=parent)


def _status() -> int:
    try:
        main()
    except SystemExit as end:
        if isinstance(end.code, str):
            raise TypeError(f"exit status {end.code!r}, expected a number") from end
        return int(end.code or 0)
    except Exception:
        traceback.print_exc()
        return 1
    return 0


@contextlib.contextmanager
def _written_to(number: int, name: str) -> Iterator[IO[bytes]]:
    """A file that gets what is written to a file descriptor and to the stream `sys.NAME`.

    The new stream is left open: loggers that were made meanwhile may hold it.
    """
    before: IO[str] = getattr(sys, name)
    before.flush()
    kept = os.dup(number)
    errors = "backslashreplace" if name == "stderr" else "strict"
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), number)
        setattr(sys, name, open(number, "w", encoding="utf-8", errors=errors, buffering=1, closefd=False))  # noqa: SIM115
        try:
            yield file
        finally:
            getattr(sys, name).flush()
            setattr(sys, name, before)
            os.dup2(kept, number)
            os.close(kept)


@contextlib.contextmanager
def _warnings_shown() -> Iterator[None]:
    """Warnings go to standard error as in a new process, and not to pytest's list."""

    def show(message: Warning | str, category: type[Warning], path: str, line: int, *_: object) -> None:
        sys.stderr.write(warnings.formatwarning(message, category, path, line))

    with warnings.catch_warnings():
        warnings.resetwarnings()
        for category in IGNORED:
            warnings.simplefilter("ignore", category)
        warnings.showwarning = show  # type: ignore[assignment]
        yield


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode().replace("\r\n", "\n")
