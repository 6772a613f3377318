"""Starts the processes of workers. This module imports nothing that takes long: a command starts the first process, and
then imports all else while that one does the same."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from parotid_seg.errors import EXHAUSTED, MachineError
from parotid_seg.runtime.pipeline.protocol.worker_forks import ANSWER, END, FORK, REQUEST, RUNNING, STATUS
from parotid_seg.runtime.pipeline.protocol.worker_stdio import KILL, command_of

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""Environment of a worker: one thread for its small matrix products, because the engine needs the cores."""
LESS_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(8 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(32 << 20),
    "NUMPY_MADVISE_HUGEPAGE": "0",
}
"""Environment of a worker: glibc gives freed arrays of 8 MB and more back to the system at once and keeps up to 32 MB
of smaller ones, which take longer to get than to fill; and NumPy's arrays take memory by 4 KB instead of 2 MB, since
the greater part of a mask is never written."""
FORKS = sys.platform == "linux"
"""Whether workers are forked. Elsewhere each starts Python and imports everything, which takes 0.4 s of CPU time."""
WAIT_S = 0.002
"""Seconds between questions whether a process has ended."""


class Process(Protocol):
    """What a worker's process needs of `subprocess.Popen`.

    Attributes:
        returncode: exit status, minus the signal that ended it; None until `wait` has been called.
    """

    returncode: int | None

    @property
    def pid(self) -> int:
        """Its number in the system."""

    def kill(self) -> None:
        """End it at once."""

    def wait(self) -> int:
        """Wait for its end; returns `returncode`."""


class WorkerProcess:
    """A process that runs `worker.main`, and this end of the connection to its standard input and output.

    Unlike a pipe, a socket can be shut down at this end, whoever holds the other one.

    Attributes:
        process: the process.
        connection: this end.
    """

    def __init__(self, process: Process, connection: socket.socket) -> None:
        self.process, self.connection = process, connection

    def close(self) -> None:
        """End the process, wait for that, and close the connection."""
        self.process.kill()
        self.process.wait()
        self.connection.close()


class WorkerStarter:
    """Starts workers. On Linux `worker_server` imports once what they need, and forks each of them.

    Raises:
        MachineError: if the machine has no room for another process.
    """

    def __init__(self) -> None:
        self._server, self._spare = None, None
        if FORKS:
            self._server = _Server()
        else:
            self._spare = _started("parotid_seg.runtime.pipeline.worker")

    def start(self) -> WorkerProcess:
        """A process for a worker.

        Raises:
            MachineError: if the machine has no room for another process.
        """
        if not FORKS:
            spare, self._spare = self._spare, None
            return WorkerProcess(*(spare or _started("parotid_seg.runtime.pipeline.worker")))
        connection, worker_end = _connection(socket.SOCK_STREAM)
        with worker_end:
            try:
                forked = self._server.fork(worker_end.fileno()) if self._server else None
                if forked is None:
                    if self._server:
                        self._server.close()
                    self._server = _Server()
                    forked = self._server.first(worker_end.fileno())
                return WorkerProcess(forked, connection)
            except BaseException:
                connection.close()
                raise

    def close(self) -> None:
        """End the processes that no worker has; those that `start` gave are to be closed before."""
        if self._spare:
            WorkerProcess(*self._spare).close()
        if self._server:
            self._server.close()


class _Server:
    """This end of `worker_server`."""

    def __init__(self) -> None:
        self._process, self._connection = _started("parotid_seg.runtime.pipeline.worker_server", socket.SOCK_SEQPACKET)
        self._numbers = itertools.count()
        self._answers: dict[int, int] = {}
        self._reading = threading.Lock()

    def fork(self, end: int) -> _Forked | None:
        """A worker with a descriptor as standard input and output; None if the server has ended. The first is not
        waited for.

        Raises:
            MachineError: if the machine has no room for another process.
        """
        forked = self.first(end)
        if forked.number and forked.pid < 0:
            raise _of_machine(OSError(-forked.pid, os.strerror(-forked.pid)))
        return None if forked.number and not forked.pid else forked

    def first(self, end: int) -> _Forked:
        """The same without waiting for the fork.

        Raises:
            MachineError: if the machine has no room for another descriptor.
        """
        number = next(self._numbers)
        try:
            socket.send_fds(self._connection, [REQUEST.pack(FORK, number, 0)], [end])
        except OSError as error:
            if error.errno in EXHAUSTED:
                raise MachineError.of(error) from error
        return _Forked(self, number)

    def ask(self, what: int, worker: int) -> int:
        """Ask for something about a worker. Returns the number of the answer."""
        number = next(self._numbers)
        with contextlib.suppress(OSError):  # the server has ended, and its answer will be None
            self._connection.send(REQUEST.pack(what, number, worker))
        return number

    def answer(self, number: int) -> int | None:
        """Wait for an answer; None if the server has ended."""
        with self._reading:
            while number not in self._answers:
                try:
                    content = self._connection.recv(ANSWER.size)
                except OSError:
                    content = b""
                if not content:
                    return None
                told, value = ANSWER.unpack(content)
                self._answers[told] = value
            return self._answers.pop(number)

    def close(self) -> None:
        """End it, and with it all processes that it has forked."""
        self._process.kill()
        self._process.wait()
        self._connection.close()


class _Forked:
    """A process that the server forks; see `Process`."""

    def __init__(self, server: _Server, number: int) -> None:
        self.returncode: int | None = None
        self._server, self.number = server, number

    @functools.cached_property
    def pid(self) -> int:
        """Its number in the system; 0 if the server has ended, and minus the system's error if it was not forked."""
        return self._server.answer(self.number) or 0

    def kill(self) -> None:
        """End it at once."""
        self._server.ask(END, self.number)

    def wait(self) -> int:
        """Wait for its end."""
        while self.returncode is None:
            status = self._server.answer(self._server.ask(STATUS, self.number))
            if status == RUNNING:
                time.sleep(WAIT_S)
                continue
            if status is None:  # the server has ended, and with it, a moment later, its workers
                while self.pid > 0 and _runs(self.pid):
                    time.sleep(WAIT_S)
            self.returncode = -KILL if status is None else status
        return self.returncode


def _runs(process: int) -> bool:
    """Whether a process that is no child of this one runs."""
    try:
        return Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        return False


def _connection(kind: socket.SocketKind) -> tuple[socket.socket, socket.socket]:
    try:
        return socket.socketpair(type=kind)
    except OSError as error:
        raise _of_machine(error) from error


def _started(
    module: str, kind: socket.SocketKind = socket.SOCK_STREAM
) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """A process that runs a module's `main`, and the connection to its standard input and output."""
    connection, child_end = _connection(kind)
    with child_end:
        try:
            end, environment = child_end.fileno(), {**os.environ, **ONE_THREAD, **LESS_MEMORY}
            return subprocess.Popen(command_of(module), stdin=end, stdout=end, env=environment), connection
        except BaseException as error:
            connection.close()
            if isinstance(error, OSError):
                raise _of_machine(error) from error
            raise


def _of_machine(error: OSError) -> Exception:
    return MachineError.of(error) if error.errno in EXHAUSTED else error


@contextlib.contextmanager
def started() -> Iterator[WorkerStarter | None]:
    """The first process until the block ends; None if the machine has no room for one at the moment."""
    try:
        starter = WorkerStarter()
    except MachineError:
        yield None
        return
    try:
        yield starter
    finally:
        starter.close()
