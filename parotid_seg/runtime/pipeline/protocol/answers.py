"""The answers of a worker, as frames, and the checks of the main process.

A worker reads untrusted files with decoders written in C, so the main process does not trust its answers: every value
has a type and a range, arrays must have the shapes that follow from the scan and the model, and file names come from
the main process. Answers contain nothing that the main process already knows.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Annotated

import msgspec
import numpy as np

from parotid_seg.contract import Contract
from parotid_seg.dicom.read.series import Series
from parotid_seg.flags import Flag, FlagCode
from parotid_seg.runtime.pipeline.journal import Entry
from parotid_seg.runtime.pipeline.protocol.framing import (
    MOST_HEAD_BYTES,
    ProtocolError,
    read_arrays,
    read_head,
    write_frame,
)
from parotid_seg.runtime.pipeline.protocol.messages import (
    CaseRequest,
    CaseResult,
    OutputFailure,
    PutOff,
    WorkerConfig,
    entry_of,
    failed,
)
from parotid_seg.runtime.pipeline.sources import place_of
from parotid_seg.scan.chunks import MOST_SLICES, CroppedScan, sample_step

LONGEST_TEXT = 4000
"""Most characters of a reason or of a flag's detail; a worker truncates longer ones."""
MOST_QUESTIONS = 1000
"""How often a worker may request labels of one scan: the search places the grid at several positions over the
tissue."""
LONGEST_SIDE = 16384
"""Most voxels along a row or a column of the part of a scan within the model's grid."""
MATRICES = ("rows", "columns", "rows_back", "columns_back")
"""The matrices of a scan, in the order in which they are sent."""

_Text = Annotated[bytes, msgspec.Meta(max_length=4 * LONGEST_TEXT)]
"""UTF-8 in which surrogates (bytes of file names that are not UTF-8) are encoded like other characters."""
_Path = Annotated[bytes, msgspec.Meta(max_length=16384)]
"""A path in the file system's encoding."""
_Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$", max_length=64)]
_Sha256OrNone = Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{64})?\Z", max_length=64)]
_Name = Annotated[str, msgspec.Meta(max_length=1000)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**31)]
_Size = Annotated[int, msgspec.Meta(ge=1, le=2**31)]
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
_Millilitres = Annotated[float, msgspec.Meta(ge=0, le=1e12)]
_Gray = Annotated[float, msgspec.Meta(ge=-1e6, le=1e6)]
_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Value = Annotated[float, msgspec.Meta(ge=-1e300, le=1e300)]
_Distance = Annotated[float, msgspec.Meta(ge=1e-3, le=1e3)]


class _Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Any answer; `case` is the name of the job's."""

    case: _Text


class _Cropped(_Answer, tag="cropped", frozen=True, forbid_unknown_fields=True):
    """A `CroppedScan` to be labelled; voxels, windows and `MATRICES` follow."""

    shape: tuple[_Size, _Size, _Size, _Size]
    distance_mm: _Distance
    first_row: _Count
    first_column: _Count
    samples: Annotated[tuple[_Count, ...], msgspec.Meta(min_length=1, max_length=MOST_SLICES)] | None
    grow: bool
    known: Annotated[tuple[_Count, ...], msgspec.Meta(max_length=MOST_SLICES)]


