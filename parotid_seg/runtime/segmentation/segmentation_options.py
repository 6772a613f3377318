"""Options that determine the voxels of a mask."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Literal

from parotid_seg.options import Option, OptionGroup

Search = Literal["auto", "full"]


@dataclass(frozen=True)
class SegmentationOptions(OptionGroup, panel="Segmentation"):
    """How a scan becomes labels. Every field belongs to the fingerprint of a finished case."""

    clean_up: Annotated[
        bool, Option("--clean-up/--no-clean-up", "Keep only the largest piece of each left or right structure.")
    ] = True
    tta: Annotated[
        bool,
        Option(
            ("--tta", "--flips"),
            "Test-time augmentation: also segment the mirror image, and report how far both agree on each gland. "
            "Takes twice the time. (--flips: its old name.)",
        ),
    ] = False
    search: Annotated[
        Search,
        Option(
            "--search",
            "auto: find the structures on a few slices first, wherever the head lies, then segment around them; "
            "full: segment every slice, around the middle of the body.",
        ),
    ] = "auto"

    @property
    def fingerprint(self) -> tuple[str, ...]:
        """The options that determine a mask."""
        return tuple(str(getattr(self, field.name)) for field in fields(SegmentationOptions))


DEFAULTS = SegmentationOptions()
