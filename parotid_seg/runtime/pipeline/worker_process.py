"""Starts the process of a worker. This module imports nothing that takes long: a command starts its first worker, and
then imports all else while the worker does the same."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator

from parotid_seg.errors import EXHAUSTED, MachineError
from parotid_seg.runtime.pipeline.protocol.worker_stdio import command_of

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


class WorkerProcess:
    """A process that runs `worker.main`, and this end of the connection to its standard input and output.

    Unlike a pipe, a socket can be shut down at this end, whoever holds the other one.

    Attributes:
        process: the process.
        connection: this end.

    Raises:
        MachineError: if the machine has no room for another process.
    """

    def __init__(self) -> None:
        try:
            self.connection, worker_end = socket.socketpair()
            with worker_end:
                try:
                    command, end = command_of("parotid_seg.runtime.pipeline.worker"), worker_end.fileno()
                    environment = {**os.environ, **ONE_THREAD, **LESS_MEMORY}
                    self.process = subprocess.Popen(command, stdin=end, stdout=end, env=environment)
                except BaseException:
                    self.connection.close()
                    raise
        except OSError as error:
            if error.errno in EXHAUSTED:
                raise MachineError.of(error) from error
            raise

    def close(self) -> None:
        """End the process, wait for that, and close the connection."""
        self.process.kill()
        self.process.wait()
        self.connection.close()


@contextlib.contextmanager
def started() -> Iterator[WorkerProcess | None]:
    """A process for the first worker until the block ends; None if the machine has no room for one at the moment."""
    try:
        process = WorkerProcess()
    except MachineError:
        yield None
        return
    try:
        yield process
    finally:
        process.close()
