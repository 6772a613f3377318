"""What determines the voxels of a mask besides the scan: model, precision, options, and the version of the rules."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Literal

from parotid_seg.options import Option, OptionGroup

Search = Literal["auto", "full"]

RULES_VERSION = 8
"""Version of reading, locating, resampling and clean-up. It is part of the journal's key, so that cases are run again
after an upgrade that can change a mask, its geometry or its flags.

Raise it with every such change, and add the new version's results with `python -m tests.golden`.
`tests/golden/test_golden.py` fails if results change and this does not.
"""


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


def determined_by(model_sha256: str, precision: str, options: SegmentationOptions) -> tuple[str, ...]:
    """Texts on which masks depend: those of equal texts and scans are equal."""
    return (f"rules {RULES_VERSION}", model_sha256, precision, *options.fingerprint)
