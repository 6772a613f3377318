"""`parotid-seg listen`."""

from __future__ import annotations

import typer

from parotid_seg.commands.option_parameters import with_options
from parotid_seg.commands.shared import Quiet, Verbose, extra, one_line_errors
from parotid_seg.commands.terminal import print_error
from parotid_seg.node.listen_options import ListenOptions, Routine
from parotid_seg.runtime.engines.model_options import ModelOptions
from parotid_seg.runtime.segmentation.segmentation_options import SegmentationOptions


@with_options
def listen(
    options: ListenOptions,
    model: ModelOptions,
    segmentation: SegmentationOptions,
    quiet: Quiet = False,
    _verbose: Verbose = False,
) -> None:
    """Run a DICOM node: receive CT or MR series by C-STORE, segment them, and send an RTSTRUCT of each.

    DIR records what was received, segmented and sent, so that a node that was stopped or killed continues where it
    stopped. A series that fails does not stop the node. Each event is a line on stderr, without patient names. The node
    runs until SIGTERM or Ctrl-C. Needs the extra: pip install 'parotid-seg[node]'.
    """
    with one_line_errors("what was received is kept"), extra("node"):
        from parotid_seg.commands.model import load_model
        from parotid_seg.node.segmenting import segment_with, settings_of
        from parotid_seg.node.server import listen as run

        def say(text: str) -> None:
            if not (quiet and isinstance(text, Routine)):
                print_error(text)

        loaded = load_model(model, tta=segmentation.tta, say=lambda text: say(Routine(text)))
        settings = settings_of(loaded, segmentation)
        status = run(options, segment_with(loaded, segmentation), settings=settings, say=say)
    raise typer.Exit(status)
