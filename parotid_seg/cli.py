"""The command line: parse, one call, print. Each command imports what it needs when it runs, so `--help` is instant."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from parotid_seg.errors import ParotidSegError
from parotid_seg.terminal import following, outcome_text, print_error, print_evaluation

if TYPE_CHECKING:
    from parotid_seg.runtime.backend import Backend
    from parotid_seg.runtime.infer import Outcome

app = typer.Typer(
    name="parotid-seg",
    help="Parotid gland masks from head-and-neck CT: segment, train, export, evaluate. Not a medical device.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    epilog="Example: parotid-seg infer scans/ --out masks/",
)

UsageError: Any = typer.BadParameter.__bases__[0]
"""A wrong command line. Typer's own click and the separate package have one each; this is the one in use."""

Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")]


@app.command(epilog="Example: parotid-seg infer scans/ --out masks/")
def infer(
    scans: Annotated[
        list[Path], typer.Argument(metavar="SCAN...", help="NIfTI files, or folders holding them at any depth.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for masks, summary.csv and run.json.")],
    model: Annotated[
        Path | None,
        typer.Option("--model", metavar="FILE", help="Model file (.onnx) or engine. Default: the packaged CT model."),
    ] = None,
    backend: Annotated[
        str, typer.Option("--backend", help="auto, onnxruntime, openvino, tensorrt or tensorrt-rtx.")
    ] = "auto",
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            metavar="N",
            help="Slices at once. It bounds memory, not the result. Default: what the engine is fastest with.",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            metavar="N",
            help="Most processes that read scans and write masks. Default: one a core, started as they are needed.",
        ),
    ] = None,
    flips: Annotated[
        bool,
        typer.Option(
            "--flips", help="Look at the mirror image, too, and tell how far both agree on each gland. Twice the time."
        ),
    ] = False,
    clean_up: Annotated[
        bool,
        typer.Option("--clean-up/--no-clean-up", help="Keep only the largest piece of each left or right structure."),
    ] = True,
    pictures: Annotated[
        bool, typer.Option("--pictures/--no-pictures", help="Write an overlay picture of each case to DIR/pictures.")
    ] = True,
    report: Annotated[
        bool,
        typer.Option(
            "--report/--no-report",
            help="Write report.html, all cases of DIR with close-ups, worst first, and report.json for machines.",
        ),
    ] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Redo cases that are done. Default: resume.")] = False,
    allow_unverified: Annotated[
        bool, typer.Option("--allow-unverified", help="Use a model that 'parotid-seg export' has not proven.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Segment the parotid glands of scans.

    Writes DIR/CASE.nii.gz (labels in exactly the scan's geometry; of the packaged model 0 background, 1 left, 2 right
    parotid), DIR/summary.csv (a row a case), DIR/run.json and DIR/report.html (all cases of
    DIR, worst first). A model of several channels takes a case's files CASE_0000, CASE_0001 ... together. A rerun does
    only what is missing. Exit status: 0 all done, 1 nothing done, 3 some cases failed, 130 interrupted.
    """
    with _one_line_errors("finished cases are kept"):
        from parotid_seg.export.engine import runnable
        from parotid_seg.models import DEFAULT_MODEL
        from parotid_seg.runtime.infer import InferOptions
        from parotid_seg.runtime.infer import infer as run
        from parotid_seg.runtime.load import load_backend, output_for

        options = InferOptions(batch_size, workers, flips, clean_up, pictures, overwrite, report)
        with following(quiet) as line:

            def progress(outcome: Outcome) -> None:
                if outcome.status == "failed":
                    line.error(outcome.entry.reason)
                else:
                    line.say(outcome_text(outcome))
                line.advance(outcome.total)

            def load() -> Backend:
                file = runnable(model or DEFAULT_MODEL, backend, report=line.say, progress=line.phase)
                return load_backend(
                    file,
                    backend,
                    device,
                    output=output_for(file, flips, line.say),
                    allow_unverified=allow_unverified,
                    say=line.say,
                )

            summary = run(scans, out, load, options, say=line.say, progress=progress)
            counts = f"{summary.done} done, {summary.skipped} done before, {summary.failed} failed"
            results = "masks, summary.csv and report.html" if report else "masks and summary.csv"
            line.say(f"{counts}; {results} in {out}")
    raise typer.Exit(summary.exit_status)


@app.command(epilog="Example: parotid-seg train Dataset101/ --out runs/compact --preset compact")
def train(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Data set in nnU-Net's raw layout.")],
    out: Annotated[Path, typer.Option("--out", metavar="RUN", help="Folder for checkpoints, metrics and pictures.")],
    preset: Annotated[
        str,
        typer.Option(
            "--preset", help="compact (the packaged model's) or paper (Swin-T widths, 224 px, the published schedule)."
        ),
    ] = "compact",
    config: Annotated[Path | None, typer.Option("--config", metavar="FILE", help="TOML over the preset.")] = None,
    stages: Annotated[
        str | None,
        typer.Option(
            "--stages",
            metavar="LIST",
            help="Some of organs,contrast,dense,segment in this order: pre-training on DATA/organsTr, contrast of the "
            "encoder and then of the decoder on scans without labels, the labels. Default: contrast,segment.",
        ),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            "--init",
            metavar="NAME_OR_FILE",
            help="Start of the first stage: scratch, imagenet (timm), or a weights file. Default: the preset's.",
        ),
    ] = None,
    transfer: Annotated[
        str | None,
        typer.Option(
            "--transfer",
            metavar="PARTS",
            help="Parts that a stage with labels takes from its start: encoder, decoder or encoder,decoder (default).",
        ),
    ] = None,
    labelled: Annotated[
        int | None, typer.Option("--labelled", metavar="N", help="Use N of the labelled patients, drawn by the seed.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="Default: the preset's.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from RUN/last.pt.")] = False,
    max_minutes: Annotated[
        float | None,
        typer.Option(
            "--max-minutes", metavar="N", help="Stop after the first epoch that ends later; --resume goes on."
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Train the model on labelled scans, and before that on scans without labels.

    Contrast uses the scans of all training patients and of DATA/imagesUn. An earlier stage is kept in RUN/STAGE.
    Several GPUs or machines: torchrun --nproc-per-node N -m parotid_seg train DATA --out RUN.

    Writes RUN/best.pt (best on the validation patients), RUN/last.pt (to resume), RUN/config.toml (resolved),
    RUN/metrics.jsonl, RUN/curves.png and RUN/samples.png. With a start, RUN/transfer.json tells of every weight whether
    it was taken, and why not. Needs the extra: pip install 'parotid-seg[train]'.
    """
    with _one_line_errors("--resume goes on after the last finished epoch"), _extra("train"), following(quiet) as line:
        from parotid_seg.train.settings import load_config
        from parotid_seg.train.stages import train as run

        asked = {"seed": seed, "init": init, "stages": _listed(stages), "transfer": _listed(transfer)}
        settings = load_config(preset, config, **{name: value for name, value in asked.items() if value is not None})
        run(
            settings,
            data,
            out,
            labelled=labelled,
            device=device,
            resume=resume,
            max_minutes=max_minutes,
            report=line.say,
        )


@app.command(epilog="Example: parotid-seg export runs/compact/best.pt --out parotid-ct.onnx --precision auto")
def export(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="best.pt or last.pt of a training run.")],
    out: Annotated[Path, typer.Option("--out", metavar="MODEL.onnx", help="The model file to make.")],
    precision: Annotated[
        str,
        typer.Option(
            "--precision",
            help="Type the network computes in: fp32, fp16, int8, or auto for the fastest on this CPU that passes.",
        ),
    ] = "fp32",
    weights: Annotated[
        str, typer.Option("--weights", help="Type the weights of an fp32 network are stored in: fp16 or fp32.")
    ] = "fp16",
    verify: Annotated[
        Path | None,
        typer.Option(
            "--verify",
            metavar="DIR",
            help="Scans for the parity gate, and to calibrate int8 on; contours are used if they are there. "
            "Default for CT: the example scan.",
        ),
    ] = None,
    batch: Annotated[
        tuple[int, int, int],
        typer.Option(
            "--batch", metavar="MIN OPT MAX", help="Slices at once that the gate tries and an engine is built for."
        ),
    ] = (1, 16, 16),
    engine: Annotated[
        str,
        typer.Option(
            "--engine", help="Build an engine, too: none, tensorrt (needs the GPU), or tensorrt-rtx (needs none)."
        ),
    ] = "none",
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Give the model a second output: class probabilities.")
    ] = False,
    workspace_mib: Annotated[
        int | None,
        typer.Option("--workspace-mib", metavar="N", help="Engine: most memory a layer may take for itself."),
    ] = None,
    runs_on: Annotated[
        str | None,
        typer.Option(
            "--runs-on",
            help="Engine: this-gpu (default of tensorrt), same-capability, or ampere-plus (default of tensorrt-rtx).",
        ),
    ] = None,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Engine: let later versions of TensorRT run it, too.")
    ] = False,
    timing_cache: Annotated[
        Path | None,
        typer.Option("--timing-cache", metavar="FILE", help="Engine: keep how fast kernels were for the next build."),
    ] = None,
    triton: Annotated[
        Path | None,
        typer.Option("--triton", metavar="DIR", help="Write a model repository for Triton Inference Server as well."),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Turn a checkpoint into one self-describing ONNX file, proven to be the same model.

    The file and the trained model segment the same scans, at several native sizes and batch sizes. If their masks
    differ by more than the gate allows, or the network does not compute in the precision asked for, the file is not
    written and the exit status is 1. MODEL.parity.json holds the comparison, MODEL.parity.png shows where a failed one
    differs. An engine is MODEL.engine with its sidecar MODEL.engine.json. Needs the extra:
    pip install 'parotid-seg[export]'; for engines also [tensorrt] or [rtx], for --triton also [triton].
    """
    with _one_line_errors(), _extra("export"), following(quiet) as line:
        from parotid_seg.export.export import ExportOptions
        from parotid_seg.export.export import export as run
        from parotid_seg.runtime.engine_file import BatchProfile, EngineOptions

        options = ExportOptions(
            precision=precision,
            weights=weights,
            verify=verify,
            batch=BatchProfile(*batch),
            probabilities=probabilities,
            engine=engine,
            engine_options=EngineOptions(workspace_mib, runs_on, version_compatible),
            timing_cache=timing_cache,
            triton=triton,
        )
        run(checkpoint, out, options, report=line.say, progress=line.phase)
        line.say(f"wrote {out}")


@app.command(epilog="Example: parotid-seg evaluate masks/ labelsTs/ --out scores.json")
def evaluate(
    predictions: Annotated[Path, typer.Argument(metavar="PREDICTIONS", help="Folder of masks, or one mask.")],
    references: Annotated[Path, typer.Argument(metavar="REFERENCES", help="Folder of reference masks, or one mask.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.json", help="Write all figures here as well.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Compare masks with reference masks: per case and label, and the mean with its 95 % bootstrap interval.

    DSC, MPA, mAcc, MIoU, HD and HD95 in mm, volume difference in ml; docs/metrics.md defines them.
    """
    with _one_line_errors():
        from parotid_seg.files import write_text
        from parotid_seg.runtime.evaluate import evaluate as run

        result = run(predictions, references)
        if out is not None:
            write_text(result.to_json(), out)
        if not quiet:
            print_evaluation(result)


bench_app = typer.Typer(invoke_without_command=True, epilog="Example: parotid-seg bench --out speed/")
app.add_typer(bench_app, name="bench")


@bench_app.callback()
def bench(
    context: typer.Context,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder for bench.json, bench.md and bench.png.")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option("--model", metavar="FILE", help="Model file (.onnx) or engine. Default: the packaged CT model."),
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(
            "--backend",
            metavar="NAME",
            help="onnxruntime, openvino, tensorrt or tensorrt-rtx; repeatable. Default: all that can be used here.",
        ),
    ] = None,
    device: Annotated[
        str, typer.Option("--device", help="auto (the CPU, and the first GPU if there is one), cpu, cuda or cuda:N.")
    ] = "auto",
    batch_sizes: Annotated[
        str | None, typer.Option("--batch-sizes", metavar="LIST", help="Slices at once. Default: 1,4,16,64.")
    ] = None,
    scans: Annotated[
        Path | None,
        typer.Option("--scans", metavar="DIR", help="Scans to measure with. Default for CT: the example scan."),
    ] = None,
    minutes: Annotated[
        float,
        typer.Option("--minutes", metavar="N", help="Most time for the turns; whole scans and the rest come on top."),
    ] = 3.0,
    layers: Annotated[bool, typer.Option("--layers", help="Tell where the time goes within the network.")] = False,
    quiet: Quiet = False,
) -> None:
    """Measure how fast a model runs here, by engine, precision and batch size, and where the time goes.

    Engines take turns, each in a process of its own: latency and slices a second by batch size, share of what the
    machine does at best, memory, cold and warm start, scans a second from file to mask with the time of every stage,
    and whether the masks are the model file's. 'parotid-seg bench compare OLD.json NEW.json' tells what got slower.
    Exit status: 0 all measured, 3 something was left out or gives other masks. Needs the extra:
    pip install 'parotid-seg[bench]'.
    """
    if context.invoked_subcommand is not None:
        return
    if out is None:
        raise UsageError("Missing option '--out'.")
    with _one_line_errors(), _extra("bench"), following(quiet) as line:
        from parotid_seg.bench.bench import BenchOptions
        from parotid_seg.bench.bench import bench as run
        from parotid_seg.bench.contestants import contestants
        from parotid_seg.bench.inputs import scans_for
        from parotid_seg.bench.picture import draw
        from parotid_seg.bench.report import report
        from parotid_seg.export.engine import runnable
        from parotid_seg.files import make_folder, write_text
        from parotid_seg.models import DEFAULT_MODEL

        options = BenchOptions(_sizes(batch_sizes), minutes, layers)
        file = model or DEFAULT_MODEL
        found, contract, gpu = contestants(
            file, backend or [], device, partial(runnable, report=line.say, progress=line.phase), line.say
        )
        measured_with = scans_for(scans, contract)
        make_folder(out)
        result = run(file, contract, found, measured_with, options, gpu=gpu, say=line.say, progress=line.phase)
        write_text(result.to_json(), out / "bench.json")
        write_text(report(result), out / "bench.md")
        draw(result, out / "bench.png")
        line.say(report(result))
        line.say(f"wrote bench.json, bench.md and bench.png in {out}")
    raise typer.Exit(0 if result.all_same else 3)


