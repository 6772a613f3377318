"""The program of the process that forks workers. Importing what they need takes most of a worker's start, and is done
here once; the process has a single thread, so that it can be forked safely."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys

from parotid_seg.runtime.pipeline import worker
from parotid_seg.runtime.pipeline.protocol.worker_stdio import WAIT_S, end_with_parent


def main() -> None:
    """Serve until the standard input ends; in each forked process, be a worker."""
    end_with_parent()
    if _is_worker(socket.socket(fileno=os.dup(0))):
        worker.main()


def _is_worker(connection: socket.socket) -> bool:
    """Fork workers until the connection is closed, and return False; in each forked process, return True.

    A request has two descriptors: the worker's standard input and output, and a line. On the line the worker's number
    is sent, or minus the system's error. When the line is shut down, the worker is killed, and its exit status is sent.
    """
    running: dict[socket.socket, int] = {}
    ending: dict[socket.socket, int] = {}
    while True:
        ready, _, _ = select.select([connection, *running], [], [], WAIT_S if ending else None)
        for line in running.keys() & set(ready):
            ending[line] = running.pop(line)
            os.kill(ending[line], signal.SIGKILL)
        for line, pid in list(ending.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                _tell(line, os.waitstatus_to_exitcode(status))
                del ending[line]
                line.close()
        if connection in ready:
            content, ends, _, _ = socket.recv_fds(connection, 1, 2)
            if not content:
                return False
            end, line = ends[0], socket.socket(fileno=ends[1])
            pid = _forked(end)
            if not pid:
                for each in (connection, line, *running, *ending):
                    each.close()
                return True
            _tell(line, pid)
            if pid > 0:
                running[line] = pid
            else:
                line.close()


def _tell(line: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):  # nobody wants to know
        line.send(b"%d" % number)


def _forked(end: int) -> int:
    """Fork a process with this descriptor as standard input and output.

    Returns:
        Its number, 0 in that process, or minus the system's error.
    """
    server = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:
        pid = -(error.errno or 1)
    if not pid:
        os.dup2(end, 0)
        os.dup2(end, 1)
        end_with_parent()
        if os.getppid() != server:
            sys.exit()
    os.close(end)
    return pid
