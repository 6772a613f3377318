"""A process that has imported what others need and forks them, each with its own folder, environment and streams.

As multiprocessing's "forkserver", but for several sets of modules, and for processes that end as any program does.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import pickle
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[2]
ANSWER = struct.Struct("!q")


@dataclass(frozen=True)
class Request:
    """What a new process gets.

    Attributes:
        run: what it does, picklable.
        variables: its environment.
        folder: its current folder.
    """

    run: Callable[[], object]
    variables: Mapping[str, str]
    folder: Path


class Child:
    """A process that was forked, as `subprocess.Popen` has it."""

    def __init__(self, pid: int, status: int) -> None:
        self.pid, self.returncode = pid, None
        self._status, self._lock, self._waiting = status, threading.Lock(), 0

    def poll(self, timeout: float | None = 0.0) -> int | None:
        """The exit status, minus the signal that ended it; None as long as it runs."""
        with self._lock:
            if self.returncode is not None:
                return self.returncode
            self._waiting += 1
        select.select([self._status], [], [], timeout)
        with self._lock:
            self._waiting -= 1
            if self.returncode is None and select.select([self._status], [], [], 0)[0]:
                self.returncode = ANSWER.unpack(os.read(self._status, ANSWER.size))[0]
            if self.returncode is not None and not self._waiting:
                os.close(self._status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end."""
        if self.poll(timeout) is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def __del__(self) -> None:
        if self.returncode is None:
            os.close(self._status)

    def kill(self) -> None:
        """End it at once, if it still runs."""
        self.send_signal(signal.SIGKILL)


class Server:
    """The server, started when it is first needed.

    Args:
        modules: names of those that it imports.
        variables: of its environment, besides this process's.
    """

    def __init__(self, *modules: str, variables: Mapping[str, str] | None = None) -> None:
        self._modules, self._variables = modules, dict(variables or {})
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()

    def fork(self, request: Request, stdin: int, stdout: int, stderr: int) -> Child:
        """Start a process with these file descriptors for streams."""
        status, told = os.pipe()
        content = pickle.dumps(request)
        with self._lock:
            connection = self._connection()
            try:
                socket.send_fds(connection, [ANSWER.pack(len(content))], [stdin, stdout, stderr, told])
                connection.sendall(content)
                (pid,) = ANSWER.unpack(_exactly(connection, ANSWER.size))
            except BaseException:  # the next request would get the answer to this one
                connection.close()
                self._socket = None
                raise
            finally:
                os.close(told)
        return Child(pid, status)

    def adopt(self, connection: socket.socket) -> None:
        """Use a server that runs already."""
        self._socket = connection

    def _connection(self) -> socket.socket:
        if self._socket is None:
            ours, theirs = socket.socketpair()
            program = (
                "import os, sys; sys.path[0] = os.getcwd(); "
                "from tests.processes.fork_server import serve; serve(int(sys.argv[1]), sys.argv[2:])"
            )
            self._process = subprocess.Popen(
                [sys.executable, "-c", program, str(theirs.fileno()), *self._modules],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                cwd=ROOT,
                env={**os.environ, **self._variables},
            )
            theirs.close()
            self._socket = ours  # not before it is sure that somebody is at the other end
        return self._socket


def serve(number: int, modules: list[str]) -> None:
    """In the server: import, and fork until the other end is closed."""
    for name in modules:
        import_module(name)
    gc.freeze()  # a child whose collector visits all that is imported would copy it
    request = _forked(socket.socket(fileno=number))
    if request is not None:
        request.run()


def with_own_server(server: Server, run: Callable[[], object]) -> None:
    """In a process that was forked: fork a server for its own processes, which then need no imports either, and run.

    It must be called before the process has threads.

    Args:
        server: its connection to the new server.
        run: what the process does.
    """
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid:
        theirs.close()
        atexit.register(os.waitpid, pid, 0)
        atexit.register(ours.close)  # which ends the server
        server.adopt(ours)
        run()
        return
    ours.close()
    request = _forked(theirs)
    if request is not None:
        request.run()


def _forked(connection: socket.socket) -> Request | None:
    """Return a request in each child, and None in the server once the other end is closed."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    running: dict[int, int] = {}
    watched: list[socket.socket | int] = [connection, woken]
    while True:
        ready, _, _ = select.select(watched, [], [])
        if woken in ready:
            os.read(woken, 4096)
            _reap(running)
        if connection in ready:
            size, streams, _, _ = socket.recv_fds(connection, ANSWER.size, 4)
            if not size:
                for pid in running:
                    os.kill(pid, signal.SIGKILL)
                return None
            content = _exactly(connection, *ANSWER.unpack(size))
            pid = os.fork()
            if not pid:
                connection.close()
                for each in (woken, wake, streams.pop(), *running.values()):
                    os.close(each)
                return _begun(content, streams)
            running[pid] = streams.pop()
            for each in streams:
                os.close(each)
            connection.sendall(ANSWER.pack(pid))


def _begun(content: bytes, streams: list[int]) -> Request:
    """In a child: make itself at home."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdout, sys.stderr = (_text_stream(number) for number in (1, 2))
    request: Request = pickle.loads(content)
    os.environ.clear()
    os.environ.update(request.variables)
    sys.path += [each for each in request.variables.get("PYTHONPATH", "").split(os.pathsep) if each]
    os.chdir(request.folder)
    return request


def _text_stream(number: int) -> IO[str]:
    errors = "backslashreplace" if number == 2 else "strict"
    return open(number, "w", encoding="utf-8", errors=errors, buffering=1, closefd=False)


def _reap(running: dict[int, int]) -> None:
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        told = running.pop(pid)
        with contextlib.suppress(BrokenPipeError):
            os.write(told, ANSWER.pack(os.waitstatus_to_exitcode(status)))
        os.close(told)


def _exactly(connection: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        more = connection.recv(size - len(found))
        if not more:
            raise EOFError
        found += more
    return found
