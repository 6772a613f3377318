"""`parotid-seg export`: checkpoint to a verified model file, which is written only if it passes."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import onnxruntime
import torch
from onnx import ModelProto

from parotid_seg.contract import Contract
from parotid_seg.errors import ModelError, OptionError
from parotid_seg.export.build_engine import build_engine, ready_to_build
from parotid_seg.export.calibrate import calibrated_on
from parotid_seg.export.candidates import ExportCandidate, fastest, make
from parotid_seg.export.engine_proof import prove_engine
from parotid_seg.export.export_options import AUTO, DEVICES, NONE, ExportOptions
from parotid_seg.export.onnx_file import halve_weights, to_onnx, with_contract
from parotid_seg.export.ops_by_dtype import describe_network, of_layers, work_of
from parotid_seg.export.parity import Parity, scans_in
from parotid_seg.export.proof import COMPUTED_ON_THE_CPU, LEAST_SHARE, Proof, draw_failure, prove
from parotid_seg.export.triton.model_config import Serving
from parotid_seg.export.triton.repository import check_entry, write_repository
from parotid_seg.files import make_folder, write_bytes
from parotid_seg.records import write_record
from parotid_seg.runtime.engines.engine_file import sidecar_path
from parotid_seg.runtime.pipeline.discovery import example_for
from parotid_seg.runtime.tolerance import INT8_SCANS
from parotid_seg.train.checkpoint import Checkpoint, is_initial, load_checkpoint
from parotid_seg.wording import Progress, Say

VERSIONS = {
    "against": f"torch {torch.__version__.partition('+')[0]} in FP32",
    "with": f"onnxruntime {onnxruntime.__version__} on the CPU",
}
"""What runs the trained model and the exported one in the comparison."""


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


class _Source(NamedTuple):
    """The shared source of all candidates and their reference, and the time of each step."""

    model: ModelProto
    contract: Contract
    parity: Parity
    work: Mapping[str, int]
    seconds: Seconds


class _Tried(NamedTuple):
    """A candidate, its proof, and the content of its file."""

    candidate: ExportCandidate
    proof: Proof
    content: bytes


def export(
    checkpoint_path: Path,
    out: Path,
    options: ExportOptions | None = None,
    report: Say = lambda _: None,
    progress: Progress | None = None,
) -> Proof:
    """Export a checkpoint, compare it with the trained model, and write it with the record of the comparison.

    Writes `out` and, also on failure, `out` with the ending `.parity.json`; on failure also `.parity.png`. An engine is
    `out` with the ending `.engine`, with its sidecar.

    Args:
        checkpoint_path: `best.pt` or `last.pt` of a training run.
        out: the .onnx file to make.
        options: see `ExportOptions`.
        report, progress: see `build_engine`.

    Raises:
        InputError: for an unusable argument or checkpoint, if the example does not fit the model, if INT8 is requested
            with too few scans for its verification, and if an engine cannot be built here.
        ModelError: if the masks of the model or its engine differ too much, or it does not compute in the requested
            precision; it is not written then.
        OutputError: if a file cannot be written.
    """
    options = options or ExportOptions()
    _check(out, options)
    checkpoint = _loaded(checkpoint_path, report)
    verify = options.verify or example_for(checkpoint.channels, "--verify")
    make_folder(out.parent)
    precisions, not_considered = _considered(options, checkpoint, report)
    source = _prepare(checkpoint, verify, options, report)
    tried = [_candidate(precision, source, options, report) for precision in precisions]
    record: dict[str, Any] = {
        "passed": any(not each.proof.failure for each in tried),
        **VERSIONS,
        "candidates": [each.proof.record() for each in tried],
        "not_considered": not_considered,
        "never_found": source.parity.never_found(),
        "seconds": source.seconds,
    }
    candidate, proof = _chosen(tried, source, record, out, report)
    verified = dataclasses.replace(source.contract, verification={**VERSIONS, **proof.summary()})
    content = _file(candidate, verified, options.weights)
    record |= {"chosen": candidate.precision, "model_sha256": hashlib.sha256(content).hexdigest()}
    write_bytes(content, out)  # first: a full disk leaves an earlier model and its record as they are
    write_record(record, _record_of(out))
    report(f"wrote {out}")  # it stays if what follows fails
    served = out
    if options.engine != NONE:
        try:
            with source.seconds.of(f"build for {options.engine}"):
                engine = _add_engine(out, options, proof, source, record, report, progress)
        finally:
            write_record(record, _record_of(out))
        served = engine if options.engine == "tensorrt" else out
    if options.triton is not None:
        entry = write_repository(options.triton, served, serving_of(out, options), verify=verify, report=report)
        report(f"wrote {entry}")
    return proof


def _loaded(path: Path, report: Say) -> Checkpoint:
    """A checkpoint, with a note if no training has changed its weights."""
    checkpoint = load_checkpoint(path)
    if is_initial(checkpoint.training):
        report(f"note: {path} is the model of --init, unchanged: no training has changed it")
    return checkpoint


def _check(out: Path, options: ExportOptions) -> None:
    """Check what can be checked before any work; raises the InputErrors of `export`."""
    if out.suffix != ".onnx":
        raise OptionError(f"--out: found {out.name}, expected a name ending in .onnx")
    if out.is_dir():
        raise OptionError(f"--out: {out}: found a folder, expected a file to make")
    if options.engine != NONE:
        ready_to_build(options.engine, options.engine_options, options.timing_cache)
    if options.triton is not None:
        check_entry(options.triton, serving_of(out, options))


def serving_of(out: Path, options: ExportOptions) -> Serving:
    """How Triton serves the model, under the name of its file."""
    return Serving(name=out.stem, device=options.triton_device or DEVICES[0])


def _record_of(out: Path) -> Path:
    """The file with the record of the comparison."""
    return out.with_suffix(".parity.json")


def _chosen(
    tried: Sequence[_Tried], source: _Source, record: dict[str, Any], out: Path, report: Say
) -> tuple[ExportCandidate, Proof]:
    """The candidate that passes; of several the fastest on this CPU, whose speeds `record` then gets.

    Raises:
        ModelError: if none passes; the record and a picture of the differences are written before.
    """
    picture = out.with_suffix(".parity.png")
    picture.unlink(missing_ok=True)
    passed = [each for each in tried if not each.proof.failure]
    if not passed:
        _, proof, content = tried[0]
        write_record(record, _record_of(out))
        if not proof.worst.passed:
            draw_failure(proof, content, source.parity, picture)
        earlier = "; the file of this name is of an earlier export" if out.exists() else ""
        raise ModelError(f"not written: {proof.failure}; see {_record_of(out)}{earlier}", path=out)
    if len(passed) == 1:
        return passed[0].candidate, passed[0].proof
    with source.seconds.of("time on the CPU"):
        candidate, speeds = fastest([each.candidate for each in passed], source.parity.usual_chunk())
    record["speed_over_fp32"] = speeds
    report(f"speed on this CPU over fp32: {speeds}; chosen: {candidate.precision}")
    return candidate, next(each.proof for each in passed if each.candidate is candidate)


def _to_try(options: ExportOptions) -> tuple[str, ...]:
    """Precisions to try; for "auto" those that the CPU computes in, or the one that engines gain most from."""
    if options.precision != AUTO:
        return (options.precision,)
    return COMPUTED_ON_THE_CPU if options.engine == NONE else ("fp16",)


def _considered(options: ExportOptions, checkpoint: Checkpoint, report: Say) -> tuple[tuple[str, ...], dict[str, str]]:
    """Precisions to try, and why others are not considered, which is reported.

    Raises:
        InputError: if INT8 is requested and there are too few scans for its verification.
    """
    precisions = _to_try(options)
    if "int8" not in precisions:
        return precisions, {}
    count = 0 if options.verify is None else len(scans_in(options.verify, checkpoint.channels))
    if count >= INT8_SCANS:
        return precisions, {}
    found = "no --verify" if options.verify is None else f"{count} scans in {options.verify}"
    reason = f"expected --verify with at least {INT8_SCANS} scans, found {found}"
    if options.precision == "int8":
        raise OptionError(f"--precision int8: {reason}; INT8 that passes on few scans fails on others")
    report(f"int8 is not considered: {reason}")
    return tuple(each for each in precisions if each != "int8"), {"int8": reason}


def _prepare(checkpoint: Checkpoint, verify: Path, options: ExportOptions, report: Say) -> _Source:
    """Translate the model, calibrate it, segment the scans with the trained model, and count multiply-adds."""
    seconds = Seconds()
    report("translating to ONNX")
    with seconds.of("translate"):
        model, contract = to_onnx(checkpoint, probabilities=options.probabilities)
    net = checkpoint.network()
    if options.calibrate is None:
        report("not calibrated: there is no expected DSC for its masks, and no operating range, see --calibrate")
    else:
        with seconds.of("calibrate"):
            calibrations, limits = calibrated_on(options.calibrate, net, contract, report)
        contract = dataclasses.replace(contract, calibrations=calibrations, operating_range=limits)
    report(f"segmenting the scans of {verify} with the trained model")
    with seconds.of("trained model"):
        parity = Parity(net, contract, verify, options.batch)
    report("DSC in the lines below is agreement of two masks, not accuracy: contours tell that (parotid-seg evaluate)")
    if names := parity.never_found():
        report(
            f"warning: the trained model finds no {', '.join(names)} in the scans of {verify}, so equal masks prove "
            "nothing about it; name scans that show it in --verify"
        )
    chunk = parity.usual_chunk()
    work = work_of(model.SerializeToString(), chunk)
    samples = len(chunk["neighbours"])
    cost = {
        "parameters": sum(each.numel() for each in net.parameters()),
        "multiply_adds": sum(work.values()) // samples,
    }
    return _Source(model, dataclasses.replace(contract, cost=cost), parity, work, seconds)


def _candidate(precision: str, source: _Source, options: ExportOptions, report: Say) -> _Tried:
    """The graph in a precision, with its proof and its file."""
    for_cpu = options.engine == NONE
    with source.seconds.of(f"convert to {precision}"):
        candidate = make(precision, source.model, source.parity, report, symmetric=not for_cpu)
    content = _file(candidate, source.contract, options.weights)
    with source.seconds.of(f"prove {precision}"):
        proof = prove(candidate, content, source.parity, source.work, for_cpu=for_cpu)
    for line in proof.lines():
        report(line)
    return _Tried(candidate, proof, content)


def _add_engine(
    out: Path,
    options: ExportOptions,
    proof: Proof,
    source: _Source,
    record: dict[str, Any],
    report: Say,
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
            raise ModelError(f"not written: {engine_proof.failure}; see {_record_of(out)}", path=engine)
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


def _file(candidate: ExportCandidate, contract: Contract, weights: str) -> bytes:
    model = candidate.model
    if candidate.precision == "fp32" and weights == "fp16":
        model = halve_weights(model)
    stored = weights if candidate.precision == "fp32" else candidate.precision
    return with_contract(model, dataclasses.replace(contract, precision=candidate.precision, weights=stored))
