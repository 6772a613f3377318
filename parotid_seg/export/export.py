"""`parotid-seg export`: checkpoint to a verified model file, which is written only if it passes."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import onnxruntime
import torch
from onnx import ModelProto

from parotid_seg.contract import Contract
from parotid_seg.errors import ModelError, OptionError
from parotid_seg.export.calibrate import calibrated_on
from parotid_seg.export.candidates import PRECISIONS, Candidate, fastest, make
from parotid_seg.export.engine import Progress, build_engine, ready_to_build
from parotid_seg.export.engine_layers import describe_network
from parotid_seg.export.engine_proof import prove_engine
from parotid_seg.export.onnx_file import WEIGHT_TYPES, halve_weights, to_onnx, with_contract
from parotid_seg.export.ops_by_dtype import of_layers, work_of
from parotid_seg.export.parity import Parity, scans_in
from parotid_seg.export.proof import COMPUTED_ON_THE_CPU, LEAST_SHARE, Proof, draw_failure, prove
from parotid_seg.export.triton import check_entry, write_repository
from parotid_seg.export.triton_config import DEVICES, Serving
from parotid_seg.files import atomic_write, make_folder
from parotid_seg.models import example_folder
from parotid_seg.records import write_record
from parotid_seg.runtime.engines.engine_file import ENGINE_BATCH, BatchProfile, EngineOptions, sidecar_path
from parotid_seg.runtime.engines.tensorrt.library import LIBRARIES
from parotid_seg.scan.intensity import is_ct
from parotid_seg.tolerance import INT8_SCANS
from parotid_seg.train.checkpoint import Checkpoint, load_checkpoint

AUTO, NONE = "auto", "none"
ENGINES = (NONE, *LIBRARIES)

Report = Callable[[str], None]


@dataclass(frozen=True)
class ExportOptions:
    """Options of `parotid-seg export`.

    Attributes:
        precision: type the network computes in: one of `PRECISIONS`, or "auto" for the fastest on this machine's CPU
            that passes; for an engine "auto" is FP16. INT8 needs `verify` with at least `INT8_SCANS` scans.
        weights: type that the weights of FP32 layers are stored in: "fp16" or "fp32".
        verify: folder of scans for the comparison. Default: the packaged example, a CT.
        calibrate: folder of labelled patients to calibrate the model on, see `calibrated_on`; None for a model that is
            not calibrated.
        batch: numbers of samples at once that are compared.
        engine_batch: numbers of samples at once that an engine is built for.
        probabilities: whether the model has probabilities as a second output.
        engine: library to build an engine with, one of `ENGINES`; it is written beside the model.
        engine_options: how to build it.
        timing_cache: see `build_engine`.
        triton: model repository to write the model into, as an entry of its name: the engine if TensorRT makes one,
            else the ONNX file.
        triton_device: where the server runs it, one of `triton_config.DEVICES`; None is "cuda".
    """

    precision: str = "fp32"
    weights: str = "fp16"
    verify: Path | None = None
    calibrate: Path | None = None
    batch: BatchProfile = field(default_factory=BatchProfile)
    engine_batch: BatchProfile = ENGINE_BATCH
    probabilities: bool = False
    engine: str = NONE
    engine_options: EngineOptions = field(default_factory=EngineOptions)
    timing_cache: Path | None = None
    triton: Path | None = None
    triton_device: str | None = None

    def __post_init__(self) -> None:
        choices = (("precision", (*PRECISIONS, AUTO)), ("weights", WEIGHT_TYPES), ("engine", ENGINES))
        for name, allowed in choices:
            if getattr(self, name) not in allowed:
                raise OptionError(f"--{name}: found {getattr(self, name)!r}, expected one of: {', '.join(allowed)}")
        if self.triton_device not in (None, *DEVICES):
            raise OptionError(f"--triton-device: found {self.triton_device!r}, expected one of: {', '.join(DEVICES)}")
        if self.triton_device is not None and self.triton is None:
            raise OptionError("--triton-device: says where a model of --triton runs, expected --triton with it")
        if self.triton_device == "cpu" and self.engine == "tensorrt":
            raise OptionError("--triton-device: found cpu, but --engine tensorrt makes an engine, which needs cuda")

    def serving(self, name: str) -> Serving:
        """How Triton serves the model under a name."""
        return Serving(name=name, device=self.triton_device or DEVICES[0])

    @property
    def tried(self) -> tuple[str, ...]:
        """Precisions to try; for "auto" those that the CPU computes in, or the one that engines gain most from."""
        if self.precision != AUTO:
            return (self.precision,)
        return COMPUTED_ON_THE_CPU if self.engine == NONE else ("fp16",)


class _Source(NamedTuple):
    """The shared source of all candidates and their reference."""

    model: ModelProto
    contract: Contract
    parity: Parity
    work: Mapping[str, int]


class Seconds(dict[str, float]):
    """Time of each step by its name."""

    @contextmanager
    def of(self, step: str) -> Iterator[None]:
        """Time the block."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self[step] = round(time.perf_counter() - started, 2)


