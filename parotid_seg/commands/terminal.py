"""Output of commands for users: progress, results and errors."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from parotid_seg.files import visible
from parotid_seg.scan.labels import from_the_right, plain_name
from parotid_seg.wording import Say, counted, some_of

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console
    from rich.table import Table

    from parotid_seg.commission.record import CommissionRecord, DriftRecord
    from parotid_seg.runtime.compare import ComparisonRecord
    from parotid_seg.runtime.evaluation import Evaluation, Mean
    from parotid_seg.runtime.pipeline.run import Outcome

log = logging.getLogger(__name__)


class Line:
    """Progress as a bar on a terminal and as plain lines elsewhere; errors always go to stderr.

    Attributes:
        bar: is shown while it is entered, if the output is a terminal.
    """

    def __init__(self, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._quiet, self._phase = quiet, ""

        class Tolerant(Console):
            """Goes on if nobody reads its output any more, as behind a pipe to `head`."""

            def on_broken_pipe(self) -> None:
                self.quiet = True
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, sys.stdout.fileno())
                print_error("nobody reads this output any more; the command goes on without it")

        self._console = Tolerant(highlight=False, soft_wrap=True, markup=False, emoji=False)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        visible = self._console.is_terminal and not quiet
        self.bar = Progress(*columns, console=self._console, disable=not visible, transient=True)
        self._task = self.bar.add_task("scans", total=None, visible=False)

    def say(self, text: str) -> None:
        """Print one line, unless the user has set --quiet."""
        if not self._quiet:
            self._console.print(visible(text))

    def error(self, text: str) -> None:
        """Print an error."""
        if self.bar.disable:
            print_error(text)
        else:
            self._console.print(f"parotid-seg: {visible(text)}")

    def phase(self, text: str, done: int, steps: int) -> None:
        """Set the bar's text and progress."""
        if text != self._phase:
            self._phase = text
            log.info("%s", text)
        self.bar.update(self._task, description=text, completed=done, total=steps, visible=True)

    def case(self, outcome: Outcome) -> None:
        """Print the outcome of a case, and advance the bar by one scan."""
        if outcome.status == "failed":
            self.error(outcome.entry.failure)
        else:
            self.say(outcome_text(outcome))
        self.bar.update(self._task, total=outcome.total, advance=1, visible=True)


@contextlib.contextmanager
def following(quiet: bool) -> Iterator[Line]:
    """A `Line` for as long as a command runs."""
    line = Line(quiet)
    with line.bar:
        yield line


def print_error(text: str) -> None:
    """Print one line on standard error, with control characters of file names replaced."""
    with contextlib.suppress(OSError):  # nobody reads it
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
    doses = {name: f" at {mean_gy:.1f} Gy" for name, mean_gy in entry.mean_gy.items()}
    structures = [(name, entry.volumes_ml[name]) for name in from_the_right(entry.volumes_ml)]
    sizes = ", ".join(f"{plain_name(name)} {size:.1f} ml{doses.get(name, '')}" for name, size in structures)
    took = "done before" if outcome.status == "skipped" else f"{sum(entry.seconds.values()):.1f} s"
    flags = f"; note: {sentences(entry.flags)}" if entry.flags else ""
    return f"[{outcome.number}/{outcome.total}] {entry.case}: {sizes} ({took}){flags}"


FIGURES = {
    "dsc": ("DSC", 3),
    "surface_dsc_1mm": ("surface DSC at 1 mm", 3),
    "surface_dsc_2mm": ("surface DSC at 2 mm", 3),
    "surface_dsc_3mm": ("surface DSC at 3 mm", 3),
    "iou": ("IoU", 3),
    "accuracy": ("accuracy (recall)", 3),
    "hd_mm": ("HD, mm", 1),
    "hd95_mm": ("HD95, mm", 1),
    "apl_mm": ("added path length, mm", 0),
    "volume_ml": ("volume, ml", 1),
    "reference_ml": ("reference volume, ml", 1),
    "volume_error_ml": ("volume error, ml", 2),
    "mean_gy": ("mean dose, Gy", 2),
    "reference_mean_gy": ("reference mean dose, Gy", 2),
    "mean_error_gy": ("mean dose error, Gy", 2),
    "mean_error_abs_gy": ("absolute mean dose error, Gy", 2),
    "mpa": ("MPA (right voxels of the scan)", 4),
    "macc": ("mAcc (mean recall)", 4),
    "miou": ("MIoU", 4),
}
"""Figures in words, and their decimals."""
SHORT = ("dsc", "surface_dsc_2mm", "hd95_mm", "apl_mm", "volume_error_ml", "mean_error_gy", "mean_error_abs_gy")
"""Figures of the short tables."""
WIDTH, WIDE = 120, 200
"""Characters of a line where the output is no terminal, without and with --all."""


def print_evaluation(result: Evaluation, *, every_figure: bool) -> None:
    """Print the mean figures of each structure, and on request all figures.

    Args:
        result: the figures.
        every_figure: whether to print those of every case, and all means.
    """
    from rich.table import Table

    console = _console(every_figure)
    if every_figure:
        console.print(_table_of_cases(result))
    names = [*from_the_right(result.labels.pairs), result.together]
    count = len(result.cases)
    table = Table("1 case" if count == 1 else f"mean (95 % interval), {count} cases", *map(visible, names))
    for figure, (title, _) in FIGURES.items():
        means = [result.means.get(f"{name} {figure}") for name in names]
        if f"{names[-1]} {figure}" in result.means and (every_figure or figure in SHORT):
            table.add_row(title, *(_mean_text(figure, mean) for mean in means if mean))
        elif figure in result.means and every_figure:
            table.add_row(title, *[""] * (len(names) - 1), _mean_text(figure, result.means[figure]))
    console.print(table)
    _print_notes(console, result.notes, every_figure)


