"""What a worker may say to the main process, and what becomes of one that says anything else."""

import io
import pickle
import queue
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from parotid_seg.errors import ScanError
from parotid_seg.flags import Flag, FlagCode
from parotid_seg.runtime.pipeline import worker_process
from parotid_seg.runtime.pipeline.discovery import Case
from parotid_seg.runtime.pipeline.journal import Entry
from parotid_seg.runtime.pipeline.protocol.answers import (
    LONGEST_TEXT,
    MOST_QUESTIONS,
    Question,
    next_answer,
    send_answer,
)
from parotid_seg.runtime.pipeline.protocol.framing import HEADER, MAGIC, ProtocolError, read_head
from parotid_seg.runtime.pipeline.protocol.messages import (
    CaseRequest,
    CaseResult,
    OutputFailure,
    PutOff,
    WorkerConfig,
    failed,
)
from parotid_seg.runtime.pipeline.protocol.requests import next_request, send_request
from parotid_seg.runtime.pipeline.protocol.worker_stdio import command_of
from parotid_seg.runtime.pipeline.worker_pool import Event, Worker, WorkerDied
from parotid_seg.runtime.segmentation.batching import Prediction
from parotid_seg.runtime.segmentation.segment import prepare
from tests.runtime.pipeline.hostile_worker import Harm
from tests.runtime.pipeline.test_pipeline import Observed, run
from tests.runtime.segmentation.test_batches import Threshold
from tests.scan.test_chunks import scan_at

pytestmark = pytest.mark.slow


CONTRACT = Threshold().contract
SCAN = scan_at(70, 75)
WORK = WorkerConfig(Path("/out"), CONTRACT, ("model",))
JOB = CaseRequest(Case("s0", (Path("/scans/s0.nii.gz"),)), None)
ASKED = Question(WORK, JOB, voxels=SCAN.voxels.size)
STRUCTURES = CONTRACT.labels[1:]
DONE = Entry(
    case="s0",
    source="/scans/s0.nii.gz",
    key="a" * 64,
    status="done",
    mask="s0.nii.gz",
    mask_sha256="b" * 64,
    volumes_ml=dict.fromkeys(STRUCTURES, 20.125),
    agreement=dict.fromkeys(STRUCTURES, 0.9375),
    flags=(Flag(FlagCode.OBLIQUE, value=3.5), Flag(FlagCode.DAMAGED_FILE_BESIDE, detail="a\udcff.dcm")),
    seconds={"read": 0.5, "segment": 1.0, "write": 0.25},
    settings=WORK.settings,
    decoders=("gdcm",),
    shape=(40, 512, 512),
    spacing_mm=(3.0, 0.9765, 0.9765),
)


def sent(answer: Any, work: WorkerConfig = WORK, job: CaseRequest = JOB) -> bytes:
    stream = io.BytesIO()
    send_answer(answer, work, job, stream)
    return stream.getvalue()


def heard(content: bytes, asked: Question = ASKED) -> Any:
    stream = io.BytesIO(content)
    answer = next_answer(stream, asked)
    assert not stream.read()
    return answer


def frame(answer: object, arrays: bytes = b"") -> bytes:
    head = msgspec.msgpack.encode(answer)
    return HEADER.pack(MAGIC, len(head), len(arrays)) + head + arrays


def head_of(answer: object) -> dict[str, object]:
    """What an answer is made of, to be changed."""
    return msgspec.msgpack.decode(read_head(io.BytesIO(sent(answer)), 1 << 20)[0])


def test_every_answer_comes_as_it_was_sent() -> None:
    others = (
        CaseResult("done", DONE),
        CaseResult("failed", failed(JOB.case, "cut off", "c" * 64)),
        CaseResult("failed", failed(JOB.case, "exists", path="/out/s0.nii.gz")),
        PutOff("too many open files"),
        OutputFailure("/out: no space left"),
    )
    for answer in others:
        assert heard(sent(answer)) == answer
    planned = replace(ASKED, job=replace(JOB, case=replace(JOB.case, dose=Path("/doses/s0.nii.gz"))))
    dosed = replace(DONE, dose="/doses/s0.nii.gz", dose_sha256="d" * 64, mean_gy=dict.fromkeys(STRUCTURES, 24.5))
    assert heard(sent(CaseResult("done", dosed), job=planned.job), planned) == CaseResult("done", dosed)
    estimated = replace(DONE, expected_dsc={STRUCTURES[0]: 0.8}, floor_dsc={STRUCTURES[0]: 0.7})
    assert heard(sent(CaseResult("done", estimated))) == CaseResult("done", estimated)
    lost = CaseResult("failed", failed(JOB.case, "cut off", path="/doses/s0.nii.gz"))
    assert heard(sent(lost, job=planned.job), planned) == lost
    known = replace(ASKED, job=replace(JOB, known=DONE))
    assert heard(sent(CaseResult("skipped", DONE)), known) == CaseResult("skipped", DONE)


