"""Trainings without their pictures, which take longer than an epoch of a few steps."""

from contextlib import ExitStack
from unittest import mock

from parotid_seg.train import contrast, loop, supervised

DRAWN = ((loop, "draw_curves"), (contrast, "draw_pairs"), (supervised, "draw_samples"))


def none_drawn() -> ExitStack:
    """Draw none from now on, until the result is closed."""
    patches = ExitStack()
    for module, name in DRAWN:
        patches.enter_context(mock.patch.object(module, name))
    return patches
