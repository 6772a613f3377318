"""What is measured: engines that are installed and run the model here, or those named by the user, on chunks of real
scans, and of noise in the same shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from parotid_seg.contract import Contract
from parotid_seg.errors import InputError, OptionError, ParotidSegError, ScanError
from parotid_seg.files import exists
from parotid_seg.runtime.engines.autotune import Candidate
from parotid_seg.runtime.engines.base import OUTPUTS
from parotid_seg.runtime.engines.gpu import find_gpu
from parotid_seg.runtime.engines.load import check_fit, gpu_index
from parotid_seg.runtime.engines.registry import AUTO, CPU, CUDA, ENGINE_FILE, ENGINES, Engine, Request, candidates
from parotid_seg.runtime.pipeline.discovery import example_for, find_scans
from parotid_seg.runtime.pipeline.sources import Scan, place_of, read_scan
from parotid_seg.runtime.segmentation.segment import prepare
from parotid_seg.scan.chunks import CroppedScan, Inputs, SliceChunker
from parotid_seg.wording import Say, some_of

Runnable = Callable[[Path, str], Path]
"""A model file and a backend's name to the file that this backend runs: `export.find_engine.runnable`."""
IN_ROTATION = 8
"""Different chunks of a batch size that follow each other, so that none is still in the processor's cache."""
MOST_SCANS = 8
"""Scans of which chunks are kept in memory."""


class Selection(NamedTuple):
    """The engines to measure.

    Attributes:
        candidates: the engines.
        contract: the model's.
        gpu: number of the GPU that takes part; None if none does.
    """

    candidates: list[Candidate]
    contract: Contract
    gpu: int | None


def select_engines(model: Path, backends: Sequence[str], device: str, runnable: Runnable, say: Say) -> Selection:
    """The engines, and what they have in common.

    Args:
        model: the .onnx or .engine file.
        backends: some of `registry.ENGINES`; none means all that can be used here.
        device: see `load_backend`; "auto" is the CPU and the first GPU.
        runnable: finds the file for a backend, see `Runnable`.
        say: called with one line about each thing that is not used.

    Raises:
        InputError: for a backend or device that does not exist, is not installed, or does not fit.
        ModelError: if the file is not a parotid-seg model.
    """
    for backend in backends:
        if backend not in ENGINES:
            raise OptionError(f"--backend: found {backend!r}, expected one of: {', '.join(ENGINES)}")
    engines = [ENGINES[backend] for backend in backends] or list(ENGINES.values())
    index = gpu_index(device)
    for backend in backends if model.suffix == ENGINE_FILE else ():
        check_fit(model, backend, device)
    contract = check_fit(model, AUTO, device)[1]
    request = Request(model, contract, index, None, OUTPUTS[0], say)
    if model.suffix == ENGINE_FILE:
        request = replace(request, gpu=index or 0)
        if find_gpu(index or 0) is None:
            raise OptionError(f"{model.name}: an engine, which runs on NVIDIA GPUs, found none")
        return Selection(candidates(request), contract, request.gpu)
    on_gpu = (
        [] if device == CPU else _on_gpu(replace(request, gpu=index or 0), engines, bool(backends), device, runnable)
    )
    on_cpu = candidates(replace(request, gpu=None), engines) if device in (AUTO, CPU) else []
    selected = on_cpu + on_gpu
    for engine in engines if backends else ():
        if not any(candidate.backend == engine.name for candidate in selected):
            if device in (AUTO, CPU) and CPU in engine.devices:
                engine.implementation().load(replace(request, gpu=None))  # its error says what is missing
            raise OptionError(f"--backend {engine.name}: {_why_not_measured(engine, model, device)}")
    return Selection(selected, contract, (index or 0) if on_gpu else None)


def _why_not_measured(engine: Engine, model: Path, device: str) -> str:
    if device == CPU and CPU not in engine.devices:
        return f"runs on NVIDIA GPUs, found --device {device}"
    if device.startswith(CUDA) and CUDA not in engine.devices:
        return f"runs on the CPU, found --device {device}"
    return (
        f"not measured with {model.name}, as 'infer --backend auto' does not choose it: its masks of such a model have "
        "not been verified"
    )