class _Flag(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A `Flag`."""

    code: FlagCode
    structure: _Text
    value: _Value | None
    detail: _Text


class _Done(_Answer, tag="done", frozen=True, forbid_unknown_fields=True):
    """The mask and its files are written: see `Entry`."""

    key: _Sha256
    files: Annotated[tuple[_Sha256, ...], msgspec.Meta(max_length=16)]
    volumes_ml: dict[_Name, _Millilitres]
    agreement: dict[_Name, _Share]
    flags: tuple[_Flag, ...]
    read: _Seconds
    segment: _Seconds
    write: _Seconds
    decoders: Annotated[tuple[_Name, ...], msgspec.Meta(max_length=64)]
    shape: tuple[_Size, _Size, _Size]
    spacing_mm: tuple[_Distance, _Distance, _Distance]
    dose_sha256: _Sha256OrNone
    mean_gy: dict[_Name, _Gray]
    expected_dsc: dict[_Name, _Share]
    floor_dsc: dict[_Name, _Share]


class _Skipped(_Answer, tag="skipped", frozen=True, forbid_unknown_fields=True):
    """The case was done before, and its files are complete."""


class _Failed(_Answer, tag="failed", frozen=True, forbid_unknown_fields=True):
    """The case failed."""

    key: _Sha256OrNone
    reason: _Text
    path: _Path


class _PutOff(_Answer, tag="put off", frozen=True, forbid_unknown_fields=True):
    """See `PutOff`."""

    reason: _Text


class _Stopped(_Answer, tag="stopped", frozen=True, forbid_unknown_fields=True):
    """See `OutputFailure`."""

    message: _Text


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(_Cropped | _Done | _Skipped | _Failed | _PutOff | _Stopped)


@dataclass(frozen=True)
class Question:
    """The request to a worker, against which its answer is checked.

    Attributes:
        work: the configuration of the run.
        job: the case, and the journal's entry of it.
        voxels: of the case's scan, by its header; the model gets at most so many.
        labelled: how often the scan has been labelled.
    """

    work: WorkerConfig
    job: CaseRequest
    voxels: int
    labelled: int = 0


def send_answer(
    answer: CroppedScan | CaseResult | PutOff | OutputFailure, work: WorkerConfig, job: CaseRequest, stream: IO[bytes]
) -> None:
    """Send an answer, in a worker."""
    case = _bytes(job.case.name)
    if isinstance(answer, CroppedScan):
        channels, depth, height, width = answer.voxels.shape
        shape = channels, depth, height, width
        first = answer.rows.start, answer.columns.start
        head = _Cropped(case, shape, answer.distance_mm, *first, answer.samples, answer.grow, answer.known)
        matrices = (answer.in_plane[name] for name in MATRICES)
        write_frame(stream, _ENCODER.encode(head), [answer.voxels, answer.windows, *matrices])
        return
    write_frame(stream, _ENCODER.encode(_head_of(answer, case, work, job)))


def next_answer(stream: IO[bytes], question: Question) -> CroppedScan | CaseResult | PutOff | OutputFailure:
    """Read a worker's answer, and check it.

    Raises:
        EOFError: if the stream ends.
        ProtocolError: if the answer is not allowed.
    """
    head, array_bytes = read_head(stream, MOST_HEAD_BYTES)
    try:
        answer = _DECODER.decode(head)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"found no answer of a known type ({' '.join(str(error).split())[:200]})") from error
    if answer.case != _bytes(question.job.case.name):
        raise ProtocolError("found an answer on another case than was asked about")
    if isinstance(answer, _Cropped):
        return _read_cropped(stream, array_bytes, answer, question)
    read_arrays(stream, array_bytes, [])
    if isinstance(answer, _Done):
        return CaseResult("done", _checked_entry(answer, question))
    if isinstance(answer, _Skipped):
        known = question.job.known
        if known is None or known.status != "done" or question.work.options.overwrite:
            raise ProtocolError("found that the case was done before, which it was not")
        return CaseResult("skipped", known)
    if isinstance(answer, _PutOff):
        return PutOff(_text(answer.reason))
    if isinstance(answer, _Stopped):
        return OutputFailure(_text(answer.message))
    path = Path(os.fsdecode(answer.path))
    if not _is_named(path, question.work, question.job):
        raise ProtocolError("found the path of a file that is not the case's")
    return CaseResult("failed", failed(question.job.case, _text(answer.reason), answer.key, path=path))


def _head_of(answer: CaseResult | PutOff | OutputFailure, case: bytes, work: WorkerConfig, job: CaseRequest) -> _Answer:
    if isinstance(answer, PutOff):
        return _PutOff(case, _bytes(answer.reason))
    if isinstance(answer, OutputFailure):
        return _Stopped(case, _bytes(answer.message))
    entry = answer.entry
    if answer.status == "skipped":
        return _Skipped(case)
    if answer.status == "failed":
        path, reason = Path(entry.path), entry.reason
        if not _is_named(path, work, job):
            path, reason = place_of(job.case.scan[0]), entry.failure
        return _Failed(case, entry.key, _bytes(reason), os.fsencode(path))
    assert entry.shape
    assert entry.spacing_mm
    return _Done(
        case,
        entry.key,
        (entry.mask_sha256, *entry.further.values()),
        entry.volumes_ml,
        entry.agreement,
        tuple(_Flag(each.code, _bytes(each.structure), each.value, _bytes(each.detail)) for each in entry.flags),
        **entry.seconds,
        decoders=entry.decoders,
        shape=entry.shape,
        spacing_mm=entry.spacing_mm,
        dose_sha256=entry.dose_sha256,
        mean_gy=entry.mean_gy,
        expected_dsc=entry.expected_dsc,
        floor_dsc=entry.floor_dsc,
    )


def _checked_entry(done: _Done, question: Question) -> Entry:
    work, case = question.work, question.job.case
    names, structures = work.options.outputs.names(case.name), work.options.rois.written(work.contract.labels)
    if len(done.files) != len(names):
        raise ProtocolError(f"found {len(done.files)} files, expected {len(names)}")
    by_structure = (done.agreement, done.expected_dsc, done.floor_dsc)
    if set(done.volumes_ml) != set(structures) or not all(set(each) <= set(structures) for each in by_structure):
        raise ProtocolError("found other structures than the model's")
    if bool(done.dose_sha256) != bool(case.dose) or not set(done.mean_gy) <= set(structures if case.dose else ()):
        raise ProtocolError("found a dose of another case or structure")
    return replace(
        entry_of(case, done.key, "done"),
        mask=names[0],
        mask_sha256=done.files[0],
        further=dict(zip(names[1:], done.files[1:], strict=True)),
        volumes_ml={name: done.volumes_ml[name] for name in structures},
        agreement={name: done.agreement[name] for name in structures if name in done.agreement},
        flags=tuple(Flag(each.code, _text(each.structure), each.value, _text(each.detail)) for each in done.flags),
        seconds={"read": done.read, "segment": done.segment, "write": done.write},
        settings=work.settings,
        decoders=done.decoders,
        shape=done.shape,
        spacing_mm=done.spacing_mm,
        dose=str(case.dose or ""),
        dose_sha256=done.dose_sha256,
        mean_gy={name: done.mean_gy[name] for name in structures if name in done.mean_gy},
        expected_dsc={name: done.expected_dsc[name] for name in structures if name in done.expected_dsc},
        floor_dsc={name: done.floor_dsc[name] for name in structures if name in done.floor_dsc},
    )


def _read_cropped(stream: IO[bytes], array_bytes: int, cropped: _Cropped, question: Question) -> CroppedScan:
    contract = question.work.contract
    channels, depth, height, width = cropped.shape
    if question.labelled >= MOST_QUESTIONS:
        raise ProtocolError(f"found a scan for which labels were given {question.labelled} times")
    if channels != len(contract.channels) or depth > MOST_SLICES or max(height, width) > LONGEST_SIDE:
        raise ProtocolError(
            f"found voxels of shape {cropped.shape}, expected {len(contract.channels)} channels of a scan"
        )
    if channels * depth * height * width > question.voxels:
        raise ProtocolError(
            f"found voxels of shape {cropped.shape}, expected at most {question.voxels} as in the header"
        )
    count = -(-depth // sample_step(cropped.distance_mm, contract.grid))
    for samples in (cropped.samples or (), cropped.known):
        if not all(low < high for low, high in itertools.pairwise((-1, *samples, count))):
            raise ProtocolError(f"found samples {str(samples)[:200]}, expected rising ones below {count}")
    types = _types_of(cropped.shape, contract)
    voxels, windows, *matrices = read_arrays(stream, array_bytes, types)
    if not (np.isfinite(windows).all() and all(np.isfinite(matrix).all() for matrix in matrices)):
        raise ProtocolError("found a window or a matrix that is not finite")
    return CroppedScan(
        voxels,
        windows,
        cropped.distance_mm,
        slice(cropped.first_row, cropped.first_row + height),
        slice(cropped.first_column, cropped.first_column + width),
        dict(zip(MATRICES, matrices, strict=True)),
        samples=cropped.samples,
        grow=cropped.grow,
        known=cropped.known,
    )


def _types_of(shape: tuple[int, int, int, int], contract: Contract) -> list[tuple[type, tuple[int, ...]]]:
    """Types and shapes of voxels, windows and `MATRICES`."""
    channels, _, height, width = shape
    size = contract.grid.size
    matrices = ((size, height), (size, width), (height, size), (width, size))
    return [(np.float16, shape), (np.float32, (channels, 2)), *((np.float32, each) for each in matrices)]


def _is_named(path: Path, work: WorkerConfig, job: CaseRequest) -> bool:
    """Whether a path can be the cause of a case's failure: a file of the scan or beside one, or a result."""
    folders = {work.out}
    for source in job.case.scan:
        files = [each.path for each in source.slices] if isinstance(source, Series) else [source]
        folders.update((place_of(source), *(each.parent for each in files)))
    return path in {*folders, work.options.outputs.append, job.case.dose} or (
        path.parent in folders and path.name != ".."
    )


def _bytes(text: str) -> bytes:
    return text[:LONGEST_TEXT].encode("utf-8", "surrogatepass")


def _text(content: bytes) -> str:
    try:
        return content.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise ProtocolError("found a text that is not UTF-8") from error
