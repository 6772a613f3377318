"""The processes of workers: forked by one that has imported what they need, or each started by itself."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from parotid_seg.errors import MachineError
from parotid_seg.runtime.pipeline import worker_process, worker_server
from parotid_seg.runtime.pipeline.discovery import Case
from parotid_seg.runtime.pipeline.worker_process import WorkerStarter
from tests.runtime.pipeline.test_pipeline import Observed, check_masks, pid, run

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
    for process in (first, second):
        process.kill()
        assert process.wait() == -signal.SIGKILL == process.returncode
        assert not Path(f"/proc/{process.pid}").exists()


def test_two_threads_wait_for_the_same_worker(starter: WorkerStarter) -> None:
    """That of the worker, and the one that ends the run."""
    worker = starter.start().process
    worker.kill()
    assert worker.wait() == -signal.SIGKILL
    worker.returncode = None
    assert worker.wait() == -signal.SIGKILL
    assert starter._server._process.poll() is None


def test_a_worker_ends_when_its_connection_is_closed(starter: WorkerStarter) -> None:
    workers = [starter.start() for _ in range(2)]
    workers[0].connection.close()
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
    wait_until(lambda: gone(number))
    assert worker.process.wait() == -signal.SIGKILL
    worker.process.kill()
    wait_until(lambda: starter._server._process.poll() is not None)
    another = starter.start()
    assert status(another.process.pid)["PPid"] == str(starter._server._process.pid)


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
    monkeypatch.setattr(starter._server, "answer", lambda _: -11)
    with pytest.raises(MachineError, match="Resource temporarily unavailable"):
        starter.start()


def test_the_server_tells_why_it_cannot_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    def fork() -> int:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fork)
    end = os.open(os.devnull, os.O_RDONLY)
    assert worker_server._forked(None, end) == -11  # type: ignore[arg-type]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(end)


def test_a_run_goes_on_when_the_process_that_forks_is_killed(cases: list[Case], tmp_path: Path) -> None:
    killed: list[int] = []

    def kill(worker: Any) -> None:
        if not killed:
            killed.append(int(status(pid(worker))["PPid"]))
            os.kill(killed[0], signal.SIGKILL)

    finished = run(tmp_path, cases[:2], Observed(kill), pictures=False)
    assert killed
    assert {each.status for each in finished.values()} <= {"done", "failed"}, "a case may lose both of its tries"
    failed = [case for case in cases[:2] if finished[case.name].status == "failed"]
    again = run(tmp_path, failed, pictures=False)
    assert {each.status for each in again.values()} <= {"done"}
    for path in tmp_path.glob("**/.partial-*"):  # `infer` removes them when it begins
        path.unlink()
    check_masks(tmp_path, cases[:2])


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