def _on_gpu(
    request: Request, engines: Sequence[Engine], named: bool, device: str, runnable: Runnable
) -> list[Candidate]:
    """The engines that run the model file on the GPU, and engine files that were named or lie beside the model."""
    runs_files = [engine for engine in engines if engine.runs == ENGINE_FILE]
    assert request.gpu is not None
    if find_gpu(request.gpu) is None:
        if named and runs_files:
            raise OptionError(f"--backend {runs_files[0].name}: runs on NVIDIA GPUs, found none")
        return []
    selected: list[Candidate] = []
    try:
        selected += candidates(request, engines)
    except ParotidSegError as error:
        if device != AUTO and named:
            raise
        request.say(f"{find_gpu(request.gpu)} is not used for the model file: {error}")
    beside = request.model.with_suffix(ENGINE_FILE)
    files = [runnable(request.model, engine.name) for engine in runs_files] if named else [beside]
    for file in (file for file in files if file.is_file()):
        selected += candidates(replace(request, model=file))
    return selected


def scans_for(folder: Path | None, contract: Contract, say: Say = lambda _: None) -> list[Scan]:
    """The scans to measure with: those of a folder that the model can segment, or the example scan.

    Args:
        folder: the folder; None for the example scan.
        contract: the model's.
        say: called with one line about each scan that is not used.

    Raises:
        InputError: if there is no such scan, or the example scan does not fit the model.
    """
    if folder is not None and not exists(folder):
        raise OptionError(f"--scans: {folder}: no such file or folder")
    scans, errors = find_scans([folder or example_for(contract.channels, "--scans") / "imagesTr"], contract.channels)
    for scan in scans:
        if not all(isinstance(source, Path) for source in scan):
            raise InputError(f"--scans: {place_of(scan[0])}: a DICOM series, expected NIfTI files to measure with")
    usable = []
    for scan in scans:
        try:
            prepare(read_scan(scan).volume, contract)
            usable.append(scan)
        except ScanError as error:
            errors.append(ScanError(error.reason, path=error.path or place_of(scan[0])))
    if not usable:
        raise InputError(f"--scans: {some_of(map(str, errors), separator='; ')}")
    for each in errors:
        say(f"not measured with: {each}")
    return usable


def in_memory(scans: Sequence[Scan], contract: Contract) -> list[CroppedScan]:
    """Scans, as far as the model's grid covers them.

    Raises:
        ScanError: if one cannot be read or does not fit the model.
    """
    return [prepare(read_scan(scan).volume, contract).crop_to_grid() for scan in scans]


class Rotation(NamedTuple):
    """Chunks that follow each other.

    Attributes:
        chunks: different ones of one shape.
        scans: indices of the scans that they are of.
    """

    chunks: list[Inputs]
    scans: set[int]


def rotation(scans: Sequence[CroppedScan], contract: Contract, batch_size: int) -> Rotation:
    """Different chunks of a batch size and of one shape, from all along the scans; none if no scan is long enough."""
    by_shape: dict[tuple[tuple[int, ...], ...], list[tuple[Inputs, int]]] = {}
    for number, scan in enumerate(scans):
        cutter = SliceChunker(scan, contract.grid)
        last = cutter.depth - batch_size * cutter.step
        for start in np.unique(np.linspace(0, last, 8 * IN_ROTATION).astype(int)) if last >= 0 else ():
            inputs = cutter.chunk(int(start), batch_size).inputs
            by_shape.setdefault(tuple(array.shape for array in inputs.values()), []).append((inputs, number))
    most = max(by_shape.values(), key=len, default=[])
    places = np.unique(np.linspace(0, len(most) - 1, IN_ROTATION).astype(int)) if most else ()
    return Rotation([most[place][0] for place in places], {most[place][1] for place in places})


def noise_like(chunks: Sequence[Inputs]) -> list[Inputs]:
    """The same chunks with noise in place of intensities, within the model's windows."""
    random = np.random.default_rng(0)
    noise_chunks: list[Inputs] = []
    for chunk in chunks:
        low, high = (chunk["window"][:, side].reshape(-1, 1, 1, 1) for side in (0, 1))
        slices = random.uniform(low, high, chunk["slices"].shape).astype(np.float16)
        noise_chunks.append({**chunk, "slices": slices})
    return noise_chunks