def print_comparison(result: ComparisonRecord, *, every_figure: bool) -> None:
    """Print the verdict on two sets of masks and their differences.

    Args:
        result: the differences.
        every_figure: whether to print all figures.
    """
    from rich.table import Table

    from parotid_seg.runtime.compare import ABSOLUTE, LOWER_IS_BETTER

    console = _console(every_figure)
    lines = (f"A: {result.a}", f"B: {result.b}", f"references: {result.references}", result.verdict)
    for line in lines:
        _print_line(console, line)
    table = Table("structure", "figure (which is better)", "A", "B", "B - A", "95 % interval", "patients", "better")
    order = from_the_right(dict.fromkeys(each.structure for each in result.differences))
    for each in sorted(result.differences, key=lambda each: order.index(each.structure)):
        if every_figure or each.figure in SHORT:
            title, lower = FIGURES[each.figure][0], each.figure in LOWER_IS_BETTER
            absolute = "absolute " if each.figure in ABSOLUTE else ""
            numbers = (each.mean_a, each.mean_b, each.difference, each.low, each.high)
            mean_a, mean_b, *signed = (_number(each.figure, number) for number in numbers)
            difference, low, high = (f"+{text}" if text[0].isdigit() else text for text in signed)
            interval = "" if each.low is None else f"{low} to {high}"
            row = (mean_a, mean_b, difference, interval, str(each.patients), each.better or "")
            table.add_row(visible(each.structure), f"{absolute}{title} ({'lower' if lower else 'higher'})", *row)
    console.print(table)
    _print_notes(console, result.notes, every_figure)


def print_commission(record: CommissionRecord, out: Path) -> None:
    """Print limits, faults, drift and the choice of a model.

    Args:
        record: of the commissioning.
        out: its folder.
    """
    from rich.table import Table

    from parotid_seg.commission.expected import in_words
    from parotid_seg.commission.faults import FEWEST
    from parotid_seg.commission.limits import FEW
    from parotid_seg.commission.report_page import limit_in_words, trained_on, verdict_in_words

    console = _console(False)
    say = partial(_print_line, console)
    table = Table("figure", "limit", "found (95 % interval)", "patients", "verdict")
    for each in record.limits:
        verdict = "met" if each.met else "MISSED"
        table.add_row(*limit_in_words(each), str(each.patients), visible("; ".join(filter(None, (verdict, each.note)))))
    console.print(table)
    for note in record.evaluation.notes:
        say(f"note: {note}")
    for fault in record.faults:
        say(f"fault: {fault.text}")
    if record.expected:
        say(in_words(record.expected))
    if record.drift:
        _print_drift(record.drift, say)
    for text, _ in trained_on(record):
        say(text)
    if record.against:
        say(record.against.advice + ("" if record.against.equal else f" {record.against.comparison.verdict}"))
        own = "B: "  # those of the commissioned model are above
        for note in (each for each in record.against.comparison.notes if not each.startswith(own)):
            say(f"note: {note}")
    tested = len(record.patients.names)
    patients = counted(tested, "patient")
    if tested < FEW:
        say(f"note: fewer than {FEW} patients say little: read the intervals, not the means")
    if tested < FEWEST:
        say(f"note: whether masks are shifted is not tested with fewer than {FEWEST} patients")
    say(f"{verdict_in_words(record)} on {patients}; report.html and commission.json in {out}")


def _print_drift(drift: DriftRecord, say: Say) -> None:
    say(drift.verdict)
    for fault in drift.faults:
        say(f"fault: {fault.text}")
    for where, names in (("this run", drift.added), ("the earlier run", drift.gone)):
        if names:
            say(f"note: masks in {where} only: {some_of(names)}")
    for note in drift.notes:
        say(f"note: {note}")


def _console(wide: bool) -> Console:
    from rich.console import Console

    width = None if sys.stdout.isatty() else WIDE if wide else WIDTH
    return Console(width=width, markup=False, emoji=False, highlight=False)  # names are shown as they are


def _print_line(console: Console, text: str) -> None:
    console.print(visible(text), soft_wrap=True)


def _table_of_cases(result: Evaluation) -> Table:
    from rich.table import Column, Table

    from parotid_seg.runtime.evaluation import CASE_FIGURES

    planned = f"{result.together} mean_error_gy" in result.means
    figures = [each for each in FIGURES if each not in CASE_FIGURES and (planned or not each.endswith("_gy"))]
    named = (Column(head, no_wrap=True) for head in ("case", "structure"))
    table = Table(*named, *(FIGURES[figure][0] for figure in figures))
    for name, case in result.cases.items():
        for structure in from_the_right(case.labels):
            label = case.labels[structure]
            numbers = [_number(figure, getattr(label, figure)) for figure in figures]
            table.add_row(visible(name), visible(structure), *(["absent in both"] if label.absent else numbers))
    return table


def _mean_text(figure: str, mean: Mean) -> str:
    low, middle, high = (_number(figure, number) for number in (mean.low, mean.mean, mean.high))
    excluded = ((mean.missed, "empty in one"), (mean.absent, "without"))
    further = "".join(f", {count} {what}" for count, what in excluded if count)
    if mean.cases < 2:
        return f"{middle if mean.cases else 'none'}{further}"
    return f"{middle} ({low} to {high}){further}"


def _number(figure: str, number: float | None) -> str:
    return "none" if number is None else f"{number:z.{FIGURES[figure][1]}f}"


def _print_notes(console: Console, notes: Iterable[str], every_figure: bool) -> None:
    for note in notes:
        _print_line(console, f"note: {note}")
    if not every_figure:
        console.print("all figures: --all, --out")
