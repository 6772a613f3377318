"""Output of commands for users: progress, results and errors."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from parotid_seg.files import visible

if TYPE_CHECKING:
    from parotid_seg.runtime.evaluate import Evaluation
    from parotid_seg.runtime.pipeline.run import Outcome

log = logging.getLogger(__name__)


class Line:
    """Progress as a bar on a terminal and as plain lines elsewhere; errors always go to stderr."""

    def __init__(self, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._quiet, self._phase = quiet, ""
        self._console = Console(highlight=False, soft_wrap=True, markup=False)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        visible = self._console.is_terminal and not quiet
        self._bar = Progress(*columns, console=self._console, disable=not visible, transient=True)
        self._task = self._bar.add_task("scans", total=None, visible=False)

    def start(self) -> None:
        """Show the bar, if the output is a terminal."""
        self._bar.start()

    def stop(self) -> None:
        """Remove the bar."""
        self._bar.stop()

    def say(self, text: str) -> None:
        """Print one line, unless the user has set --quiet."""
        if not self._quiet:
            self._console.print(visible(text))

    def error(self, text: str) -> None:
        """Print an error."""
        if self._bar.disable:
            print_error(text)
        else:
            self._console.print(f"parotid-seg: {visible(text)}")

    def phase(self, text: str, done: int, steps: int) -> None:
        """Set the bar's text and progress."""
        if text != self._phase:
            self._phase = text
            log.info("%s", text)
        self._bar.update(self._task, description=text, completed=done, total=steps, visible=True)

    def advance(self, total: int) -> None:
        """Advance the bar by one scan."""
        self._bar.update(self._task, total=total, advance=1, visible=True)


@contextlib.contextmanager
def following(quiet: bool) -> Iterator[Line]:
    """A `Line` for as long as a command runs."""
    line = Line(quiet)
    line.start()
    try:
        yield line
    finally:
        line.stop()


def print_error(text: str) -> None:
    """Print one line on standard error, with control characters of file names replaced."""
    print(f"parotid-seg: {visible(text)}", file=sys.stderr, flush=True)


class _ToStderr(logging.Handler):
    """Prints each record in one line, with the time of day."""

    def emit(self, record: logging.LogRecord) -> None:
        time = logging.Formatter().formatTime(record, "%H:%M:%S")
        print(f"{time} {visible(record.getMessage())}", file=sys.stderr, flush=True)


def log_to_stderr() -> Callable[[], None]:
    """Print what the package logs on standard error; returns a function that ends this."""
    logger, handler = logging.getLogger("parotid_seg"), _ToStderr(logging.INFO)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)

    def end() -> None:
        logger.removeHandler(handler)
        logger.setLevel(level)

    return end


def outcome_text(outcome: Outcome) -> str:
    """The outcome of a case in one line."""
    from parotid_seg.runtime.report.flag_text import sentences

    entry = outcome.entry
    sizes = ", ".join(f"{name.replace('_', ' ')} {size:.1f} ml" for name, size in entry.volumes_ml.items())
    took = "done before" if outcome.status == "skipped" else f"{sum(entry.seconds.values()):.1f} s"
    flags = f"; note: {sentences(entry.flags)}" if entry.flags else ""
    return f"[{outcome.number}/{outcome.total}] {entry.case}: {sizes} ({took}){flags}"


def print_evaluation(result: Evaluation) -> None:
    """Print the figures by case and label, and their means."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 120)
    table = Table("case", "label", "DSC", "HD mm", "HD95 mm", "volume ml", "reference ml", "difference ml")
    for name, case in result.cases.items():
        for label, scores in case.labels.items():
            distances = (f"{scores.hd_mm:.1f}", f"{scores.hd95_mm:.1f}")
            error_ml = scores.volume_ml - scores.reference_ml
            volumes = (f"{scores.volume_ml:.1f}", f"{scores.reference_ml:.1f}", f"{error_ml:+.1f}")
            figures = ("absent", "in both", "masks") if scores.absent else (f"{scores.dsc:.3f}", *distances)
            table.add_row(name, label, *figures, *volumes)
    console.print(table)
    means = Table("figure", "mean", "95 % interval", "median", "cases", "empty in one", "absent in both")
    for name, mean in result.means.items():
        interval = f"{mean.low:.4f} to {mean.high:.4f}"
        means.add_row(
            name,
            f"{mean.mean:.4f}",
            interval,
            f"{mean.median:.4f}",
            str(mean.cases),
            str(mean.missed),
            str(mean.absent),
        )
    console.print(means)
    for note in result.notes:
        console.print(f"note: {visible(note)}", markup=False, highlight=False, soft_wrap=True)
