"""`parotid-seg infer`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from parotid_seg.commands.shared import Quiet, one_line_errors
from parotid_seg.errors import InputError
from parotid_seg.runtime.formats.registry import NIFTI, formats_help
from parotid_seg.terminal import following, outcome_text

if TYPE_CHECKING:
    from parotid_seg.runtime.engines.base import Backend
    from parotid_seg.runtime.pipeline.run import Outcome


def infer(
    scans: Annotated[
        list[Path], typer.Argument(metavar="SCAN...", help="NIfTI files, DICOM series, or folders of both.")
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
    triton: Annotated[
        str | None,
        typer.Option(
            "--triton", metavar="HOST:PORT", help="Run the model on this Triton server (gRPC); all else stays here."
        ),
    ] = None,
    triton_model: Annotated[
        str | None, typer.Option("--triton-model", metavar="NAME", help="The model's name there. Default: parotid-seg.")
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster",
            metavar="ADDRESS",
            help="Do the scans on a Ray cluster: HOST:PORT of its head, auto (the one this machine is in) or local "
            "(this machine's cores). SCAN and DIR may be URLs then (s3://, gs://).",
        ),
    ] = None,
    worker_cpus: Annotated[
        int | None,
        typer.Option("--worker-cpus", metavar="N", help="With --cluster: cores of each worker. Default: 1."),
    ] = None,
    worker_gpus: Annotated[
        float | None,
        typer.Option(
            "--worker-gpus",
            metavar="N",
            help="With --cluster: GPUs of each worker, or a share such as 0.25. Default: 1 with --device cuda.",
        ),
    ] = None,
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
            help="Most processes that read scans and write masks. Default: one a core, started as they are needed. "
            "With --cluster: most copies of the model, each with its own cores. Default: as many as there is room for.",
        ),
    ] = None,
    flips: Annotated[
        bool,
        typer.Option(
            "--tta",
            "--flips",
            help="Test-time augmentation: segment the mirror image, too, and report how far both agree on each gland. "
            "Twice the time. (--flips: its old name.)",
        ),
    ] = False,
    clean_up: Annotated[
        bool,
        typer.Option("--clean-up/--no-clean-up", help="Keep only the largest piece of each left or right structure."),
    ] = True,
    search: Annotated[
        str,
        typer.Option(
            "--search",
            help="auto: find the structures on a few slices first, wherever the head lies, then segment around them; "
            "full: segment every slice, around the middle of the body.",
        ),
    ] = "auto",
    pictures: Annotated[
        bool, typer.Option("--pictures/--no-pictures", help="Write an overlay picture of each case to DIR/pictures.")
    ] = True,
    report: Annotated[
        bool,
        typer.Option(
            "--report/--no-report",
            help="Write report.html, all cases of DIR with pictures, worst first.",
        ),
    ] = True,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            metavar="NAME",
            help=f"{formats_help()} May be given several times.",
        ),
    ] = None,
    append: Annotated[
        Path | None,
        typer.Option("--append", metavar="FILE", help="An RTSTRUCT of the scan whose structures the new one keeps."),
    ] = None,
    identify: Annotated[
        bool,
        typer.Option(
            "--identify",
            help="Show patients' names, IDs and birth dates of DICOM scans in summary.csv and the report: of the SCANs "
            "of this run, those done before, too. They are written nowhere else.",
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Redo cases that are done. Default: resume.")] = False,
    allow_unverified: Annotated[
        bool, typer.Option("--allow-unverified", help="Use a model that 'parotid-seg export' has not proven.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Segment the parotid glands of scans.

    Writes DIR/CASE.nii.gz (labels in exactly the scan's geometry; of the packaged model 0 background, 1 left, 2 right
    parotid) or the formats asked for, DIR/summary.csv (a row a case), DIR/results.json (all cases of DIR, for
    programs), DIR/run.json and DIR/report.html (the same for people, worst first). A model of several channels takes a
    case's files CASE_0000, CASE_0001 ... together, or the MR series of a DICOM study. A rerun does only what is
    missing. Exit status: 0 all done, 1 nothing done, 3 some cases failed, 130 interrupted.
    """
    with one_line_errors("finished cases are kept"):
        from parotid_seg.cluster.urls import url_of
        from parotid_seg.export.engine import runnable
        from parotid_seg.models import DEFAULT_MODEL
        from parotid_seg.runtime.engines.load import load_backend, output_for
        from parotid_seg.runtime.pipeline.run import InferOptions
        from parotid_seg.runtime.pipeline.run import infer as run
        from parotid_seg.runtime.pipeline.writers import Outputs

        _check_engine(triton, triton_model, model, backend, device)
        _check_cluster(cluster, triton, worker_cpus, worker_gpus, [*scans, out])
        outputs = Outputs(tuple(formats or (NIFTI,)), append)
        options = InferOptions(
            batch_size, workers, flips, clean_up, search, pictures, overwrite, report, outputs, identify
        )
        with following(quiet) as line:

            def progress(outcome: Outcome) -> None:
                if outcome.status == "failed":
                    line.error(outcome.entry.failure)
                else:
                    line.say(outcome_text(outcome))
                line.advance(outcome.total)

            def load() -> Backend:
                if triton is not None:
                    return _on_server(triton, triton_model, flips, allow_unverified, line.say)
                file = runnable(model or DEFAULT_MODEL, backend, report=line.say, progress=line.phase)
                return load_backend(
                    file,
                    backend,
                    device,
                    output=output_for(file, flips, line.say),
                    allow_unverified=allow_unverified,
                    say=line.say,
                )

            if cluster is None:
                summary = run(scans, out, load, options, say=line.say, progress=progress)
            else:
                from parotid_seg.cluster.cluster import ClusterOptions, infer_on_cluster, model_for_hosts

                file = model or DEFAULT_MODEL
                on_hosts = model_for_hosts(
                    file, backend, device, options, output_for(file, flips, line.say), allow_unverified
                )
                gpus = worker_gpus if worker_gpus is not None else float(on_hosts.device == "cuda")
                taken = ClusterOptions(cluster, workers, 1 if worker_cpus is None else worker_cpus, gpus)
                summary = infer_on_cluster(scans, out, on_hosts, taken, options, say=line.say, progress=progress)
            url = url_of(out)
            results = "masks, summary.csv and report.html" if report and not url else "masks and summary.csv"
            line.say(f"{summary}; {results} in {url or out}")
    raise typer.Exit(summary.exit_status)


