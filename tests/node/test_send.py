"""Results on their way: to a peer that is there, away, unwilling, or has them already. None makes the node wait for
ever, and no answer of one is lost."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage
from pynetdicom import Association, build_context
from pynetdicom.ae import ApplicationEntity
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import A_ASSOCIATE

from parotid_seg.node import bounds
from parotid_seg.node import send as sending
from parotid_seg.node.ledger import DONE, REFUSED, SENT, STARTED, Ledger, SeriesRecord
from parotid_seg.node.listen_options import Peer
from parotid_seg.node.send import Outbox, _Answers
from parotid_seg.node.work import Segmented
from tests.node.hostile_peers import data, pdu
from tests.node.peers import DCMTK, NAME, Archive, Node, dcmtk, fake_segment, make_series, name_of, send, storescu
from tests.processes.ports import free_port

pytestmark = pytest.mark.slow


def have_come(archive: Archive, times: int) -> bool:
    return len(archive.got) == times


@dcmtk
def test_results_go_to_dcmtk(start: Callable[..., Node], tmp_path: Path) -> None:
    port, inbox = free_port(), tmp_path / "archive"
    inbox.mkdir()
    server = subprocess.Popen([DCMTK["storescp"], "-od", str(inbox), "-aet", "ARCHIVE", str(port)])
    try:
        node = start(send_to=Peer("ARCHIVE", "127.0.0.1", port))
        make_series(tmp_path / "ct")
        storescu(node, tmp_path / "ct")
        node.wait_for_status(name_of(tmp_path / "ct"), SENT)
    finally:
        server.terminate()
        server.wait()
    (got,) = inbox.iterdir()
    assert pydicom.dcmread(got).PatientName == NAME


def test_the_peer_is_away_and_comes_back(start: Callable[..., Node], tmp_path: Path) -> None:
    port = free_port()
    node = start(send_to=Peer("ARCHIVE", "127.0.0.1", port))
    send(node.options.port, make_series(tmp_path / "a"))
    node.wait_for_status(name_of(tmp_path / "a"), DONE)
    node.wait_for(lambda: sum("cannot be reached" in line for line in node.lines) > 1)
    node.stop()
    again = start(send_to=Peer("ARCHIVE", "127.0.0.1", port))  # and the node was restarted meanwhile
    send(again.options.port, make_series(tmp_path / "b"))
    again.wait_for_status(name_of(tmp_path / "b"), DONE)
    archive = Archive(port)
    again.wait_for_status(name_of(tmp_path / "a"), SENT)
    again.wait_for_status(name_of(tmp_path / "b"), SENT)
    archive.close()
    assert len(archive.got) == 2
    assert again.calls == [name_of(tmp_path / "b")]


def test_a_peer_that_refuses(start: Callable[..., Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "MOST_REFUSALS", 2)
    archive = Archive(free_port(), answer=0xC000)
    node = start(send_to=archive.peer)
    send(node.options.port, make_series(tmp_path / "ct"))
    assert node.wait_for_status(name_of(tmp_path / "ct"), REFUSED).reason == "status C000"
    node.stop()
    archive.close()
    better = Archive(archive.peer.port)
    again = start(send_to=archive.peer)
    again.wait_for_status(name_of(tmp_path / "ct"), SENT)
    better.close()
    assert again.calls == []


def test_a_series_that_comes_again_unchanged_is_sent_again_and_not_done_again(
    start: Callable[..., Node], archive: Archive, tmp_path: Path
) -> None:
    node = start(send_to=archive.peer)
    paths = make_series(tmp_path / "ct")
    for times in (1, 2):
        send(node.options.port, paths)
        node.wait_for(partial(have_come, archive, times))
        node.wait_for(lambda: not (node.options.out / "inbox" / name_of(tmp_path / "ct")).exists())
    assert len(node.calls) == 1
    assert archive.got[0].SOPInstanceUID == archive.got[1].SOPInstanceUID


@pytest.mark.parametrize("at", ["while it is sent", "before it is sent"])
def test_a_result_that_is_replaced_meanwhile_is_sent(at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Late slices: the series is segmented again while the peer is slow, or as its turn has come."""

    class Slow(Ledger):
        def get(self, series: str) -> SeriesRecord | None:
            found = super().get(series)
            if found == old and at == "before it is sent" and outbox._due():
                segment_again()
                return replace(old, status=STARTED)
            return found

    def segment_again() -> None:
        ledger.put("a", new)
        outbox.add("a")

    def store(*_: object) -> None:
        sent.append(ledger.get("a"))
        if sent == [old]:
            segment_again()

    sent: list[SeriesRecord | None] = []
    old, new = (SeriesRecord(DONE, {}, results=("rt.dcm",), settings=model) for model in ("old", "new"))
    ledger = Slow(tmp_path / "state")
    outbox = Outbox(Peer("ARCHIVE", "127.0.0.1", 104), "NODE", tmp_path, ledger, lambda _: None, lambda _: None)
    monkeypatch.setattr(sending, "_store", store)
    monkeypatch.setattr(outbox, "_kinds", lambda *_: [("RTSTRUCT", "explicit")])
    monkeypatch.setattr(outbox, "_association", lambda _: contextlib.nullcontext())
    ledger.put("a", old)
    outbox.add("a")
    end = time.monotonic() + 3
    outbox.run(lambda: not outbox._waiting or time.monotonic() > end)
    assert sent == ([old, new] if at == "while it is sent" else [new])
    assert ledger.get("a") == replace(new, status=SENT)