def export(
    checkpoint_path: Path,
    out: Path,
    options: ExportOptions | None = None,
    report: Report = lambda _: None,
    progress: Progress | None = None,
) -> Proof:
    """Export a checkpoint, compare it with the trained model, and write it with the record of the comparison.

    Writes `out` and, also on failure, `out` with the ending `.parity.json`; on failure also `.parity.png`. An engine is
    `out` with the ending `.engine`, with its sidecar.

    Args:
        checkpoint_path: `best.pt` or `last.pt` of a training run.
        out: the .onnx file to make.
        options: see there.
        report: called with one line for each event.
        progress: of an engine's build; see `build_engine`.

    Raises:
        InputError: for an unusable argument or checkpoint, if the example does not fit the model, if INT8 is requested
            with too few scans for its verification, and if an engine cannot be built here.
        ModelError: if the exported model's masks differ too much, or it does not compute in the requested precision;
            `out` is not written then. Likewise for its engine; the engine is not written then.
        OutputError: if a file cannot be written.
    """
    options = options or ExportOptions()
    if out.suffix != ".onnx":
        raise OptionError(f"--out: found {out.name}, expected a name ending in .onnx")
    if options.engine != NONE:
        ready_to_build(options.engine, options.engine_options, options.timing_cache)
    if options.triton is not None:
        check_entry(options.triton, options.serving(out.stem))
    checkpoint = load_checkpoint(checkpoint_path)
    verify = options.verify or _example_for(checkpoint)
    make_folder(out.parent)
    precisions, not_considered = _considered(options, checkpoint, report)
    seconds = Seconds()
    source = _prepare(checkpoint, verify, options, seconds, report)
    tried = [_candidate(precision, source, options, seconds, report) for precision in precisions]
    passed = [each for each in tried if not each[1].failure]
    versions = {
        "against": f"torch {torch.__version__.partition('+')[0]} in FP32",
        "with": f"onnxruntime {onnxruntime.__version__} on the CPU",
    }
    record: dict[str, Any] = {
        "passed": bool(passed),
        **versions,
        "candidates": [proof.record() for _, proof, _ in tried],
        "not_considered": not_considered,
        "never_found": source.parity.never_found(),
        "seconds": seconds,
    }
    parity_file, picture = out.with_suffix(".parity.json"), out.with_suffix(".parity.png")
    picture.unlink(missing_ok=True)
    if not passed:
        _, proof, content = tried[0]
        _write(record, parity_file)
        if not proof.worst.passed:
            draw_failure(proof, content, source.parity, picture)
        raise ModelError(f"not written: {proof.failure}; see {parity_file}", path=out)
    candidate, proof, _ = passed[0]
    if passed[1:]:
        with seconds.of("time on the CPU"):
            candidate, speeds = fastest([each[0] for each in passed], next(source.parity.inputs()))
        proof = next(each[1] for each in passed if each[0] is candidate)
        record["speed_over_fp32"] = speeds
        report(f"speed on this CPU over fp32: {speeds}; chosen: {candidate.precision}")
    verified = dataclasses.replace(source.contract, verification={**versions, **proof.summary()})
    content = _file(candidate, verified, options.weights)
    record |= {"chosen": candidate.precision, "model_sha256": hashlib.sha256(content).hexdigest()}
    _write(record, parity_file)
    _write_bytes(content, out)
    served = out
    if options.engine != NONE:
        try:
            with seconds.of(f"build for {options.engine}"):
                engine = _add_engine(out, options, proof, source, record, report, progress)
        finally:
            _write(record, parity_file)
        served = engine if options.engine == "tensorrt" else out
    if options.triton is not None:
        entry = write_repository(options.triton, served, options.serving(out.stem), verify=verify, report=report)
        report(f"wrote {entry}")
    return proof