@bench_app.command(epilog="Example: parotid-seg bench compare before/bench.json after/bench.json")
def compare(
    old: Annotated[Path, typer.Argument(metavar="OLD.json", help="An earlier bench.json.")],
    new: Annotated[Path, typer.Argument(metavar="NEW.json", help="The bench.json to judge.")],
    quiet: Quiet = False,
) -> None:
    """Tell what got slower from one bench.json to another, beyond noise. Exit status 1 if anything did.

    Times count against the machine's own pace in the same run. Something is slower if the whole 95 % interval of the
    change is above 2 %; an engine or batch size that is gone counts as slower, too.
    """
    with _one_line_errors():
        from parotid_seg.bench.compare import compare_files

        found = compare_files(old, new)
        if not quiet:
            for text in found.lines():
                typer.echo(text)
    raise typer.Exit(1 if found.slower else 0)


@app.command(epilog="Example: parotid-seg inspect model.onnx")
def inspect(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A model (.onnx), an engine (.engine) or a scan (.nii, .nii.gz).")
    ],
) -> None:
    """Tell what a model, an engine or a scan is, and what would be done with it."""
    with _one_line_errors():
        from parotid_seg.runtime.inspect import inspect as run

        for label, value in run(file).items():
            typer.echo(f"{label + ':':<24} {value}")


