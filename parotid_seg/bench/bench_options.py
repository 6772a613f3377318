"""Options that say what is measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from parotid_seg.errors import OptionError
from parotid_seg.options import Option, OptionGroup, comma_separated
from parotid_seg.runtime.engines.model_options import ModelFile
from parotid_seg.runtime.engines.registry import ENGINES


def _sizes(text: str) -> tuple[int, ...]:
    """Batch sizes.

    Raises:
        OptionError: for anything but whole numbers.
    """
    words = comma_separated(text)
    if not all(word.isascii() and word.isdecimal() for word in words):
        raise OptionError(f"--batch-sizes: found {text!r}, expected whole numbers, as in 1,4,16")
    return tuple(map(int, words))


@dataclass(frozen=True)
class BenchOptions(OptionGroup, panel="Options"):
    """The model and the engines that are measured, and how."""

    model: ModelFile = None
    backends: Annotated[
        tuple[str, ...],
        Option(
            "--backend",
            f"{', '.join(ENGINES)}. May be given several times. Default: all that can be used here.",
            metavar="NAME",
        ),
    ] = ()
    device: Annotated[
        str, Option("--device", "auto (the CPU, and the first GPU if there is one), cpu, cuda or cuda:N.")
    ] = "auto"
    batch_sizes: Annotated[
        tuple[int, ...] | None,
        Option("--batch-sizes", "Slices at once. Default: 1,4,16,64.", metavar="LIST", parse=_sizes),
    ] = None
    scans: Annotated[
        Path | None, Option("--scans", "NIfTI scans to measure with. Default for CT: the example scan.", metavar="DIR")
    ] = None
    minutes: Annotated[
        float,
        Option(
            "--minutes",
            "Longest time to measure batches; whole scans and the comparison of masks come on top.",
            metavar="N",
            least=0,
        ),
    ] = 3.0
    layers: Annotated[bool, Option("--layers", "Also time the layers of the network.")] = False

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            OptionError: for a batch size below 1, or no time.
        """
        super().__post_init__()
        for size in self.batch_sizes or ():
            if size < 1:
                raise OptionError(f"--batch-sizes: found {size}, expected at least 1")
        if not self.minutes > 0:
            raise OptionError(f"--minutes: found {self.minutes:g}, expected more than 0")