REQUEST_HEADER = 6


class Hanging:
    """A peer that stops at some stage and keeps the connection open.

    Args:
        port: where it listens.
        accepts: whether it accepts associations first.
        says: what it says then, if anything.
        repeats: whether it says that again and again.
    """

    def __init__(self, port: int, *, accepts: bool, says: bytes = b"", repeats: bool = False) -> None:
        self.peer = Peer("ARCHIVE", "127.0.0.1", port)
        self._accepts, self._says, self._repeats = accepts, says, repeats
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 12)
        self._listener.bind(("127.0.0.1", port))
        self._listener.listen()
        self._held: list[socket.socket] = []
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._held.append(connection)
                with contextlib.suppress(OSError):
                    self._talk(connection)

    def _talk(self, connection: socket.socket) -> None:
        request = connection.recv(REQUEST_HEADER)
        request += connection.recv(int.from_bytes(request[2:6], "big"), socket.MSG_WAITALL)
        if self._accepts:
            connection.sendall(accepting(request))
        connection.sendall(self._says)
        while self._repeats:
            connection.sendall(self._says)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for each in (self._listener, *self._held):
            each.close()


def accepting(request: bytes) -> bytes:
    """The A-ASSOCIATE-AC to a request."""
    asked = A_ASSOCIATE_RQ()
    asked.decode(request)
    primitive: A_ASSOCIATE = asked.to_primitive()
    context = build_context(RTStructureSetStorage, ExplicitVRLittleEndian)
    context.context_id, context.result = primitive.presentation_context_definition_list[0].context_id, 0
    primitive.presentation_context_definition_results_list = [context]
    primitive.result = 0
    answer = A_ASSOCIATE_AC()
    answer.from_primitive(primitive)
    return bytes(answer.encode())


def large(folder: Path, out: Path) -> Segmented:
    """A result that fits into no socket's buffers."""
    found = fake_segment(folder, out)
    result = pydicom.dcmread(found.files[0])
    result.add_new(0x00091010, "OB", bytes(30 << 20))
    result.save_as(found.files[0])
    return found


HANGING = {
    "says nothing": {"accepts": False},
    "half an acceptance": {"accepts": False, "says": b"\2\0\0\0\1\0half"},
    "a PDU of 4 GiB for an acceptance": {"accepts": False, "says": pdu(2, bytes(1000), 0xFFFFFFF0), "repeats": True},
    "does not read the result": {"accepts": True},
    "half an answer": {"accepts": True, "says": b"\4\0\0\0\1\0half"},
    "a PDU of 4 GiB for an answer": {"accepts": True, "says": pdu(4, bytes(1000), 0xFFFFFFF0), "repeats": True},
    "an answer without end": {"accepts": True, "says": data(bytes(10000), control=0), "repeats": True},
}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "NEGOTIATION_S", 0.5)
    monkeypatch.setattr(sending, "ANSWER_S", 1.0)  # the archive of this test, which answers, gets no longer, either
    monkeypatch.setattr(bounds, "CLOSING_S", 0.5)


@pytest.mark.parametrize("stops", HANGING.values(), ids=HANGING)
def test_a_peer_that_stops(start: Callable[..., Node], tmp_path: Path, impatient: None, stops: dict[str, Any]) -> None:
    before = threading.active_count()
    segment = large if stops == {"accepts": True} else fake_segment  # then it does not read all of it, either
    hanging = Hanging(free_port(), **stops)
    node = start(segment, send_to=hanging.peer)
    send(node.options.port, make_series(tmp_path / "ct"))
    node.wait_for(lambda: sum("trying again" in line for line in node.lines) > 1, seconds=30)
    hanging.close()
    archive = Archive(hanging.peer.port)
    node.wait_for_status(name_of(tmp_path / "ct"), SENT)
    node.stop()
    archive.close()
    node.wait_for(lambda: threading.active_count() <= before)
    assert archive.got  # twice, if an answer came later than this test is patient


def test_no_thread_but_the_one_that_waits_gets_an_answer(
    start: Callable[..., Node], archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pynetdicom's own thread is never paused here, and who waits is late."""

    class NeverPausing(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            time.sleep(0.001)
            return True

    make, get = Association.__init__, DIMSEServiceProvider.get_msg

    def made(self: Association, *args: ApplicationEntity | str, **options: Any) -> None:
        make(self, *args, **options)
        self._reactor_checkpoint = NeverPausing()

    def late(self: bounds.Messages | _Answers, block: bool = False) -> object:
        time.sleep(0.2 if block else 0.0)
        return get(self, block)

    monkeypatch.setattr(sending, "ANSWER_S", 2.0)
    monkeypatch.setattr(Association, "__init__", made)
    monkeypatch.setattr(DIMSEServiceProvider, "get_msg", late)
    node = start(send_to=archive.peer)
    assert send(node.options.port, make_series(tmp_path / "ct"), patience_s=2.0) == [0, 0, 0]
    node.wait_for_status(name_of(tmp_path / "ct"), SENT)
    assert not [line for line in node.lines if "does not answer" in line]
