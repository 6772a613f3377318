"""`parotid-seg export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from parotid_seg.commands.shared import Quiet, Verbose, extra, one_line_errors
from parotid_seg.terminal import following


def export(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="best.pt or last.pt of a training run.")],
    out: Annotated[Path, typer.Option("--out", metavar="MODEL.onnx", help="The model file to make.")],
    precision: Annotated[
        str,
        typer.Option(
            "--precision",
            help="Type the network computes in: fp32, fp16, int8, or auto for the fastest on this CPU that passes; "
            "int8 needs five scans or more in --verify.",
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
            help="Scans to compare export and checkpoint on, and to calibrate int8; contours are used if present. "
            "Default for CT: the example scan.",
        ),
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            "--calibrate",
            metavar="DIR",
            help="Labelled patients that the model was not trained on, ten or more (imagesTr, labelsTr), for the "
            "expected DSC of each gland and the operating range. With a folder masks in it, these are used: masks of a "
            "cross-validation.",
        ),
    ] = None,
    batch: Annotated[
        tuple[int, int, int] | None,
        typer.Option(
            "--batch",
            metavar="MIN OPT MAX",
            help="Numbers of slices at once to compare (default: 1 16 16), and to build an engine for (default: 1 64 "
            "256).",
        ),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            "--engine", help="Also build an engine: none, tensorrt (needs the GPU), or tensorrt-rtx (needs none)."
        ),
    ] = "none",
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Add class probabilities as a second output of the model.")
    ] = False,
    workspace_mib: Annotated[
        int | None,
        typer.Option("--workspace-mib", metavar="N", help="Engine: largest memory in MiB that a layer may use."),
    ] = None,
    runs_on: Annotated[
        str | None,
        typer.Option(
            "--runs-on",
            help="Engine: this-gpu (default of tensorrt), same-capability, or ampere-plus (default of tensorrt-rtx).",
        ),
    ] = None,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Engine: make it usable with later versions of TensorRT.")
    ] = False,
    timing_cache: Annotated[
        Path | None,
        typer.Option(
            "--timing-cache", metavar="FILE", help="Engine: file for kernel timings, reused by the next build."
        ),
    ] = None,
    triton: Annotated[
        Path | None,
        typer.Option("--triton", metavar="DIR", help="Also write a model repository for Triton Inference Server."),
    ] = None,
    triton_device: Annotated[
        str | None,
        typer.Option("--triton-device", help="Where that server runs the model: cuda (default), or cpu."),
    ] = None,
    quiet: Quiet = False,
    _verbose: Verbose = False,
) -> None:
    """Export a checkpoint to one self-describing ONNX file that is verified against the trained model.

    The file and the trained model segment the same scans, at several native sizes and batch sizes. If their masks
    differ by more than the tolerance, or the network does not compute in the requested precision, the file is not
    written and the exit status is 1. MODEL.parity.json holds the comparison; if it failed, MODEL.parity.png shows the
    differences. An engine is MODEL.engine with its sidecar MODEL.engine.json. Needs the extra:
    pip install 'parotid-seg[export]'; to build engines also [tensorrt] or [rtx], for --triton also [triton].
    """
    with one_line_errors(), extra("export"), following(quiet) as line:
        from parotid_seg.export.export import ExportOptions
        from parotid_seg.export.export import export as run
        from parotid_seg.files import check_not_read
        from parotid_seg.runtime.engines.engine_file import ENGINE_BATCH, BatchProfile, EngineOptions

        options = ExportOptions(
            precision=precision,
            weights=weights,
            verify=verify,
            calibrate=calibrate,
            batch=BatchProfile(*batch) if batch else BatchProfile(),
            engine_batch=BatchProfile(*batch) if batch else ENGINE_BATCH,
            probabilities=probabilities,
            engine=engine,
            engine_options=EngineOptions(workspace_mib, runs_on, version_compatible),
            timing_cache=timing_cache,
            triton=triton,
            triton_device=triton_device,
        )
        check_not_read(out, [checkpoint])
        run(checkpoint, out, options, report=line.say, progress=line.phase)
        line.say(f"wrote {out}")
