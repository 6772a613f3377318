"""Options that choose a model, an engine and a device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from parotid_seg.errors import OptionError
from parotid_seg.models import model_file
from parotid_seg.options import Option, OptionGroup
from parotid_seg.runtime.engines.registry import ENGINES, engine_named, gpu_number

ModelFile = Annotated[
    Path | None,
    Option("--model", "Model file (.onnx) or engine. Default: packaged, the CT model of this package.", metavar="FILE"),
]
"""The option that names the model."""


@dataclass(frozen=True)
class ModelOptions(OptionGroup, panel="Model and engine"):
    """The model, and the engine and device that run it."""

    model: ModelFile = None
    backend: Annotated[
        str,
        Option(
            "--backend", f"Engine: auto (the fastest here whose masks are within the tolerance), {', '.join(ENGINES)}."
        ),
    ] = "auto"
    device: Annotated[str, Option("--device", "Where the engine runs: auto, cpu, cuda or cuda:N.")] = "auto"
    triton: Annotated[
        str | None,
        Option(
            "--triton", "Run the model on this Triton server (gRPC); everything else runs locally.", metavar="HOST:PORT"
        ),
    ] = None
    triton_model: Annotated[
        str | None, Option("--triton-model", "The model's name on the server. Default: parotid-seg.", metavar="NAME")
    ] = None
    allow_unverified: Annotated[
        bool, Option("--allow-unverified", "Use a model that 'parotid-seg export' has not verified.")
    ] = False

    def __post_init__(self) -> None:
        """Check that the model runs either on a server or locally.

        Raises:
            OptionError: if both are requested, or for an invalid backend, device or address.
        """
        super().__post_init__()
        engine_named(self.backend)
        gpu_number(self.device)
        if self.triton is None:
            if self.triton_model is not None:
                raise OptionError("--triton-model: names a model on a server, expected --triton HOST:PORT as well")
            return
        from parotid_seg.runtime.engines.triton_client import check_address

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
        return model_file(self.model)

    @property
    def name(self) -> str:
        """The model's name for readers: of its file, or on the server."""
        if self.triton is None:
            return self.file.name
        from parotid_seg.runtime.engines.triton_client import DEFAULT_MODEL_NAME

        return f"{DEFAULT_MODEL_NAME if self.triton_model is None else self.triton_model} on {self.triton}"
