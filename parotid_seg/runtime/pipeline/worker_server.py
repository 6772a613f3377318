"""The program of the process that forks workers. Importing what they need takes most of a worker's start, and is done
here once; the process has a single thread, so that it can be forked safely."""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys

from parotid_seg.runtime.pipeline import worker
from parotid_seg.runtime.pipeline.protocol.worker_forks import ANSWER, END, FORK, REQUEST, RUNNING, STATUS
from parotid_seg.runtime.pipeline.protocol.worker_stdio import KILL, end_with_parent


def main() -> None:
    """Serve until the standard input ends; in each forked process, be a worker."""
    end_with_parent()
    if _is_worker(socket.socket(fileno=os.dup(0))):
        worker.main()


def _is_worker(connection: socket.socket) -> bool:
    """Answer requests until there are no more, and return False; in each forked process, return True."""
    running: dict[int, int] = {}
    ended: dict[int, int] = {}
    while True:
        content, ends, _, _ = socket.recv_fds(connection, REQUEST.size, 1)
        if not content:
            return False
        what, number, of = REQUEST.unpack(content)
        if what == FORK:
            pid = _forked(connection, *ends) if ends else -errno.EMFILE  # no room for the descriptor
            if not pid:
                return True
            if pid > 0:
                running[number] = pid
            else:
                ended[number] = -KILL
            connection.send(ANSWER.pack(number, pid))
        elif what == END and of in running:
            os.kill(running[of], signal.SIGKILL)
        elif what == STATUS:
            if of in running and (status := _status(running[of])) != RUNNING:
                del running[of]
                ended[of] = status
            connection.send(ANSWER.pack(number, ended.get(of, RUNNING)))


def _forked(connection: socket.socket, end: int) -> int:
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
        connection.close()
        os.dup2(end, 0)
        os.dup2(end, 1)
        end_with_parent()
        if os.getppid() != server:
            sys.exit()
    os.close(end)
    return pid


def _status(process: int) -> int:
    """The exit status of a process, or `RUNNING`. To be asked once after its end: the system may give its number to
    another process."""
    pid, status = os.waitpid(process, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if pid else RUNNING
