"""The node as a process: what signals do."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from parotid_seg.node.ledger import DONE, STARTED
from tests.node.peers import Process, associated, make_series, name_of, send

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_it_is_told_to_stop(start_process: Callable[..., Process], number: signal.Signals, status: int) -> None:
    node = start_process()
    assert node.end(number) == status
    node.wait_for(lambda: node.lines[-1] == "parotid-seg: stopped")


def test_it_is_told_to_stop_in_the_middle_of_a_series(start_process: Callable[..., Process], tmp_path: Path) -> None:
    node = start_process(seconds=1.5)
    send(node.port, make_series(tmp_path / "a"))
    node.wait_for(lambda: node.calls("begun"))
    node.process.send_signal(signal.SIGTERM)
    time.sleep(0.7)
    with associated(node.port) as late:
        assert not late.is_established
    assert node.process.wait(20) == 0
    assert node.status(name_of(tmp_path / "a")) == DONE


def test_it_is_told_to_stop_twice(start_process: Callable[..., Process], tmp_path: Path) -> None:
    node = start_process(seconds=30)
    send(node.port, make_series(tmp_path / "a"))
    node.wait_for(lambda: node.calls("begun"))
    node.process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    begun = time.monotonic()
    assert node.end(signal.SIGINT) == 130
    assert time.monotonic() - begun < 10
    assert node.status(name_of(tmp_path / "a")) == STARTED
    again = start_process()
    again.wait_for(lambda: again.status(name_of(tmp_path / "a")) == DONE)
