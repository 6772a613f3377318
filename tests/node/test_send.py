"""Results on their way: to a peer that is there, away, unwilling, or has them already."""

import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pydicom
import pytest

from parotid_seg.node import send as sending
from parotid_seg.node.ledger import DONE, REFUSED, SENT
from parotid_seg.node.listen_options import Peer
from tests.node.peers import DCMTK, NAME, Archive, Node, dcmtk, make_series, name_of, send, storescu
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
