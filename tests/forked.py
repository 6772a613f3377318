"""Processes of their own that need not start Python and import torch anew, which takes most of a short test's time.

A server that has imported everything forks them (multiprocessing's "forkserver", which runs no threads yet). What they
run is a function of a module. `tests.command_line.own_process` starts a process as a user does.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from parotid_seg import cli

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["tests.preloaded"])


class Forked:
    """A process under way, with the part of `subprocess.Popen` that tests need."""

    def __init__(self, run: Callable[[], object], environment: Mapping[str, str] | None = None) -> None:
        """Start it.

        Args:
            run: what it does; to be pickled.
            environment: variables that it has besides this process's.
        """
        ends = [FORKED.Pipe(duplex=False) for _ in range(2)]
        variables = {**os.environ, **(environment or {})}
        self._process = FORKED.Process(
            target=_child, args=(run, variables, Path.cwd(), *(writer for _, writer in ends)), daemon=False
        )
        self._process.start()
        for _, writer in ends:
            writer.close()
        self.stdout, self.stderr = (os.fdopen(os.dup(reader.fileno()), encoding="utf-8") for reader, _ in ends)
        for reader, _ in ends:
            reader.close()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit status, minus the signal that ended it, or None as long as it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """End it, if it still runs."""
        self._process.kill()

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """Wait for its end.

        Raises:
            subprocess.TimeoutExpired: if it runs longer; it is killed.
        """
        with ThreadPoolExecutor(2) as threads:
            texts = [threads.submit(stream.read) for stream in (self.stdout, self.stderr)]
            self._process.join(timeout)
            late = self._process.exitcode is None
            if late:
                self.kill()
            out, err = (text.result() for text in texts)
        self.stdout.close()
        self.stderr.close()
        if late:
            raise subprocess.TimeoutExpired([str(self._process)], timeout, out, err)
        return out, err


def start(*arguments: object, environment: Mapping[str, str] | None = None) -> Forked:
    """Start the `parotid-seg` command."""
    return Forked(partial(command, *map(str, arguments)), environment)


def forked(*arguments: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run the `parotid-seg` command to its end."""
    process = start(*arguments)
    out, err = process.communicate(timeout)
    return subprocess.CompletedProcess([*map(str, arguments)], int(process.returncode or 0), out, err)


def command(*words: str) -> None:
    """The `parotid-seg` command."""
    sys.argv = ["parotid-seg", *words]
    cli.main()


def script(path: Path, words: Sequence[str], constants: Mapping[str, object]) -> None:
    """A script with its folder in the path, as `python PATH WORDS` runs it.

    Args:
        path: of the script.
        words: its arguments.
        constants: names of the script that get another value. Then its function `main` is called.
    """
    sys.argv = [str(path), *words]
    sys.path.insert(0, str(path.parent))
    if not constants:
        runpy.run_path(str(path), run_name="__main__")
        return
    module = import_module(path.stem)
    for name, value in constants.items():
        assert hasattr(module, name)
        setattr(module, name, value)
    module.main()


def here(words: Sequence[str], **_: object) -> None:
    """Run in this process what `subprocess.run` would start: `parotid-seg`, whoever launches it, or a script."""
    _, *rest = words
    try:
        if "parotid_seg" in rest:
            command(*rest[rest.index("parotid_seg") + 1 :])
        else:
            script(Path(rest[0]), rest[1:], {})
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"{words} ended with status {end.code}") from end


def _child(
    run: Callable[[], Any], variables: Mapping[str, str], folder: Path, out: Connection, err: Connection
) -> None:
    for number, name, stream in ((1, "stdout", out), (2, "stderr", err)):
        os.dup2(stream.fileno(), number)
        stream.close()
        setattr(sys, name, open(number, "w", encoding="utf-8", buffering=1, closefd=False))  # noqa: SIM115
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    run()
