"""Options of a commissioning."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from parotid_seg.errors import OptionError
from parotid_seg.files import exists
from parotid_seg.options import Option, OptionGroup


@dataclass(frozen=True)
class CommissionOptions(OptionGroup, panel="Commissioning"):
    """What a model is compared with."""

    against: Annotated[
        Path | None,
        Option(
            "--against",
            "Another model file, or packaged: compare both on the same patients, and say which to use.",
            metavar="FILE",
        ),
    ] = None
    limits: Annotated[
        Path | None,
        Option(
            "--limits",
            "TOML with a table [limits], for example mean_dsc = 0.8, over the defaults, which are printed.",
            metavar="FILE",
        ),
    ] = None
    earlier: Annotated[
        Path | None,
        Option(
            "--earlier",
            "Folder of an earlier commissioning, or its commission.json: say what has drifted since. Default: the last "
            "one in DIR.",
            metavar="PATH",
        ),
    ] = None
    dose: Annotated[
        Path | None,
        Option(
            "--dose",
            "The planned dose of each patient by its name, RTDOSE or NIfTI in Gy: also compares mean doses.",
            metavar="PATH",
        ),
    ] = None

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            OptionError: for a dose that does not exist.
        """
        super().__post_init__()
        if self.dose and not exists(self.dose):
            raise OptionError(f"--dose: {self.dose}: no such file or folder")
