"""Shared by all commands: options, and errors printed as one line."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer

from parotid_seg.commands.terminal import log_to_stderr, print_error
from parotid_seg.errors import ParotidSegError

UsageError: Any = typer.BadParameter.__bases__[0]
"""A wrong command line. Typer's vendored click and the separate package each have such a class; this is the one
used."""


def _log(context: typer.Context, verbose: bool) -> None:
    if verbose:
        context.call_on_close(log_to_stderr())


Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose", "-v", callback=_log, expose_value=False, help="Print to standard error what is being done."
    ),
]
"""The option takes effect by itself; commands get no value."""


@contextlib.contextmanager
def one_line_errors(interrupted: str | Callable[[], str] = "") -> Iterator[None]:
    """The one place where errors that a user can fix become a line on stderr and an exit status of 1 or 2.

    Args:
        interrupted: printed after Ctrl-C, or a function that returns that sentence.
    """
    try:
        yield
    except ParotidSegError as error:
        print_error(str(error))
        raise typer.Exit(error.exit_status) from error
    except KeyboardInterrupt:
        advice = interrupted if isinstance(interrupted, str) else interrupted()
        print_error("; ".join(filter(None, ("interrupted", advice))))
        raise typer.Exit(130) from None


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end a block as an exception does, so that its processes and temporary files go, too; status 143."""

    def end(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def extra(name: str) -> Iterator[None]:
    """Name the extra to install when one of its packages is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("parotid_seg"):
            raise
        line = f"pip install 'parotid-seg[{name}]'"
        raise ParotidSegError(f"the package {error.name} is missing, which this command needs: {line}") from error
