"""Peers that mean ill beside one that does not: it is served, and they cost little."""

import errno
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from pynetdicom import Association

from parotid_seg.errors import InputError
from parotid_seg.node import admission
from parotid_seg.node.admission import MOST_OPENING, SPARE_ASSOCIATIONS, Notices
from parotid_seg.node.ledger import DONE
from parotid_seg.node.listen_options import Caller
from tests.node.hostile_peers import Flood, associate_request, connect, data, pdu, received
from tests.node.peers import Node, associated, make_series, name_of, send

pytestmark = pytest.mark.slow


SILENT = b""
HALF = associate_request()[:30]
STRANGER = associate_request("STRANGER")
ALLOWED = associate_request()
WILD = b"GET / HTTP/1.0\r\n\r\n"


def send_all(node: Node, tmp_path: Path, count: int) -> None:
    folders = [tmp_path / f"ct{number:02d}" for number in range(count)]
    for folder in folders:
        assert send(node.options.port, make_series(folder)) == [0] * 3
    for folder in folders:
        node.wait_for_status(name_of(folder), DONE)


def test_a_flood_from_another_address_keeps_nobody_out(start: Callable[..., Node], tmp_path: Path) -> None:
    node = start(most_associations=4)
    before = threading.active_count()
    with Flood(node.options.port, ["127.0.0.2"], [SILENT, HALF, STRANGER, ALLOWED, WILD]) as flood:
        node.wait_for(lambda: flood.got[2] >= 4)  # it has all associations that it can have
        send_all(node, tmp_path, 12)
        assert threading.active_count() - before < 2 * (4 + SPARE_ASSOCIATIONS) + 2
        assert flood.made > 150
    told = [line for line in node.lines if "127.0.0.2" in line]
    assert 2 <= len(told) < 12
    assert all(len(line) < 200 for line in told)


def test_a_flood_from_many_addresses_does_not_keep_out_a_named_one(start: Callable[..., Node], tmp_path: Path) -> None:
    node = start(most_associations=2, allowed=("TESTER@127.0.0.1", "GUEST"))
    sources = [f"127.0.0.{number}" for number in range(2, 60)]
    with Flood(node.options.port, sources, [SILENT, associate_request("GUEST"), ALLOWED]) as flood:
        node.wait_for(lambda: flood.got[2] >= 2 + SPARE_ASSOCIATIONS and flood.got[3] > 20)
        send_all(node, tmp_path, 6)
    assert any("'TESTER' at 127.0.0." in line and "not allowed at this address" in line for line in node.lines)


def test_idle_connections_of_one_address_make_way_for_its_own_request(
    start: Callable[..., Node], tmp_path: Path
) -> None:
    node = start(most_associations=1)
    with Flood(node.options.port, ["127.0.0.1"], [SILENT], MOST_OPENING + 20):
        send_all(node, tmp_path, 3)


def test_an_allowed_title_from_another_address(start: Callable[..., Node]) -> None:
    node = start(allowed=("TESTER@127.0.0.2",))
    with associated(node.options.port) as association:
        assert association.is_rejected
    with connect(node.options.port, "127.0.0.2") as peer:
        peer.sendall(ALLOWED)
        assert peer.recv(1) == b"\x02"


def test_what_came_first_is_answered_and_closed(start: Callable[..., Node], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "FIRST_PDU_S", 0.3)
    node = start()
    abort, reject = b"\x07\0\0\0\0\x04\0\0\x02\x02", b"\x03\0\0\0\0\x04\0\x01\x01\x03"
    for says, answer in (
        (WILD, abort),
        (data(b"x"), abort),
        (pdu(1, b"", 0xFFFFFFFF), abort),
        (pdu(1, b""), abort),
        (STRANGER, reject),
        (pdu(1, bytes(36)), reject),
        (HALF, b""),
        (SILENT, b""),
    ):
        with connect(node.options.port) as peer:
            peer.sendall(says)
            assert received(peer) == answer


def test_no_descriptor_is_left_for_a_connection(
    start: Callable[..., Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = start()
    real, tries = socket.socket.accept, []

    def accept(listener: socket.socket) -> tuple[socket.socket, tuple[str, int]]:
        tries.append(1)
        if len(tries) < 5:
            raise OSError(errno.EMFILE, "Too many open files")
        return real(listener)

    monkeypatch.setattr(socket.socket, "accept", accept)
    send_all(node, tmp_path, 1)
    assert [line for line in node.lines if "Too many open files" in line] == [
        "this machine: a connection cannot be accepted (Too many open files)"
    ]


def test_no_thread_is_left_for_an_association(
    start: Callable[..., Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = start()

    def begin(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(Association, "start", begin)
        with connect(node.options.port) as peer:
            peer.sendall(ALLOWED)
            assert received(peer) == b""
    send_all(node, tmp_path, 1)
    assert any("an association cannot be begun (RuntimeError)" in line for line in node.lines)


def test_repeated_lines_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "NOTICE_S", 1000.0)
    lines: list[str] = []
    notices = Notices(lines.append)
    for number in range(100):
        notices.say("10.0.0.1", "rejected", f"T{number}")
    assert lines == ["'T0' at 10.0.0.1: rejected"]
    notices._until = 0.0
    notices.flush()
    assert lines[1:] == ["10.0.0.1: 99 times more: rejected"]
    for number in range(10000):
        notices.say(f"10.1.{number // 256}.{number % 256}", "rejected")
    assert len(lines) < 600


def test_who_may_connect() -> None:
    assert Caller.parse("CT1") == Caller("CT1")
    assert Caller.parse("CT1@10.0.0.5") == Caller("CT1", "10.0.0.5")
    assert Caller.parse("CT1@2001:DB8::1") == Caller("CT1", "2001:db8::1")
    assert Caller.parse("CT@HOSPITAL@10.0.0.5") == Caller("CT@HOSPITAL", "10.0.0.5")
    for address in ("planning-pc", "10.0.0.300", ""):
        with pytest.raises(InputError, match=f"--allow: found 'CT1@{address}', where '{address}' is no IP address"):
            Caller.parse(f"CT1@{address}")
    with pytest.raises(InputError, match="--allow"):
        Caller.parse("A_TITLE_THAT_IS_TOO_LONG@10.0.0.5")
