"""Work in a process of its own, as a GPU or a library may hang, or end all work of a process."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

GRACE_S = 5.0
"""For the end of a process."""
T = TypeVar("T")


def isolated(work: Callable[..., T], *arguments: Any, most_s: float) -> T:
    """What a function returns in a new process; function, arguments and result must be picklable.

    Raises:
        TimeoutError: if it takes longer; the process is ended.
        RuntimeError: what the function raised, or how its process ended.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(theirs, work, arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(most_s):
            raise TimeoutError(f"stopped after {most_s:.0f} s")
        try:
            error, result = ours.recv()
        except EOFError:
            process.join(most_s)
            raise RuntimeError(f"its process ended with status {process.exitcode}") from None
        process.join(GRACE_S)
    finally:
        process.kill()
        process.join(GRACE_S)
        ours.close()
    if error:
        raise RuntimeError(error)
    found: T = result
    return found


def _send(connection: Connection, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        answer = "", work(*arguments)
    except Exception as error:  # whatever a library raises
        answer = f"{type(error).__name__}: {' '.join(str(error).split())[:600]}", None
    connection.send(answer)