def _considered(
    options: ExportOptions, checkpoint: Checkpoint, report: Report
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Precisions to try, and why others are not considered, which is reported.

    Raises:
        InputError: if INT8 is requested and there are too few scans for its verification.
    """
    if "int8" not in options.tried:
        return options.tried, {}
    count = 0 if options.verify is None else len(scans_in(options.verify, checkpoint.channels))
    if count >= INT8_SCANS:
        return options.tried, {}
    found = "no --verify" if options.verify is None else f"{count} scans in {options.verify}"
    reason = f"expected --verify with at least {INT8_SCANS} scans, found {found}"
    if options.precision == "int8":
        raise OptionError(f"--precision int8: {reason}; INT8 that passes on few scans fails on others")
    report(f"int8 is not considered: {reason}")
    return tuple(each for each in options.tried if each != "int8"), {"int8": reason}


def _write_bytes(content: bytes, path: Path) -> None:
    with atomic_write(path) as partial:
        partial.write_bytes(content)


def _write(record: dict[str, Any], path: Path) -> None:
    write_record(record, path)


def _prepare(checkpoint: Checkpoint, verify: Path, options: ExportOptions, seconds: Seconds, report: Report) -> _Source:
    """Translate the model, segment the scans with the trained model, calibrate it, and count multiply-adds."""
    report("translating to ONNX")
    with seconds.of("translate"):
        model, contract = to_onnx(checkpoint, probabilities=options.probabilities)
    report(f"segmenting the scans of {verify} with the trained model")
    with seconds.of("trained model"):
        net = checkpoint.network()
        parity = Parity(net, contract, verify, options.batch)
    if names := parity.never_found():
        report(
            f"warning: the trained model finds no {', '.join(names)} in the scans of {verify}, so equal masks prove "
            "nothing about it; name scans that show it in --verify"
        )
    if options.calibrate is None:
        report("not calibrated: there is no expected DSC for its masks, and no operating range, see --calibrate")
    else:
        with seconds.of("calibrate"):
            calibrations, limits = calibrated_on(options.calibrate, net, contract, report)
        contract = dataclasses.replace(contract, calibrations=calibrations, operating_range=limits)
    chunk = next(parity.inputs())
    work = work_of(model.SerializeToString(), chunk)
    samples = len(chunk["neighbours"])
    cost = {
        "parameters": sum(each.numel() for each in net.parameters()),
        "multiply_adds": sum(work.values()) // samples,
    }
    return _Source(model, dataclasses.replace(contract, cost=cost), parity, work)


def _candidate(
    precision: str, source: _Source, options: ExportOptions, seconds: Seconds, report: Report
) -> tuple[Candidate, Proof, bytes]:
    """The graph in a precision, with its proof and its file."""
    for_cpu = options.engine == NONE
    with seconds.of(f"convert to {precision}"):
        candidate = make(precision, source.model, source.parity, report, symmetric=not for_cpu)
    content = _file(candidate, source.contract, options.weights)
    with seconds.of(f"prove {precision}"):
        proof = prove(candidate, content, source.parity, source.work, for_cpu=for_cpu)
    for line in proof.lines():
        report(line)
    return candidate, proof, content


def _add_engine(
    out: Path,
    options: ExportOptions,
    proof: Proof,
    source: _Source,
    record: dict[str, Any],
    report: Report,
    progress: Progress | None,
) -> Path:
    """Build an engine of the model file beside it, if the types in its network are the requested ones.

    Where there is a GPU, it is written only if its masks agree with the trained model's. `record` gets the result as
    "engine".
    """
    census = of_layers(describe_network(out, options.engine), source.work)
    report(f"{options.engine}: multiply-adds {census} in the network")
    if census.macs.get(proof.precision, 0) < LEAST_SHARE * proof.network:
        raise ModelError(
            f"no engine built: {options.engine} would compute {census}, expected {proof.precision} in at least "
            f"{LEAST_SHARE:.0%} of the network",
            path=out,
        )
    engine = out.with_suffix(".engine")

    def gate(trial: Path) -> dict[str, Any]:
        engine_proof = prove_engine(trial, source.parity)
        record["engine"] = engine_proof.record()
        for line in engine_proof.lines():
            report(line)
        if engine_proof.failure:
            for old in (engine, sidecar_path(engine)):
                old.unlink(missing_ok=True)
            raise ModelError(f"not written: {engine_proof.failure}; see {out.with_suffix('.parity.json')}", path=engine)
        return engine_proof.summary()

    build_engine(
        out,
        engine,
        library=options.engine,
        profile=options.engine_batch,
        options=options.engine_options,
        report=report,
        progress=progress,
        timing_cache=options.timing_cache,
        prove=gate,
    )
    return engine


def _file(candidate: Candidate, contract: Contract, weights: str) -> bytes:
    model = candidate.model
    if candidate.precision == "fp32" and weights == "fp16":
        model = halve_weights(model)
    stored = weights if candidate.precision == "fp32" else candidate.precision
    return with_contract(model, dataclasses.replace(contract, precision=candidate.precision, weights=stored))


def _example_for(checkpoint: Checkpoint) -> Path:
    if len(checkpoint.channels) != 1 or not is_ct(checkpoint.channels[0]):
        channels = ", ".join(checkpoint.channels)
        raise OptionError(f"--verify: the packaged example is a CT; name a folder of scans of the model's: {channels}")
    return example_folder()
