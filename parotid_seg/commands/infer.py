"""`parotid-seg infer`."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from parotid_seg.cluster.cluster_options import ClusterOptions
from parotid_seg.commands.option_parameters import with_options
from parotid_seg.commands.shared import Quiet, UsageError, Verbose, one_line_errors
from parotid_seg.commands.terminal import following
from parotid_seg.imports import lighten_command, without_collections
from parotid_seg.runtime.engines.model_options import ModelOptions
from parotid_seg.runtime.pipeline.infer_options import InferOptions
from parotid_seg.runtime.pipeline.worker_process import started


@with_options
def infer(
    scans: Annotated[
        list[Path], typer.Argument(metavar="SCAN", help="NIfTI or NRRD files, DICOM series, or folders of them.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for masks, tables and the report.")],
    model: ModelOptions,
    options: InferOptions,
    on: ClusterOptions,
    quiet: Quiet = False,
    _verbose: Verbose = False,
) -> None:
    """Segment the parotid glands of scans.

    Writes DIR/CASE.nii.gz (labels on exactly the scan's voxels; with the packaged model 0 is background, 1 the left, 2
    the right parotid) or the formats of --format. DIR/summary.csv has a row per case with volumes, expected DSC and
    flags, DIR/results.json holds all cases of DIR for programs, DIR/report.html shows them, worst first, and
    DIR/run.json records the run. A model of several channels takes the files CASE_0000, CASE_0001 ... of a case
    together, or the MR series of a DICOM study. A rerun does only the missing cases. Exit status: 0 all done, 1 nothing
    done, 2 wrong option or argument, 3 some cases failed, 130 interrupted.
    """
    with one_line_errors("finished cases are kept"), started() if on.cluster is None else nullcontext() as workers:
        with without_collections():
            lighten_command()
            from parotid_seg.cluster.urls import url_of
            from parotid_seg.commands.model import load_model
            from parotid_seg.runtime.pipeline.run import infer as run
            from parotid_seg.system import return_freed_memory

            return_freed_memory()
        if on.cluster is not None and model.triton is not None:
            raise UsageError("--cluster: its hosts run the model, expected no --triton")
        if on.cluster is not None and options.dose is not None:
            raise UsageError("--cluster: its hosts read no doses, expected no --dose")
        if on.cluster is None and (url := next(filter(None, map(url_of, (*scans, out))), None)):
            raise UsageError(f"{url}: found a URL, expected --cluster with it (--cluster local for this machine)")
        with following(quiet) as line:
            if on.cluster is None:
                summary = run(
                    scans,
                    out,
                    without_collections()(
                        lambda: load_model(model, tta=options.tta, say=line.say, progress=line.phase)
                    ),
                    options,
                    model_name=model.name,
                    say=line.say,
                    progress=line.case,
                    workers=workers,
                )
            else:
                from parotid_seg.cluster.ray_executor import infer_on_cluster

                summary = infer_on_cluster(scans, out, model, on, options, say=line.say, progress=line.case)
            url = url_of(out)
            results = "masks, summary.csv and report.html" if options.report and not url else "masks and summary.csv"
            line.say(f"{summary}; {results} in {url or out}")
    raise typer.Exit(summary.exit_status)