@app.command()
def version() -> None:
    """Print the version."""
    from importlib import metadata

    typer.echo(f"parotid-seg {metadata.version('parotid-seg')}")


def _sizes(text: str | None) -> tuple[int, ...] | None:
    """Batch sizes."""
    words = _listed(text)
    try:
        return None if words is None else tuple(map(int, words))
    except ValueError:
        from parotid_seg.errors import InputError

        raise InputError(f"--batch-sizes: found {text!r}, expected whole numbers, as in 1,4,16") from None


def _listed(text: str | None) -> list[str] | None:
    """A comma-separated option as a list."""
    return None if text is None else [word.strip() for word in text.split(",")]


@contextlib.contextmanager
def _one_line_errors(interrupted: str = "") -> Iterator[None]:
    """The one place where errors a user can mend become a line on stderr and exit status 1.

    Args:
        interrupted: what is told after Ctrl-C.
    """
    try:
        yield
    except ParotidSegError as error:
        print_error(str(error))
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        print_error("; ".join(filter(None, ("interrupted", interrupted))))
        raise typer.Exit(130) from None


@contextlib.contextmanager
def _extra(name: str) -> Iterator[None]:
    """Name the extra to install when one of its packages is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("parotid_seg"):
            raise
        line = f"pip install 'parotid-seg[{name}]'"
        raise ParotidSegError(f"the package {error.name} is missing, which this command needs: {line}") from error


def main() -> None:
    """Entry point of the `parotid-seg` command; a wrong command line is one line and exit status 1, too."""
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except UsageError as error:
        print_error(f"{error.format_message()} (parotid-seg --help tells more)")
        sys.exit(1)
