"""`parotid-seg bench` and `parotid-seg bench compare`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from parotid_seg.bench.bench_options import BenchOptions
from parotid_seg.commands.option_parameters import with_options
from parotid_seg.commands.shared import Quiet, UsageError, Verbose, ended_by_sigterm, extra, one_line_errors
from parotid_seg.commands.terminal import following
from parotid_seg.errors import OutputError

NAMES = "bench.json", "bench.md", "bench.png"
"""Of the results."""


@with_options
def bench(
    context: typer.Context,
    *,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder for bench.json, bench.md and bench.png.")
    ] = None,
    options: BenchOptions,
    quiet: Quiet = False,
    _verbose: Verbose = False,
) -> None:
    """Measure how fast a model runs on this machine, by engine, precision and batch size, and where the time goes.

    Engines take turns, each in its own process. Reported are latency and slices per second by batch size, the share of
    the machine's peak, memory, cold and warm start, scans per second from file to mask with the time of every stage,
    and whether the masks agree with the model file's. 'parotid-seg bench compare OLD.json NEW.json' reports what got
    slower. Exit status: 0 all measured, 3 an engine or batch size was skipped or gives other masks. Needs the extra:
    pip install 'parotid-seg[bench]'.
    """
    if context.invoked_subcommand is not None:
        _refuse_options(context)
        return
    if out is None:
        raise UsageError("Missing option '--out'.")
    with one_line_errors(), extra("bench"), ended_by_sigterm(), following(quiet) as line:
        from parotid_seg.bench.measure import Bench
        from parotid_seg.bench.selection import scans_for, select_engines
        from parotid_seg.bench.speed_chart import draw
        from parotid_seg.bench.text_report import report
        from parotid_seg.export.find_engine import runnable
        from parotid_seg.files import make_folder, write_text
        from parotid_seg.models import model_file

        for path in (out / name for name in NAMES):
            if path.is_dir() and not path.is_symlink():
                raise OutputError("cannot be written (a folder has this name)", path=path)
        model = model_file(options.model)
        built = partial(runnable, report=line.say, progress=line.phase)
        selection, contract, gpu = select_engines(model, options.backends, options.device, built, line.say)
        scans = scans_for(options.scans, contract, line.say)
        make_folder(out)
        result = Bench(model, contract, selection, scans, options, gpu=gpu, say=line.say, progress=line.phase).run()
        text = report(result)
        for row in text.splitlines():
            line.say(row)
        write_text(result.to_json(), out / NAMES[0])
        write_text(text, out / NAMES[1])
        draw(result, out / NAMES[2])
        line.say(f"wrote {', '.join(NAMES)} in {out}")
    raise typer.Exit(0 if result.all_same else 3)


def _refuse_options(context: typer.Context) -> None:
    """Refuse options of `bench` before a subcommand, which does not use them."""
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        if parameter.expose_value and source is not None and source.name != "DEFAULT":
            raise UsageError(f"{parameter.opts[0]}: not an option of 'bench {context.invoked_subcommand}'")


def compare(
    old: Annotated[Path, typer.Argument(metavar="OLD.json", help="The earlier bench.json.")],
    new: Annotated[Path, typer.Argument(metavar="NEW.json", help="The bench.json to compare with it.")],
    quiet: Quiet = False,
    _verbose: Verbose = False,
) -> None:
    """Report what got slower from one bench.json to another, beyond noise, or gives other masks.

    Only rounds in which the machine was undisturbed count; with too few of them all rounds count, and only large
    changes can be detected. An engine is slower if the whole 95 % interval of the change is above 2 %; a missing engine
    or batch size counts as slower, too. Exit status: 0 nothing is slower, 1 something is slower or has other masks than
    the model, 2 the files cannot be compared, 3 undecided.
    """
    with one_line_errors():
        from parotid_seg.bench.compare_results import compare_files
        from parotid_seg.files import visible

        comparison = compare_files(old, new)
        if not quiet:
            for text in comparison.lines():
                typer.echo(visible(text))
    raise typer.Exit(1 if comparison.worse else 3 if comparison.undecided else 0)
