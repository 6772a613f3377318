"""The processes of workers: forked by one that has imported what they need, or each started by itself."""

import contextlib
import os
import queue
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from parotid_seg.errors import MachineError
from parotid_seg.runtime.engines.base import ExecutionInfo
from parotid_seg.runtime.pipeline import scheduler, worker_process, worker_server
from parotid_seg.runtime.pipeline.discovery import Case
from parotid_seg.runtime.pipeline.infer_options import InferOptions
from parotid_seg.runtime.pipeline.protocol.messages import CaseRequest
from parotid_seg.runtime.pipeline.run import infer
from parotid_seg.runtime.pipeline.scheduler import Limits, Pipeline
from parotid_seg.runtime.pipeline.worker_pool import Event, Worker, WorkerDied, WorkerPool
from parotid_seg.runtime.pipeline.worker_process import WorkerStarter
from parotid_seg.runtime.segmentation.batching import Batcher
from tests.runtime.pipeline.test_answers import JOB, WORK
from tests.runtime.pipeline.test_pipeline import Observed, check_masks, pid, run, work
from tests.runtime.segmentation.test_batches import Threshold

pytestmark = pytest.mark.skipif(not worker_process.FORKS, reason="workers are forked on Linux only")


@pytest.fixture
def starter() -> Iterator[WorkerStarter]:
    starter = WorkerStarter()
    yield starter
    starter.close()


