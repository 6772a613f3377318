"""Options that choose a model and what runs it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from parotid_seg.errors import OptionError
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.options import Option, OptionGroup
from parotid_seg.runtime.engines.registry import ENGINES, engine_named, gpu_number


@dataclass(frozen=True)
class ModelOptions(OptionGroup, panel="Model and engine"):
    """Which model, and what runs it where."""

    model: Annotated[
        Path | None,
        Option("--model", "Model file (.onnx) or engine. Default: the packaged CT model.", metavar="FILE"),
    ] = None
    backend: Annotated[str, Option("--backend", f"auto, {', '.join(ENGINES)}.")] = "auto"
    device: Annotated[str, Option("--device", "auto, cpu, cuda or cuda:N.")] = "auto"
    triton: Annotated[
        str | None,
        Option("--triton", "Run the model on this Triton server (gRPC); all else stays here.", metavar="HOST:PORT"),
    ] = None
    triton_model: Annotated[
        str | None, Option("--triton-model", "The model's name there. Default: parotid-seg.", metavar="NAME")
    ] = None
    allow_unverified: Annotated[
        bool, Option("--allow-unverified", "Use a model that 'parotid-seg export' has not proven.")
    ] = False

    def __post_init__(self) -> None:
        """Check that the model runs either on a server or here.

        Raises:
            OptionError: if both are asked for, or for a backend, device or address that there cannot be.
        """
        super().__post_init__()
        engine_named(self.backend)
        gpu_number(self.device)
        if self.triton is None:
            if self.triton_model is not None:
                raise OptionError("--triton-model: names a model on a server, expected --triton HOST:PORT as well")
            return
        from parotid_seg.runtime.engines.triton import check_address

        check_address(self.triton)
        used = {
            "--model": self.model is not None,
            "--backend": self.backend != "auto",
            "--device": self.device != "auto",
        }
        if both := [option for option, is_given in used.items() if is_given]:
            raise OptionError(f"--triton: the server has the model and runs it, expected no {' and no '.join(both)}")

    @property
    def file(self) -> Path:
        """The model file."""
        return self.model or DEFAULT_MODEL
