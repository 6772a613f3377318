"""Options that say how a checkpoint becomes a model file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from parotid_seg.errors import OptionError
from parotid_seg.files import exists
from parotid_seg.options import Option, OptionGroup
from parotid_seg.runtime.engines.tensorrt.library import LIBRARIES

if TYPE_CHECKING:
    from parotid_seg.runtime.engines.engine_file import BatchProfile, EngineOptions

AUTO, NONE = "auto", "none"
WEIGHT_TYPES = ("fp16", "fp32")
ENGINES = (NONE, *LIBRARIES)
DEVICES = ("cuda", "cpu")
"""Where a Triton server may run a model, the default first."""


@dataclass(frozen=True)
class ExportOptions(OptionGroup, panel="Options"):
    """The model file, the scans that verify it, and what else is made of it."""

    precision: Annotated[
        str,
        Option(
            "--precision",
            "Type the network computes in: fp32, fp16, int8, or auto for the fastest on this CPU that passes; "
            "int8 needs five scans or more in --verify.",
        ),
    ] = "fp32"
    weights: Annotated[str, Option("--weights", "Type the weights of an fp32 network are stored in: fp16 or fp32.")] = (
        "fp16"
    )
    verify: Annotated[
        Path | None,
        Option(
            "--verify",
            "Scans to compare export and checkpoint on, and to calibrate int8; contours are used if present. "
            "Default for CT: the example scan.",
            metavar="DIR",
        ),
    ] = None
    calibrate: Annotated[
        Path | None,
        Option(
            "--calibrate",
            "Labelled patients that the model was not trained on, ten or more (imagesTr, labelsTr), for the "
            "expected DSC of each gland and the operating range. With a folder masks in it, these are used: masks of a "
            "cross-validation.",
            metavar="DIR",
        ),
    ] = None
    batch_sizes: Annotated[
        tuple[int, int, int] | None,
        Option(
            "--batch",
            "Numbers of slices at once to compare (default: 1 16 16), and to build an engine for (default: 1 64 256).",
            metavar="MIN OPT MAX",
        ),
    ] = None
    engine: Annotated[
        str,
        Option("--engine", "Also build an engine: none, tensorrt (needs the GPU), or tensorrt-rtx (needs none)."),
    ] = NONE
    probabilities: Annotated[
        bool, Option("--probabilities", "Add class probabilities as a second output of the model.")
    ] = False
    workspace_mib: Annotated[
        int | None,
        Option("--workspace-mib", "Engine: largest memory in MiB that a layer may use.", metavar="N"),
    ] = None
    runs_on: Annotated[
        str | None,
        Option(
            "--runs-on",
            "Engine: this-gpu (default of tensorrt), same-capability, or ampere-plus (default of tensorrt-rtx).",
        ),
    ] = None
    version_compatible: Annotated[
        bool, Option("--version-compatible", "Engine: make it usable with later versions of TensorRT.")
    ] = False
    timing_cache: Annotated[
        Path | None,
        Option("--timing-cache", "Engine: file for kernel timings, reused by the next build.", metavar="FILE"),
    ] = None
    triton: Annotated[
        Path | None,
        Option("--triton", "Also write a model repository for Triton Inference Server.", metavar="DIR"),
    ] = None
    triton_device: Annotated[
        str | None, Option("--triton-device", "Where that server runs the model: cuda (default), or cpu.")
    ] = None

    def __post_init__(self) -> None:
        """Check that the options are possible, and fit each other.

        Raises:
            OptionError: if not.
        """
        from parotid_seg.contract import PRECISIONS

        super().__post_init__()
        choices = (("precision", (*PRECISIONS, AUTO)), ("weights", WEIGHT_TYPES), ("engine", ENGINES))
        for name, allowed in choices:
            if getattr(self, name) not in allowed:
                raise OptionError(f"--{name}: found {getattr(self, name)!r}, expected one of: {', '.join(allowed)}")
        for option, place in (("--verify", self.verify), ("--calibrate", self.calibrate)):
            if place is not None and not exists(place):
                raise OptionError(f"{option}: {place}: no such file or folder")
        if self.triton_device not in (None, *DEVICES):
            raise OptionError(f"--triton-device: found {self.triton_device!r}, expected one of: {', '.join(DEVICES)}")
        if self.triton_device is not None and self.triton is None:
            raise OptionError("--triton-device: says where a model of --triton runs, expected --triton with it")
        if self.probabilities and self.triton is not None:
            raise OptionError("--probabilities: a server gives labels only, expected no --triton with it")
        if self.triton_device == "cpu" and self.engine == "tensorrt":
            raise OptionError("--triton-device: found cpu, but --engine tensorrt makes an engine, which needs cuda")
        self._check_used()
        _ = self.batch, self.engine_options

    def _check_used(self) -> None:
        """Raise OptionError for an option that would change nothing."""
        of_engines = {
            "--workspace-mib": self.workspace_mib is not None,
            "--runs-on": self.runs_on is not None,
            "--version-compatible": self.version_compatible,
            "--timing-cache": self.timing_cache is not None,
        }
        if self.engine == NONE and (given := [name for name, is_given in of_engines.items() if is_given]):
            raise OptionError(f"{given[0]}: is for engines, expected --engine with it")
        if self.weights != WEIGHT_TYPES[0] and self.precision not in ("fp32", AUTO):
            raise OptionError(
                f"--weights: found {self.weights}, but weights of {self.precision} networks are stored in "
                f"{self.precision}, expected --precision fp32 with it"
            )

    @property
    def batch(self) -> BatchProfile:
        """Numbers of samples at once that are compared."""
        from parotid_seg.runtime.engines.engine_file import BatchProfile

        return BatchProfile(*self.batch_sizes or ())

    @property
    def engine_batch(self) -> BatchProfile:
        """Numbers of samples at once that an engine is built for."""
        from parotid_seg.runtime.engines.engine_file import ENGINE_BATCH

        return self.batch if self.batch_sizes else ENGINE_BATCH

    @property
    def engine_options(self) -> EngineOptions:
        """How an engine is built."""
        from parotid_seg.runtime.engines.engine_file import EngineOptions

        return EngineOptions(self.workspace_mib, self.runs_on, self.version_compatible)
