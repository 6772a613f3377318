"""Load the model that a command's options name."""

from __future__ import annotations

from parotid_seg.export.find_engine import runnable
from parotid_seg.runtime.engines.base import Backend
from parotid_seg.runtime.engines.load import load_backend, output_for
from parotid_seg.runtime.engines.model_options import ModelOptions
from parotid_seg.wording import Progress, Say


def load_model(options: ModelOptions, *, tta: bool, say: Say, progress: Progress | None = None) -> Backend:
    """Load a model, here or on a server; an engine that is missing or does not fit is built first.

    Args:
        options: which model, and how to run it.
        tta: whether each scan's mirror image is segmented, too.
        say: called with lines for the user.
        progress: called while an engine is built, see `build_engine`.

    Raises:
        ParotidSegError: as `runnable`, `load_backend` and `TritonBackend`.
    """
    if options.triton is None:
        file = runnable(options.file, options.backend, options.device, report=say, progress=progress)
        return load_backend(
            file,
            options.backend,
            options.device,
            output=output_for(file, tta, say),
            allow_unverified=options.allow_unverified,
            say=say,
        )
    from parotid_seg.runtime.engines.triton_client import DEFAULT_MODEL_NAME, TritonBackend

    name = DEFAULT_MODEL_NAME if options.triton_model is None else options.triton_model
    served = TritonBackend(options.triton, name, allow_unverified=options.allow_unverified)
    if tta:
        say(
            "a served model gives no probabilities to average: --tta only reports how certain the masks are and does "
            "not change them"
        )
    return served
