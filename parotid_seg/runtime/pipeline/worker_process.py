"""Starts the processes of workers. This module imports nothing that takes long: a command starts the first process, and
then imports all else while that one does the same."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from parotid_seg.errors import EXHAUSTED, MachineError
from parotid_seg.runtime.pipeline.protocol.worker_stdio import KILL, WAIT_S, cause, command_of

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


class WorkerProcess:
    """A process that runs `worker.main`, and this end of the connection to its standard input and output.

    Unlike a pipe, a socket can be shut down at this end, whoever holds the other one.

    Attributes:
        process: the process.
        connection: this end.
    """

    def __init__(self, process: subprocess.Popen[bytes] | _Forked, connection: socket.socket) -> None:
        self.process, self.connection = process, connection

    def close(self) -> None:
        """End the process, wait for that, and close the connection."""
        self.process.kill()
        with contextlib.suppress(MachineError):
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
        worker = self._server.fork() if self._server else None
        while worker is None:
            self.close()
            self._server = _Server()
            worker = self._server.fork()
        return worker

    def close(self) -> None:
        """End the processes that no worker has, and those that were forked."""
        if self._spare:
            WorkerProcess(*self._spare).close()
        if self._server:
            self._server.close()
        self._server, self._spare = None, None


class _Server:
    """This end of `worker_server`."""

    def __init__(self) -> None:
        self._process, self._connection = _started("parotid_seg.runtime.pipeline.worker_server", socket.SOCK_SEQPACKET)
        self._first = True

    def fork(self) -> WorkerProcess | None:
        """A worker; None if the server has ended. The first is not waited for, because the server imports before it.

        Raises:
            MachineError: if the machine has no room for another process.
        """
        forked, connection = self._asked()
        first, self._first = self._first, False
        if first or forked.pid > 0:
            return WorkerProcess(forked, connection)
        forked.close()
        connection.close()
        forked.check()
        return None

    def _asked(self) -> tuple[_Forked, socket.socket]:
        """A worker that the server is asked for, and the connection to it."""
        with contextlib.ExitStack() as kept, contextlib.ExitStack() as given:
            connection, end = _connection(socket.SOCK_STREAM)
            kept.enter_context(connection)
            given.enter_context(end)
            line, its_end = _connection(socket.SOCK_SEQPACKET)
            kept.enter_context(line)
            given.enter_context(its_end)
            try:
                socket.send_fds(self._connection, [b"+"], [end.fileno(), its_end.fileno()])
            except OSError as error:
                if error.errno in EXHAUSTED:
                    raise MachineError.of(error) from error  # else the server has ended, and so has the line
            kept.pop_all()
            return _Forked(line, self._process), connection

    def close(self) -> None:
        """End it, and with it all processes that it has forked."""
        self._process.kill()
        self._process.wait()
        self._connection.close()


class _Forked:
    """A process that the server forks, with the part of `subprocess.Popen` that a worker needs.

    Args:
        line: where the server tells its number, or minus the system's error, and later its exit status; it ends the
            process when the line is shut down.
        server: the server.

    Attributes:
        returncode: exit status, minus the signal that ended it; None until `wait` has been called.
    """

    def __init__(self, line: socket.socket, server: subprocess.Popen[bytes]) -> None:
        self.returncode: int | None = None
        self._line, self._server = line, server

    @functools.cached_property
    def pid(self) -> int:
        """Its number in the system; 0 if the server has ended, and minus the system's error if it was not forked."""
        return self._told() or 0

    def kill(self) -> None:
        """End it at once."""
        with contextlib.suppress(OSError):  # it has been waited for
            self._line.shutdown(socket.SHUT_WR)

    def wait(self) -> int:
        """Wait for its end, after `kill`; returns `returncode`.

        Raises:
            MachineError: if it was not forked, or has ended with the process that forked it.
        """
        if self.returncode is None:
            status = self._told() if self.pid > 0 else None
            self.close()
            self.returncode = -KILL if status is None else status
            self.check()
            if status is None:
                self._server.kill()  # if it has not ended: it cannot be heard any more
                why = cause(self._server.wait(), "the process that starts workers")
                while self.pid and _runs(self.pid):  # the worker ends a moment after the server
                    time.sleep(WAIT_S)
                raise MachineError(why)
        return self.returncode

    def close(self) -> None:
        """Close the line, which ends the process."""
        self._line.close()

    def check(self) -> None:
        """Raise MachineError if the system did not fork it."""
        if self.pid < 0:
            raise MachineError.of(OSError(-self.pid, os.strerror(-self.pid)))

    def _told(self) -> int | None:
        """The next number that the server tells; None if it has ended."""
        try:
            return int(self._line.recv(32))
        except (OSError, ValueError):
            return None


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
