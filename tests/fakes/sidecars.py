"""Sidecars of engines that nobody built."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from parotid_seg.contract import Contract
from parotid_seg.runtime.engines.engine_file import BatchProfile, EngineOptions, Sidecar, sidecar_path


def write_sidecar(engine: Path, contract: Contract, **told: Any) -> None:
    """The sidecar of an engine of TensorRT, or one that tells something else."""
    sidecar = Sidecar(
        contract=contract,
        precision="fp32",
        onnx_name="parotid-ct.onnx",
        onnx_sha256="0" * 64,
        library="tensorrt",
        library_version="10.13.0",
        gpu="Some GPU",
        compute_capability=(8, 9),
        cuda="13.0",
        batch=BatchProfile(),
        shapes={},
        options=EngineOptions(),
        engine_sha256=hashlib.sha256(engine.read_bytes()).hexdigest(),
    )
    sidecar_path(engine).write_text(dataclasses.replace(sidecar, **told).to_json())