def test_a_scan_comes_as_it_was_sent() -> None:
    covered = prepare(SCAN, CONTRACT).crop_to_grid()
    found = heard(sent(covered))
    assert found.voxels.dtype == np.float16
    assert np.array_equal(found.voxels, covered.voxels)
    assert np.array_equal(found.windows, covered.windows)
    assert (found.distance_mm, found.rows, found.columns) == (covered.distance_mm, covered.rows, covered.columns)
    assert found.in_plane.keys() == covered.in_plane.keys()
    for name, matrix in covered.in_plane.items():
        assert np.array_equal(found.in_plane[name], matrix)


def test_every_request_comes_as_it_was_sent() -> None:
    stream = io.BytesIO()
    labels = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)[:, :, ::2]
    for request in (WORK, JOB, Prediction(labels, {"left": 0.5}, 2.0), ScanError("too large", path="/a")):
        send_request(request, stream)
    stream.seek(0)
    assert next_request(stream) == WORK
    assert next_request(stream) == JOB
    labelled = next_request(stream)
    assert np.array_equal(labelled.labels, labels)
    assert (labelled.agreement, labelled.seconds) == ({"left": 0.5}, 2.0)
    with pytest.raises(ScanError, match="too large"):
        next_request(stream)
    with pytest.raises(EOFError):
        next_request(stream)


def test_a_path_of_another_file_becomes_part_of_the_reason() -> None:
    answer = CaseResult("failed", failed(JOB.case, "is missing", path="/elsewhere/raw.bin"))
    entry = heard(sent(answer)).entry
    assert (entry.path, entry.reason) == ("/scans/s0.nii.gz", "/elsewhere/raw.bin: is missing")


def test_long_texts_are_cut() -> None:
    assert heard(sent(OutputFailure("ü" * 10000))).message == "ü" * LONGEST_TEXT


COVERED = head_of(prepare(SCAN, CONTRACT).crop_to_grid())
FOUND = head_of(CaseResult("done", DONE))
FAILED = head_of(CaseResult("failed", failed(JOB.case, "cut off")))
MANY = 1 << 40


@pytest.mark.parametrize(
    "content",
    [
        frame(FOUND | {"case": b"s1"}),
        frame(FOUND | {"type": "obey"}),
        frame(FOUND | {"status": "done"}),
        frame({name: value for name, value in FOUND.items() if name != "key"}),
        frame(FOUND | {"key": "../../evil"}),
        frame(FOUND | {"files": []}),
        frame(FOUND | {"files": ["b" * 64] * 2}),
        frame(FOUND | {"files": ["/etc/passwd"]}),
        frame(FOUND | {"volumes_ml": {}}),
        frame(FOUND | {"volumes_ml": dict.fromkeys((*STRUCTURES, "more"), 1.0)}),
        frame(FOUND | {"volumes_ml": dict.fromkeys(STRUCTURES, float("nan"))}),
        frame(FOUND | {"volumes_ml": dict.fromkeys(STRUCTURES, -1.0)}),
        frame(FOUND | {"agreement": {STRUCTURES[0]: 2.0}}),
        frame(FOUND | {"read": float("inf")}),
        frame(FOUND | {"flags": [{"code": "obey", "structure": b"", "value": None, "detail": b""}]}),
        frame(FOUND | {"flags": [{"code": "oblique", "structure": b"", "value": "3", "detail": b""}]}),
        frame(FOUND | {"flags": [{"code": "oblique", "structure": b"\xff", "value": None, "detail": b""}]}),
        frame(FOUND | {"decoders": [b"gdcm"]}),
        frame(FOUND | {"shape": [0, 512, 512]}),
        frame(FOUND | {"shape": [40, 512]}),
        frame(FOUND | {"spacing_mm": [0.0, 1.0, 1.0]}),
        frame(FOUND | {"spacing_mm": [float("nan"), 1.0, 1.0]}),
        frame(FOUND | {"dose_sha256": "d" * 64}),
        frame(FOUND | {"dose_sha256": "/etc/passwd"}),
        frame(FOUND | {"mean_gy": {STRUCTURES[0]: 24.5}}),
        frame(FOUND | {"mean_gy": {STRUCTURES[0]: float("nan")}}),
        frame(FOUND | {"floor_dsc": {STRUCTURES[0]: 1.5}}),
        frame(FOUND | {"expected_dsc": {"nose": 0.5}}),
        frame(FOUND, b"more"),
        frame({"type": "skipped", "case": b"s0"}),
        frame(FAILED | {"path": b"/etc/passwd"}),
        frame(FAILED | {"path": b"/scans/../etc/passwd"}),
        frame(FAILED | {"path": b"/scans/.."}),
        frame(FAILED | {"reason": b"x" * (4 * LONGEST_TEXT + 1)}),
        frame(FAILED | {"reason": b"\xff"}),
        frame(FAILED | {"key": "key"}),
        frame(COVERED | {"shape": [2, 2, 2, 2]}),
        frame(COVERED | {"shape": [1, 1, 1, SCAN.voxels.size + 1]}),
        frame(COVERED | {"shape": [1, MANY, 1, 1]}),
        frame(COVERED | {"shape": [1, -1, -1, 1]}),
        frame(COVERED | {"shape": [1, 1, 1]}),
        frame(COVERED | {"distance_mm": 0.0}),
        frame(COVERED | {"distance_mm": 1e-300}),
        frame(COVERED | {"first_row": -1}),
        frame(COVERED),
        frame([]),
        frame(None),
        HEADER.pack(MAGIC, 100_000, 0) + b"\x91" * 100_000,
        HEADER.pack(MAGIC, 0xFFFFFFFF, 0),
        HEADER.pack(MAGIC, 0, 0),
        HEADER.pack(b"PSEX", 4, 0) + b"\x80\x80\x80\x80",
        HEADER.pack(MAGIC, len(pickle.dumps(1)), 0) + pickle.dumps(1),
        pickle.dumps({"a": "pickle of some length"}),
    ],
)
def test_anything_else_is_no_answer(content: bytes) -> None:
    with pytest.raises(ProtocolError):
        next_answer(io.BytesIO(content), ASKED)


