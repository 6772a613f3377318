"""A series on disk through the ledger's states, without a network."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from parotid_seg.errors import MachineError, OutputError, ScanError
from parotid_seg.node import inbox
from parotid_seg.node.inbox import PATIENCE
from parotid_seg.node.ledger import DONE, FAILED, INCOMPLETE, SENT, STARTED, Ledger, ReceivedSlice, SeriesRecord
from parotid_seg.node.listen_options import Peer
from parotid_seg.node.work import MOST_DEATHS, Segmented
from tests.node.work_bench import QUIET_S, Bench, Clock


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox, "time", Clock)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_series_is_done_once_and_its_slices_go(bench: Bench) -> None:
    series = bench.receive("a", "b")
    assert bench.run() == [series]
    assert (bench.status(series), bench.result(series)) == (DONE, "a b")
    assert bench.inbox.all_series() == []
    again = bench.restarted()
    assert again.run() == []


def test_a_series_that_another_model_segmented_is_segmented_again(tmp_path: Path) -> None:
    """Its sender would take the contours of the old model for those of the new one."""
    bench = Bench(tmp_path, settings="old model")
    series = bench.receive("a", "b")
    bench.run()
    again = bench.restarted(settings="old model")
    again.receive("a", "b")
    again.run()
    assert again.calls == []
    newer = bench.restarted(settings="new model", segment=lambda folder, out: Segmented(reason="not with this one"))
    newer.receive("a", "b")
    newer.run()
    assert newer.calls == [["a", "b"]]
    assert newer.status(series) == FAILED


def test_slices_are_kept_where_that_is_wanted(tmp_path: Path) -> None:
    bench = Bench(tmp_path, keep_received=True)
    series = bench.receive("a", "b")
    bench.run()
    assert len(bench.inbox.times(series)) == 2
    again = bench.restarted(keep_received=True)
    assert again.run() == []
    again.receive("c")
    again.run()
    assert again.result(series) == "a b c"


def test_it_waits_for_the_association_and_for_quiet(bench: Bench) -> None:
    first, second = (bench.inbox.new_path() for _ in range(2))
    series = bench.inbox.place(first.open("xb"), first, "1.2", "1", "slow")
    assert bench.run() == []  # quiet, but open
    bench.inbox.place(second.open("xb"), second, "1.2", "2", "fast")
    bench.inbox.left("slow")
    assert bench.inbox.take() is None
    bench.inbox.left("fast")
    assert bench.inbox.take() is None  # closed, but not quiet
    assert bench.run() == [series]


def test_an_association_that_never_closes_does_not_hold_it_up_for_ever(bench: Bench) -> None:
    path = bench.inbox.new_path()
    series = bench.inbox.place(path.open("xb"), path, "1.2", "1", "eternal")
    Clock.sleep(QUIET_S * PATIENCE)
    assert bench.inbox.take() == series


def test_more_slices_after_it_was_done(bench: Bench) -> None:
    series = bench.receive("a", "b")
    bench.run()
    bench.receive("c")
    bench.run()
    assert bench.status(series) == INCOMPLETE
    assert "2 slices that were received before are removed by now" in bench.ledger.get(series).reason
    assert bench.result(series) == "a b"
    again = bench.restarted()
    again.receive("a", "b")
    again.run()
    assert (again.status(series), again.result(series)) == (DONE, "a b c")


def test_slices_that_changed(bench: Bench) -> None:
    series = bench.receive("a", "b")
    bench.run()
    bench.receive("a", "b changed")
    bench.run()
    assert bench.result(series) == "a b changed"


def test_it_comes_again_unchanged(bench: Bench) -> None:
    series = bench.receive("a", "b")
    bench.run()
    bench.receive("b")
    bench.run()
    assert len(bench.calls) == 1
    assert bench.status(series) == DONE
    assert bench.inbox.all_series() == []


def test_it_comes_again_when_its_result_was_taken_away(bench: Bench) -> None:
    series = bench.receive("a", "b")
    bench.run()
    shutil.rmtree(bench.work.results / series)
    bench.receive("a", "b")
    bench.run()
    assert bench.result(series) == "a b"
    assert len(bench.calls) == 2


def test_a_failed_series_is_kept_and_done_when_more_comes(bench: Bench) -> None:
    def gap(folder: Path, out: Path) -> None:
        raise ScanError("a slice\nis missing")

    bench.segment = gap
    series = bench.receive("a", "c")
    bench.run()
    assert (bench.status(series), bench.ledger.get(series).reason) == (FAILED, "a slice is missing")
    again = bench.restarted()
    assert again.run() == []  # it would fail again
    again.receive("b")
    again.run()
    assert again.result(series) == "a b c"


def test_slices_that_come_while_it_is_in_work(bench: Bench) -> None:
    def slow(folder: Path, out: Path) -> Segmented:
        if len(bench.calls) == 1:
            bench.receive("c")
        return bench.write(folder, out)

    bench.segment = slow
    series = bench.receive("a", "b")
    bench.run()  # on a busy machine it is quiet for long enough before that ends, and is done twice
    bench.run()
    assert bench.calls == [["a", "b"], ["a", "b", "c"]]
    assert bench.result(series) == "a b c"
    assert bench.inbox.all_series() == []


def test_slices_that_come_while_the_result_is_sent(tmp_path: Path) -> None:
    bench = Bench(tmp_path, send_to=Peer("ARCHIVE", "127.0.0.1", 104))
    series = bench.receive("a", "b")
    bench.run()
    bench.receive("c")
    Clock.sleep(QUIET_S * 1.5)
    assert bench.inbox.take() == series
    bench.work.delivered(series)  # by the sender's thread
    bench.work.do(series)
    assert bench.result(series) == "a b c"
    bench.work.delivered(series)
    assert bench.inbox.all_series() == []


@pytest.mark.parametrize(
    "error",
    [MachineError("no more open files"), OSError(errno.EMFILE, "Too many open files"), OSError(errno.ENOMEM, "")],
)
def test_a_machine_that_has_run_out_of_something_puts_it_off(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr("parotid_seg.node.work.RETRY_S", QUIET_S * 4)

    def exhausted(folder: Path, out: Path) -> None:
        bench.segment = bench.write
        raise error

    bench.segment = exhausted
    series = bench.receive("a")
    bench.run()
    assert f"series {series}: put off" in bench.lines[-1]
    Clock.sleep(QUIET_S * 4)
    bench.run()
    assert (bench.status(series), bench.result(series), len(bench.calls)) == (DONE, "a", 2)


def test_a_full_disk_puts_it_off(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parotid_seg.node.work.RETRY_S", QUIET_S * 4)

    def full(folder: Path, out: Path) -> None:
        bench.segment = other_full
        raise OutputError("no room")

    def other_full(folder: Path, out: Path) -> None:
        bench.segment = bench.write
        raise OSError(errno.ENOSPC, "No space left on device")

    bench.segment = full
    series = bench.receive("a")
    bench.run()
    assert "put off, files cannot be read or written: no room" in bench.lines[-1]
    assert bench.run() == []
    for _ in range(2):
        Clock.sleep(QUIET_S * 4)
        bench.run()
    assert (bench.status(series), bench.result(series), len(bench.calls)) == (DONE, "a", 3)
    assert list(bench.work.results.glob(".partial*")) == []


@pytest.mark.parametrize(
    "wrong",
    [
        lambda folder, out: Segmented(),
        lambda folder, out: Segmented((out / "nothing.dcm",)),
        lambda folder, out: Segmented(tuple(folder.iterdir())),
    ],
)
def test_a_result_that_is_none(bench: Bench, wrong: Callable[..., Any]) -> None:
    bench.segment = wrong
    series = bench.receive("a")
    bench.run()
    assert (bench.status(series), bench.ledger.get(series).reason) == (FAILED, "there is no result")


def test_a_series_that_kills_the_node_is_given_up(bench: Bench) -> None:
    class Killed(BaseException):
        pass

    def kill(folder: Path, out: Path) -> None:
        raise Killed

    series = bench.receive("a")
    for _ in range(MOST_DEATHS):
        bench.segment = kill
        with pytest.raises(Killed):
            bench.run()
        assert bench.status(series) == STARTED
        bench = bench.restarted()
    bench.run()
    assert (bench.status(series), bench.calls) == (FAILED, [])
    assert bench.ledger.get(series).reason == f"the node died {MOST_DEATHS} times while it was at it"
    bench.receive("a")  # sent again: another try
    bench.run()
    assert bench.status(series) == DONE


def test_an_interrupted_series_is_not_counted_as_a_death(bench: Bench) -> None:
    def interrupt(folder: Path, out: Path) -> None:
        raise KeyboardInterrupt

    series = bench.receive("a")
    for _ in range(MOST_DEATHS + 1):
        bench.segment = interrupt
        with pytest.raises(KeyboardInterrupt):
            bench.run()
        bench = bench.restarted()
    bench.run()
    assert bench.status(series) == DONE


@pytest.mark.parametrize("where", ["segment", "record"])
def test_a_series_that_is_put_off_is_not_counted_as_a_death(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def full(*_: object) -> None:
        raise OutputError("no room")

    series = bench.receive("a")
    for _ in range(MOST_DEATHS + 1):
        if where == "segment":
            bench.segment = full
        else:
            monkeypatch.setattr(bench.work, "_record_done", full)
        bench.run()
        assert "put off" in bench.lines[-1]
        bench = bench.restarted()
    bench.run()
    assert bench.status(series) == DONE


def test_what_was_done_and_not_sent_is_sent_after_a_restart(tmp_path: Path) -> None:
    peer = Peer("ARCHIVE", "127.0.0.1", 104)
    bench = Bench(tmp_path, send_to=peer)
    series = bench.receive("a")
    bench.run()
    assert bench.outgoing == [series]
    assert bench.inbox.all_series() == [series]  # until it is sent
    again = bench.restarted(send_to=peer)
    assert (again.outgoing, again.run()) == ([series], [])
    record = again.ledger.get(series)
    assert record is not None
    assert again.ledger.replace(series, record, SeriesRecord(SENT, record.slices, results=record.results))
    last = again.restarted(send_to=peer)
    assert (last.outgoing, last.run(), last.inbox.all_series()) == ([], [], [])


def test_old_slices_of_a_failed_series_are_removed(tmp_path: Path) -> None:
    bench = Bench(tmp_path, segment=lambda folder, out: Segmented(reason="no gland"), keep_failed_days=1)
    old, new = bench.receive("a", series="1.2"), bench.receive("b", series="1.3")
    bench.run()
    for path in bench.inbox.path_of(old).iterdir():
        os.utime(path, (time.time() - 90000,) * 2)
    bench.work.expire()
    assert bench.inbox.all_series() == [new]
    assert bench.status(old) == FAILED
    assert "old and are removed (no gland)" in bench.lines[-1]


def test_half_written_things_of_a_killed_node_are_removed(bench: Bench) -> None:
    (bench.inbox.incoming / "0.dcm").write_text("half")
    (bench.work.results / ".partial-0123456789abcdef").mkdir()
    (bench.ledger.folder / ".partial-0123456789abcdef-x.json").write_text("{")
    (bench.ledger.folder / "torn.json").write_text('{"status": "do')
    again = bench.restarted()
    assert [path for path in bench.options.out.rglob("*") if "partial" in path.name or path.name == "0.dcm"] == []
    assert again.ledger.get("torn") is None


def test_a_record_is_replaced_only_as_it_was_known(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    one, other = (
        SeriesRecord(DONE, {"a": ReceivedSlice("0", 1)}),
        SeriesRecord(STARTED, {"a": ReceivedSlice("0", 1), "b": ReceivedSlice("1", 2)}),
    )
    ledger.put("s", one)
    assert ledger.get("s") == one
    ledger.put("s", other)
    assert not ledger.replace("s", one, SeriesRecord(SENT, {}))
    assert ledger.get("s") == other
    assert list(ledger) == ["s"]