def status(number: int) -> dict[str, str]:
    lines = Path(f"/proc/{number}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def gone(number: int) -> bool:
    try:
        return status(number)["State"][0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def sockets(number: int) -> set[str]:
    opened = set()
    for each in Path(f"/proc/{number}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it has been closed meanwhile
            opened.add(str(each.readlink()))
    return {name for name in opened if name.startswith("socket:")}


def wait_until(ready: Any) -> None:
    end = time.monotonic() + 20
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_workers_are_forked_by_one_process_without_threads(starter: WorkerStarter) -> None:
    first, second = (starter.start().process for _ in range(2))
    parents = {status(process.pid)["PPid"] for process in (first, second)}
    assert parents == {str(starter._server._process.pid)}
    assert status(int(parents.pop()))["Threads"] == "1"
    wait_until(lambda: len(sockets(second.pid)) == 1)  # its own, and none of the first
    for process in (first, second):
        process.kill()
        assert process.wait() == -signal.SIGKILL == process.returncode
        assert not Path(f"/proc/{process.pid}").exists()


def test_a_worker_ends_when_its_connection_is_closed(starter: WorkerStarter) -> None:
    workers = [starter.start() for _ in range(2)]
    workers[0].connection.close()
    wait_until(lambda: gone(workers[0].process.pid))
    workers[0].process.kill()
    assert workers[0].process.wait() == 0
    assert not gone(workers[1].process.pid)


@pytest.mark.usefixtures("started_workers")
def test_ctrl_c_while_it_imports_is_left_to_the_parent(starter: WorkerStarter) -> None:
    server = starter._server._process.pid
    wait_until(lambda: int(status(server)["SigIgn"], 16) >> (signal.SIGINT - 1) & 1)
    assert "_nd_image" not in Path(f"/proc/{server}/maps").read_text(), "it has not imported scipy.ndimage yet"
    os.kill(server, signal.SIGINT)
    assert starter.start().process.pid > 0


def test_workers_end_with_the_process_that_forked_them(starter: WorkerStarter) -> None:
    worker = starter.start()
    number = worker.process.pid
    assert not gone(number)
    starter._server._process.kill()
    worker.process.kill()
    with pytest.raises(MachineError, match="the process that starts workers was killed"):
        worker.process.wait()
    assert gone(number)
    worker.process.kill()
    assert worker.process.wait() == -signal.SIGKILL
    another = starter.start()
    assert status(another.process.pid)["PPid"] == str(starter._server._process.pid)


def test_a_worker_ended_by_a_signal_without_a_name_is_noticed(starter: WorkerStarter) -> None:
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    process = starter.start()
    worker = Worker(events, process)
    os.kill(process.process.pid, signal.SIGRTMIN + 3)
    wait_until(lambda: worker.has_ended)
    worker.begin(WORK)
    worker.give(JOB, 1)
    assert events.get(timeout=30)[1] == WorkerDied(f"its process was ended by signal {signal.SIGRTMIN + 3}")
    worker.wait()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_whose_end_cannot_be_learnt_is_noticed(
    starter: WorkerStarter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run waits for the event of each worker that has ended."""

    def wait() -> int:
        raise MemoryError

    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    process = starter.start()
    monkeypatch.setattr(process.process, "wait", wait)
    worker = Worker(events, process)
    worker.kill()
    assert events.get(timeout=30)[1] == WorkerDied("its process has ended")
    worker.wait()


def test_nothing_is_left_when_the_first_is_given_up_at_once() -> None:
    starter = WorkerStarter()
    starter.start()
    begun = time.monotonic()
    server = starter._server._process
    starter.close()
    assert time.monotonic() - begun < 5
    assert server.wait() == -signal.SIGKILL


def test_a_process_that_cannot_be_forked(starter: WorkerStarter, monkeypatch: pytest.MonkeyPatch) -> None:
    starter.start()
    monkeypatch.setattr(worker_process._Forked, "_told", lambda _: -11)
    with pytest.raises(MachineError, match="Resource temporarily unavailable"):
        starter.start()


def test_the_server_tells_why_it_cannot_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    def fork() -> int:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fork)
    end = os.open(os.devnull, os.O_RDONLY)
    assert worker_server._forked(end) == -11
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(end)


def kill_server(worker: Any) -> int:
    server = int(status(pid(worker))["PPid"])
    assert b"python" in Path(f"/proc/{server}/cmdline").read_bytes()
    os.kill(server, signal.SIGKILL)
    wait_until(lambda: gone(server))
    return server


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "PUT_OFF_S", (0.02, 0.02, 0.02))


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("scan", [1, 2, 3])
def test_a_run_goes_on_when_the_process_that_forks_is_killed(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scan: int
) -> None:
    """While workers read, write or are idle."""
    seen: list[Any] = []
    add = Batcher.add

    def kill(self: Any, worker: Any, covered: Any) -> None:
        seen.append(worker)
        if len(seen) == scan:
            kill_server(worker)
        add(self, worker, covered)

    monkeypatch.setattr(Batcher, "add", kill)
    model: Any = Threshold()
    model.model_sha256, model.ran, model.batch_size = "ab" * 32, ExecutionInfo("threshold", "cpu", "fp32"), 4
    scans = [Path(str(each.scan[0])) for each in cases[:3]]
    summary = infer(scans, tmp_path, lambda: model, InferOptions(workers=2, report=False))
    assert len(seen) > 3
    assert (summary.done, summary.failed) == (3, 0)
    check_masks(tmp_path, cases[:3])


@pytest.mark.usefixtures("impatient")
def test_a_process_that_forks_and_is_killed_again_and_again(cases: list[Case], tmp_path: Path) -> None:
    servers: list[int] = []

    def kill(worker: Any) -> None:
        if worker.job.case.name == "s0":
            servers.append(kill_server(worker))

    finished = run(tmp_path, cases[:2], Observed(kill), Limits(1, 1e9), pictures=False)
    assert len(set(servers)) == len(servers) == 1 + len(scheduler.PUT_OFF_S)
    assert finished["s0"].status == "failed"
    assert finished["s0"].machine
    assert finished["s0"].entry.reason == (
        "set aside, run it again: the process that starts workers was killed, perhaps for want of memory"
    )
    assert finished["s1"].status == "done"


@pytest.mark.parametrize("end", [lambda worker: os.kill(pid(worker), signal.SIGKILL), kill_server])
def test_an_idle_worker_that_has_ended_is_given_no_case(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: Callable[[Any], object]
) -> None:
    given: list[Worker] = []
    give = Worker.give

    def observed(worker: Worker, job: CaseRequest, voxels: int) -> None:
        given.append(worker)
        give(worker, job, voxels)

    monkeypatch.setattr(Worker, "give", observed)
    with contextlib.closing(WorkerPool()) as pool:
        pipeline = Pipeline(work(tmp_path, pictures=False), Observed(), Limits(1, 1e9), pool)
        idle = pool._spare[0]
        for case in cases[:2]:
            number = pid(idle)
            end(idle)
            wait_until(lambda number=number: gone(number))
            (finished,) = pipeline.run([CaseRequest(case, None)])
            assert finished.status == "done"
            (worker,) = given
            assert worker is not idle
            idle = given.pop()


def test_where_nothing_is_forked_each_worker_is_a_program(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_process, "FORKS", False)
    monkeypatch.setattr(worker_process, "subprocess", subprocess)
    parents: set[str] = set()
    finished = run(
        tmp_path, cases[:2], Observed(lambda worker: parents.add(status(pid(worker))["PPid"])), pictures=False
    )
    assert {each.status for each in finished.values()} == {"done"}
    assert parents == {str(os.getpid())}