def test_a_scan_whose_arrays_are_not_finite_or_short() -> None:
    whole = sent(prepare(SCAN, CONTRACT).crop_to_grid())
    with pytest.raises(ProtocolError, match="not finite"):
        next_answer(io.BytesIO(whole[:-4] + b"\xff\xff\xff\x7f"), ASKED)
    with pytest.raises(EOFError):
        next_answer(io.BytesIO(whole[:-1]), ASKED)


def test_labels_of_a_scan_are_not_asked_for_without_end() -> None:
    whole = sent(prepare(SCAN, CONTRACT).crop_to_grid())
    next_answer(io.BytesIO(whole), replace(ASKED, labelled=MOST_QUESTIONS - 1))
    with pytest.raises(ProtocolError, match=f"labels were given {MOST_QUESTIONS} times"):
        next_answer(io.BytesIO(whole), replace(ASKED, labelled=MOST_QUESTIONS))


@pytest.mark.parametrize("samples", [(0, 2, 6), (6,), None])
def test_samples_come_as_they_were_sent(samples: tuple[int, ...] | None) -> None:
    covered = replace(prepare(SCAN, CONTRACT).crop_to_grid(), samples=samples, grow=True, known=(1, 6))
    found = heard(sent(covered))
    assert (found.samples, found.grow, found.known) == (samples, True, (1, 6))


@pytest.mark.parametrize("samples", [(7,), (2, 2), (3, 1), (2**40,)])
@pytest.mark.parametrize("field", ["samples", "known"])
def test_samples_that_the_scan_has_not_are_refused(field: str, samples: tuple[int, ...]) -> None:
    changed: dict[str, Any] = {"samples": (1,), field: samples}
    covered = replace(prepare(SCAN, CONTRACT).crop_to_grid(), **changed)
    with pytest.raises(ProtocolError):
        next_answer(io.BytesIO(sent(covered)), ASKED)


def test_a_search_of_no_sample_is_refused() -> None:
    covered = replace(prepare(SCAN, CONTRACT).crop_to_grid(), samples=())
    with pytest.raises(ProtocolError):
        next_answer(io.BytesIO(sent(covered)), ASKED)


@pytest.fixture
def first_is_hostile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """Makes the first process a hostile one of a kind; those after it are not."""

    def make(kind: str) -> Path:
        harmed, started = tmp_path / "harmed", []

        def command(module: str) -> list[str]:
            started.append(module)
            hostile = [sys.executable, "-m", "tests.runtime.pipeline.hostile_worker", kind, str(harmed)]
            return hostile if len(started) == 1 else command_of(module)

        monkeypatch.setattr(worker_process, "FORKS", False)
        monkeypatch.setattr(worker_process, "command_of", command)
        return harmed

    return make


@pytest.mark.parametrize(
    "kind", ["a pickle", "a pickle in a frame", "a huge head", "huge arrays", "a huge scan", "a foreign path"]
)
def test_a_worker_that_was_taken_over_costs_its_case_only(
    cases: list[Case],
    tmp_path: Path,
    first_is_hostile: Callable[..., Path],
    kind: str,
) -> None:
    harmed = first_is_hostile(kind)
    finished = run(tmp_path, cases[:2], Observed(), pictures=False)
    assert not harmed.exists()
    assert finished["s0"].status == "failed"
    assert "its process was ended because of an answer that is not valid" in finished["s0"].entry.reason
    assert finished["s1"].status == "done"
    pickle.loads(pickle.dumps(Harm(str(harmed))))
    assert harmed.exists()  # the pickle does what it is for


def test_a_worker_whose_child_keeps_its_output_open_is_ended_all_the_same(
    first_is_hostile: Callable[..., Path],
) -> None:
    started = first_is_hostile("a child that holds on")
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    worker = Worker(events, worker_process.WorkerStarter().start())
    worker.begin(WORK)
    worker.give(JOB, 1)
    end = time.monotonic() + 60
    while not started.exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    worker.kill("it hung")
    assert events.get(timeout=30)[1] == WorkerDied("it hung")
    worker.wait()