def _check_engine(triton: str | None, triton_model: str | None, model: Path | None, backend: str, device: str) -> None:
    """Raise InputError if the model is to run both on a server and here, or the server's address is none."""
    if triton is None:
        if triton_model is not None:
            raise InputError("--triton-model: names a model on a server, expected --triton HOST:PORT as well")
        return
    from parotid_seg.runtime.engines.triton import check_address

    check_address(triton)
    given = {"--model": model is not None, "--backend": backend != "auto", "--device": device != "auto"}
    if both := [option for option, is_given in given.items() if is_given]:
        raise InputError(f"--triton: the server has the model and runs it, expected no {' and no '.join(both)}")


def _check_cluster(
    cluster: str | None, triton: str | None, cpus: int | None, gpus: float | None, paths: list[Path]
) -> None:
    """Raise InputError if something is given that says nothing without, or nothing with a cluster."""
    from parotid_seg.cluster.urls import url_of

    if cluster is not None:
        if triton is not None:
            raise InputError("--cluster: its hosts run the model, expected no --triton")
        return
    for option, given in (("--worker-cpus", cpus), ("--worker-gpus", gpus)):
        if given is not None:
            raise InputError(f"{option}: says what a worker of a cluster gets, expected --cluster ADDRESS as well")
    for url in filter(None, map(url_of, paths)):
        raise InputError(f"{url}: found a URL, expected --cluster with it (--cluster local for this machine)")


def _on_server(
    address: str, name: str | None, flips: bool, allow_unverified: bool, say: Callable[[str], None]
) -> Backend:
    """The model on a server; it gives labels only."""
    from parotid_seg.runtime.engines.triton import DEFAULT_MODEL_NAME, TritonBackend

    served = TritonBackend(address, DEFAULT_MODEL_NAME if name is None else name, allow_unverified=allow_unverified)
    if flips:
        say(
            "a served model gives no probabilities to average: --tta tells how certain the masks are and leaves them "
            "as they are"
        )
    return served
