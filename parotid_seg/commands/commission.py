"""`parotid-seg commission`."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from parotid_seg.commands.option_parameters import with_options
from parotid_seg.commands.shared import Quiet, UsageError, Verbose, one_line_errors
from parotid_seg.commands.terminal import following, print_commission
from parotid_seg.commission.commission_options import CommissionOptions
from parotid_seg.errors import MissingModelError, OptionError
from parotid_seg.files import exists
from parotid_seg.models import title_of
from parotid_seg.runtime.engines.model_options import ModelOptions
from parotid_seg.runtime.segmentation.segmentation_options import SegmentationOptions

if TYPE_CHECKING:
    from parotid_seg.commands.terminal import Line
    from parotid_seg.commission.commissioning import Order, RunnableModel
    from parotid_seg.runtime.engines.base import Backend
    from parotid_seg.runtime.pipeline.infer_options import InferOptions
    from parotid_seg.runtime.pipeline.run import Outcome


@with_options
def commission(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="Labelled patients in nnU-Net's raw layout: dataset.json, imagesTr, labelsTr (or imagesTs, labelsTs).",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the report and the masks.")],
    options: CommissionOptions,
    model: ModelOptions,
    segmentation: SegmentationOptions,
    quiet: Quiet = False,
    _verbose: Verbose = False,
) -> None:
    """Test a model on your own labelled patients: is it good enough here, and is it still the same?

    Segments them as infer does, and writes DIR/report.html and DIR/commission.json: limits met or missed, all figures
    of evaluate with intervals, faults such as exchanged sides, the worst patients in pictures, and what differs from an
    earlier run. Test patients are those of the list "test" in DATA/splits.json, else imagesTs with labels, else all of
    imagesTr. A run that was interrupted goes on with the same command; after one that is complete, everything is done
    again and compared. Exit status: 0 all limits met and no fault found, 1 nothing done, 2 wrong option or argument,
    4 a limit missed or a fault found, 130 interrupted.
    """
    with one_line_errors("finished masks are kept, and the same command goes on"):
        from parotid_seg.commission.commissioning import commission as run

        if options.against is not None and model.triton is not None:
            raise UsageError("--against: runs a second model here, expected no --triton")
        with following(quiet) as line:

            def progress(outcome: Outcome) -> None:
                line.case(outcome)
                line.phase("scans", outcome.number, outcome.total)

            record = run(_order(data, out, options, model, segmentation, line), say=line.say, progress=progress)
        if not quiet:
            print_commission(record, out)
    raise typer.Exit(record.exit_status)


def _order(
    data: Path,
    out: Path,
    options: CommissionOptions,
    model: ModelOptions,
    segmentation: SegmentationOptions,
    line: Line,
) -> Order:
    """What the command line asks for; what it names is read and checked before anything is computed."""
    from parotid_seg.commission.commissioning import Order
    from parotid_seg.commission.labelled import LABELLED_FOLDERS, choose
    from parotid_seg.commission.limits import read_limits
    from parotid_seg.commission.record import read_commission
    from parotid_seg.runtime.pipeline.infer_options import InferOptions

    there, place = data.resolve(), out.resolve()
    if place == there or any(place.is_relative_to(there / folder) for folder in LABELLED_FOLDERS):
        raise OptionError(f"--out: {out}: belongs to the data set, expected another folder")
    with_segmentation = InferOptions(**vars(segmentation))
    earlier = None
    if options.earlier is not None and not _is_in(options.earlier, out):
        earlier = read_commission(options.earlier)
    other = None
    if options.against is not None:
        same = ModelOptions(options.against, model.backend, model.device, allow_unverified=model.allow_unverified)
        other = _model(same, with_segmentation, line)
    return Order(
        limits=read_limits(options.limits, dose=options.dose is not None),
        chosen=choose(data),
        out=out,
        model=_model(model, with_segmentation, line),
        against=other,
        earlier=earlier,
        dose=options.dose,
        options=with_segmentation,
    )


def _is_in(earlier: Path, out: Path) -> bool:
    """Whether the earlier commissioning is the last one in the output folder, which is compared anyway."""
    return (earlier if earlier.is_dir() else earlier.parent).resolve() == out.resolve()


def _model(model: ModelOptions, options: InferOptions, line: Line) -> RunnableModel:
    """A model, which is loaded when it is first needed, and only once.

    Raises:
        MissingModelError: if there is no such file.
    """
    from parotid_seg.commands.model import load_model
    from parotid_seg.commission.commissioning import RunnableModel
    from parotid_seg.runtime.pipeline.executor import LocalExecutor

    if model.triton is None and not exists(model.file):
        raise MissingModelError("no such file, expected a model", path=model.file)

    @cache
    def load() -> Backend:
        return load_model(model, tta=options.tta, say=line.say, progress=line.phase)

    name = title_of(model.model) if model.triton is None else f"the model served at {model.triton}"
    return RunnableModel(name, lambda: LocalExecutor(load, options, line.say))
