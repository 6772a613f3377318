"""Processes of their own that need not start Python and import anew, which takes most of a short test's time.

A server that has imported everything forks them. `tests.command_line.own_process` starts a process as a user does.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from parotid_seg.runtime.pipeline import worker_process
from parotid_seg.runtime.pipeline.protocol.worker_stdio import command_of
from parotid_seg.runtime.pipeline.worker_process import ONE_THREAD
from tests.processes.fork_server import Request, Server, with_own_server
from tests.processes.held import holders

LIGHT = Server(
    "parotid_seg.runtime.pipeline.worker_server", "parotid_seg.bench.child", "parotid_seg.cli", variables=ONE_THREAD
)
"""Forks what reads, segments and writes."""
HEAVY = Server("tests.processes.preloaded", variables=ONE_THREAD)
"""Forks what needs torch."""
OUTPUT_ENDS_S = 60
"""Most seconds between the end of a process and that of its output, which the processes that it started share."""


class Forked:
    """A process under way, with the part of `subprocess.Popen` that tests need.

    Args:
        run: what it does; picklable.
        environment: variables that it has besides this process's.
        server: which one forks it.
    """

    def __init__(
        self, run: Callable[[], object], environment: Mapping[str, str] | None = None, server: Server = HEAVY
    ) -> None:
        request = Request(run, {**os.environ, **(environment or {})}, Path.cwd())
        (out, theirs_out), (err, theirs_err) = os.pipe(), os.pipe()
        nothing = os.open(os.devnull, os.O_RDONLY)
        self._child = server.fork(request, nothing, theirs_out, theirs_err)
        for number in (nothing, theirs_out, theirs_err):
            os.close(number)
        self.stdout, self.stderr = (os.fdopen(number, encoding="utf-8") for number in (out, err))
        self.pid = self._child.pid
        self.poll, self.wait = self._child.poll, self._child.wait
        self.send_signal, self.kill = self._child.send_signal, self._child.kill

    @property
    def returncode(self) -> int | None:
        """Exit status, minus the signal that ended it, or None as long as it runs."""
        return self._child.poll()

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """Wait for its end.

        Raises:
            subprocess.TimeoutExpired: if it runs longer; it is killed.
            AssertionError: if a process that it started keeps its output open.
        """
        texts: dict[IO[str], str] = {}

        def read(stream: IO[str]) -> None:
            texts[stream] = stream.read()

        streams = (self.stdout, self.stderr)
        readers = [threading.Thread(target=read, args=(stream,), daemon=True) for stream in streams]
        for reader in readers:
            reader.start()
        late = self.poll(timeout) is None
        self.kill()
        for reader, stream in zip(readers, streams, strict=True):
            reader.join(OUTPUT_ENDS_S)
            if reader.is_alive():
                raise AssertionError(f"process {self.pid} has ended, and its output is held by {holders(stream)}")
            stream.close()
        if late:
            raise subprocess.TimeoutExpired(str(self.pid), timeout, *(texts[stream] for stream in streams))
        return texts[self.stdout], texts[self.stderr]


FORKABLE = ("parotid_seg.runtime.pipeline.worker_server", "parotid_seg.bench.child")
"""Modules of ours that are programs."""


class ForkedPrograms:
    """What modules that start such programs use of `subprocess`: they are forked, any other is started."""

    PIPE = subprocess.PIPE

    @staticmethod
    def Popen(words: list[str], *, stdin: int, stdout: int, env: Mapping[str, str] | None = None) -> Any:  # noqa: N802
        """A process with these descriptors, or `PIPE`, as standard input and output."""
        module = next((each for each in FORKABLE if command_of(each) == words), "")
        if not module:
            return subprocess.Popen(words, env=env, stdin=stdin, stdout=stdout)
        piped = subprocess.PIPE in (stdin, stdout)
        if piped:
            (stdin, to), (of, stdout) = os.pipe(), os.pipe()
        request = Request(partial(_program, module), dict(os.environ if env is None else env), Path.cwd())
        child: Any = LIGHT.fork(request, stdin, stdout, 2)
        if piped:
            os.close(stdin)
            os.close(stdout)
            child.stdin, child.stdout = os.fdopen(to, "wb"), os.fdopen(of, "rb")
        return child


def _program(module: str) -> None:
    if module == "parotid_seg.bench.child":  # it runs `infer`
        forking(import_module(module).main)
    else:
        import_module(module).main()


def forking(run: Callable[[], object]) -> None:
    """In a process that was forked: run a program whose workers are forked, too."""
    with_own_server(LIGHT, partial(_with_forked_workers, run))


def _with_forked_workers(run: Callable[[], object]) -> None:
    worker_process.subprocess = ForkedPrograms  # type: ignore[assignment, attr-defined]
    run()


class ForkedCommands:
    """What benchmarks use of `subprocess` to start the `parotid-seg` command or a script of theirs: they are forked.

    Anything else is started. The streams of those forked are pipes of text, whatever is asked for.

    Args:
        workers_too: whether the command forks its workers as well; they are no children of its process then.
    """

    PIPE, STDOUT, DEVNULL = subprocess.PIPE, subprocess.STDOUT, subprocess.DEVNULL

    def __init__(self, workers_too: bool) -> None:
        self._workers_too = workers_too

    def Popen(self, words: Sequence[str], **more: Any) -> Any:  # noqa: N802
        """The process."""
        _, *rest = words
        if rest[:2] == ["-m", "parotid_seg"]:
            run: Callable[[], object] = partial(command, *rest[2:])
        elif rest[0].endswith(".py"):
            run = partial(script, Path(rest[0]), rest[1:], {})
        else:
            return subprocess.Popen(words, **more)
        return Forked(partial(forking, run) if self._workers_too else run, server=LIGHT)


def start(*arguments: object, server: Server = HEAVY) -> Forked:
    """Start the `parotid-seg` command."""
    return Forked(partial(command, *map(str, arguments)), server=server)


def forked(*arguments: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run the `parotid-seg` command, one that needs torch, to its end."""
    process = start(*arguments)
    out, err = process.communicate(timeout)
    return subprocess.CompletedProcess([*map(str, arguments)], int(process.returncode or 0), out, err)


def command(*words: str) -> None:
    """The `parotid-seg` command."""
    sys.argv = ["parotid-seg", *words]
    import_module("parotid_seg.cli").main()


def script(path: Path, words: Sequence[str], constants: Mapping[str, object]) -> None:
    """A script with its folder in the path, as `python PATH WORDS` runs it.

    Args:
        path: of the script.
        words: its arguments.
        constants: names of the script, or whole names of other modules, that get another value. Then its function
            `main` is called.
    """
    sys.argv = [str(path), *words]
    sys.path.insert(0, str(path.parent))
    if not constants:
        runpy.run_path(str(path), run_name="__main__")
        return
    module = import_module(path.stem)
    for name, value in constants.items():
        owner, _, last = name.rpartition(".")
        where = import_module(owner) if owner else module
        assert hasattr(where, last)
        setattr(where, last, value)
    module.main()


def here(words: Sequence[str], **_: object) -> None:
    """Run in this process what `subprocess.run` would start: `parotid-seg`, whoever launches it, or a script."""
    rest = words[1:]
    try:
        if "parotid_seg" in rest:
            command(*rest[rest.index("parotid_seg") + 1 :])
        else:
            script(Path(rest[0]), rest[1:], {})
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"{words} ended with status {end.code}") from end
