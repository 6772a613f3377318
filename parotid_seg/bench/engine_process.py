"""The process of an engine, seen from the main process and asked one question at a time."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import subprocess
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from parotid_seg.bench.child import Child
from parotid_seg.errors import ParotidSegError
from parotid_seg.files import PATIENCE_S, scratch_folder
from parotid_seg.runtime.engines.autotune import Candidate
from parotid_seg.runtime.pipeline.protocol.worker_stdio import cause, command_of, send

if TYPE_CHECKING:
    from parotid_seg.scan.chunks import Inputs

P = ParamSpec("P")
T = TypeVar("T")


class EngineProcess:
    """One engine in a process of its own, with a folder for its temporary files, as it is killed in the end.

    Args:
        candidate: what it loads.
        chunk: the first it takes.

    Attributes:
        name: the candidate's.
        cold_s: seconds from starting a process to the first chunk's labels; files may be in the system's cache.
        started: how that went.

    Raises:
        ParotidSegError: if the engine cannot be loaded, its process dies, or there is no room for temporary files.
    """

    def __init__(self, candidate: Candidate, chunk: Inputs) -> None:
        self.name = candidate.name
        self._scratch = contextlib.ExitStack()
        self._folder = self._scratch.enter_context(scratch_folder())
        begun = time.perf_counter()
        self._process = subprocess.Popen(
            command_of("parotid_seg.bench.child"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "TMPDIR": str(self._folder)},
        )
        try:
            self._hear()
            python_s = time.perf_counter() - begun
            self.started = self.ask(Child.start, candidate.make, chunk)
        except BaseException:
            self.end()
            raise
        self.cold_s = python_s + self.started.load_s + self.started.first_s

    def ask(self, question: Callable[Concatenate[Child, P], T], *arguments: P.args, **named: P.kwargs) -> T:
        """The answer to a question, which is a public method of `Child`.

        Raises:
            ParotidSegError: if the engine refuses, or the process dies.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # then the answer is missing, too
            send((question, arguments, named), self._process.stdin)
        answer: T | ParotidSegError = self._hear()
        if isinstance(answer, ParotidSegError):
            raise answer
        return answer

    def end(self) -> None:
        """End the process, and remove its temporary files."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        until = time.monotonic() + PATIENCE_S
        while self._folder.exists() and time.monotonic() < until:
            shutil.rmtree(self._folder, ignore_errors=True)  # its workers live on, and write, for a moment
        self._scratch.close()

    def _hear(self) -> Any:
        assert self._process.stdout is not None
        try:
            return pickle.load(self._process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            self._process.kill()
            raise ParotidSegError(f"{self.name}: {cause(self._process.wait())}") from error
