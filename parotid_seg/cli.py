"""The command line. Each command imports what it needs when it runs, so that `--help` is instant."""

from __future__ import annotations

import atexit
import gc
import io
import sys
from typing import Annotated, Any

import typer

from parotid_seg.commands.bench import bench, compare
from parotid_seg.commands.commission import commission
from parotid_seg.commands.dataset import dataset
from parotid_seg.commands.evaluate import evaluate
from parotid_seg.commands.export import export
from parotid_seg.commands.infer import infer
from parotid_seg.commands.inspect import inspect
from parotid_seg.commands.listen import listen
from parotid_seg.commands.shared import UsageError
from parotid_seg.commands.terminal import print_error
from parotid_seg.commands.train import train
from parotid_seg.version import VERSION

app = typer.Typer(
    name="parotid-seg",
    help="Parotid gland masks from head-and-neck CT: segment, train, export, evaluate. Not a medical device.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    epilog="Example: parotid-seg infer scans/ --out masks/",
)
bench_app = typer.Typer(invoke_without_command=True, epilog="Example: parotid-seg bench --out speed/")

app.command(epilog="Example: parotid-seg infer scans/ --out masks/")(infer)
app.command(epilog="Example: parotid-seg inspect model.onnx")(inspect)
app.command(epilog="Example: parotid-seg evaluate masks/ labelsTs/ --out scores.json")(evaluate)
app.command(epilog="Example: parotid-seg commission ours/ --out commissioning/ --limits limits.toml")(commission)
app.command(epilog="Example: parotid-seg listen --port 11112 --out node/ --allow CT1 --send-to PACS@10.0.0.5:104")(
    listen
)
app.command(epilog="Example: parotid-seg dataset dicom/ --out Dataset102/")(dataset)
app.command(epilog="Example: parotid-seg train Dataset101/ --out runs/compact --preset compact")(train)
app.command(epilog="Example: parotid-seg export runs/compact/best.pt --out parotid-ct.onnx --precision auto")(export)
app.add_typer(bench_app, name="bench")
bench_app.callback()(bench)
bench_app.command(epilog="Example: parotid-seg bench compare before/bench.json after/bench.json")(compare)


def _print_version(requested: bool) -> None:
    if requested:
        version()
        raise typer.Exit


@app.callback()
def options(
    _: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Options of `parotid-seg` itself; `app` has its help text."""


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(f"parotid-seg {VERSION}")


def _command_of(error: Any) -> str:
    """The command whose help shows what was expected: of an option without its value, the error does not say it."""
    if error.ctx:
        return str(error.ctx.command_path)
    command: Any = typer.main.get_command(app)
    words = ["parotid-seg"]
    for word in sys.argv[1:]:
        command = getattr(command, "commands", {}).get(word)
        if command is None:
            break
        words.append(word)
    return " ".join(words)


def _freeze_objects() -> None:
    """Spare Python its searches for garbage before it ends. Triton, which torch may import, would report leaks."""
    if "torch" not in sys.modules:
        gc.freeze()


def main() -> None:
    """Entry point of the `parotid-seg` command; a wrong command line prints one line and gives exit status 2."""
    atexit.register(_freeze_objects)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names that the terminal's encoding lacks
    try:
        sys.exit(app(prog_name="parotid-seg", standalone_mode=False) or 0)
    except UsageError as error:
        print_error(f"{error.format_message()} (see {_command_of(error)} --help)")
        sys.exit(2)
