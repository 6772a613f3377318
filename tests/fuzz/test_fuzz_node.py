"""What anybody may send to the node's port: it ends each connection soon, leaves a line at most, and goes on."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from parotid_seg.node import admission, bounds, reception
from parotid_seg.node.admission import MOST_NOTICES
from parotid_seg.node.ledger import DONE
from tests.fuzz.memory import little_memory
from tests.fuzz.mutate import LONGEST_S, mutant, numbers
from tests.node.hostile_peers import RELEASE, associate_request, connect, data, pdu, received
from tests.node.peers import Node, make_series, name_of, send
from tests.processes.held import held

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # pydicom's, over what is wrong here on purpose

AT_ONCE = 8
CT, ECHO = b"1.2.840.10008.5.1.4.1.1.2\0", b"1.2.840.10008.1.1\0"
REQUEST = associate_request()


def command(field: int, sop_class: bytes, *, with_data: bool) -> bytes:
    """A command set (DICOM PS3.7, section 6.3.1)."""
    elements = (
        (0x0002, sop_class),
        (0x0100, struct.pack("<H", field)),
        (0x0110, b"\1\0"),
        (0x0700, b"\0\0"),
        (0x0800, b"\0\0" if with_data else b"\1\1"),
        (0x1000, b"1.2.3\0"),
    )
    content = b"".join(struct.pack("<HHL", 0, number, len(value)) + value for number, value in elements)
    return struct.pack("<HHLL", 0, 0, 4, len(content)) + content


def spoken(image: bytes) -> list[bytes]:
    """What peers may say in an association."""
    store = data(command(0x0001, CT, with_data=True))
    half = len(image) // 2
    return [
        data(command(0x0030, ECHO, with_data=False)) + RELEASE,
        store + data(image, control=2) + RELEASE,
        store + data(image[:half], control=0) + data(image[half:], control=2),
        data(command(0x0100, ECHO, with_data=False)) * 3,
        data(command(0x0020, CT, with_data=True)) + data(image, control=2),
        data(command(0x0FFF, CT, with_data=False)) * 20,
        pdu(7, b"\0\0\0\0"),
        pdu(2, REQUEST[6:]),
        RELEASE,
        pdu(4, b""),
    ]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """One node for all loops, which waits a second for what a peer says first and last."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(admission, "FIRST_PDU_S", 1.0)
        for module in (bounds, reception):
            patch.setattr(module, "CLOSING_S", 1.0)
        running = Node(tmp_path_factory.mktemp("node") / "out", most_associations=AT_ONCE + 2)
        yield running
        running.stop()
    assert running.status == 0


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The data set of a small CT image."""
    path = make_series(tmp_path_factory.mktemp("ct") / "ct", slices=1)[0]
    content = path.read_bytes()
    return content[content.index(b"ISO_IR 192") - 8 :][:3000]


@pytest.fixture
def folders(node: Node) -> tuple[Path, ...]:
    """Where the node may write."""
    return (node.options.out.parent,)


def say(port: int, first: bytes, rest: bytes | None) -> float:
    """Say something to the node, if it takes that the rest, and wait until it closes the connection.

    Returns:
        How long that took, in seconds; or in seconds of this process's processor time, if they are fewer: on a busy
        machine it may hardly run.
    """
    begun, worked = time.perf_counter(), time.process_time()
    _say(port, first, rest)
    return min(time.perf_counter() - begun, time.process_time() - worked)


def _say(port: int, first: bytes, rest: bytes | None) -> None:
    with connect(port) as connection:
        connection.settimeout(20 * LONGEST_S)
        try:
            connection.sendall(first)
            if rest is not None and connection.recv(1 << 16)[:1] == b"\2":
                connection.sendall(rest)
            connection.shutdown(socket.SHUT_WR)
        except TimeoutError:
            raise
        except OSError:  # the node has closed it already
            return
        received(connection)


def loop(node: Node, count: int, first: list[bytes], rest: list[bytes] | None) -> None:
    """Have so many sessions with a node; of two parts the second is changed."""
    port = node.options.port

    def session(number: int) -> float:
        if rest is None:
            return say(port, mutant(first, 0, number), None)
        return say(port, first[0], mutant(rest, 0, number))

    begun = time.perf_counter()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        slowest = max(pool.map(session, numbers(count)))
    assert slowest < LONGEST_S
    seconds = time.perf_counter() - begun
    print(f"{count} connections, {count / seconds:.0f} a second, slowest {1000 * slowest:.0f} ms")  # noqa: T201


@pytest.fixture(autouse=True)
def unharmed(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """After a loop nothing is held, no thread has died of an error, lines are few and short, and the node does its
    work."""
    raised: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda error: raised.append(repr(error.exc_value)))
    say(node.options.port, REQUEST, RELEASE)
    time.sleep(0.2)
    before, lines = held(), len(node.lines)
    with little_memory():
        yield
    assert raised == []
    said = node.lines[lines:]
    assert len(said) < 2 * MOST_NOTICES
    assert all(len(line) < 300 and line.isprintable() for line in said)
    node.wait_for(lambda: all(now <= then for now, then in zip(held(), before, strict=True)))
    assert list((node.options.out / "inbox" / ".incoming").iterdir()) == []
    assert send(node.options.port, make_series(tmp_path / f"{tmp_path.name}-good")) == [0] * 3
    node.wait_for_status(name_of(tmp_path / f"{tmp_path.name}-good"), DONE)


def test_association_requests(node: Node, image: bytes, inputs: Callable[[int], int]) -> None:
    strange = [associate_request("STRANGER"), pdu(4, bytes(80)), b"GET / HTTP/1.0\r\n\r\n", b""]
    loop(node, inputs(300), [REQUEST, REQUEST, *strange], None)


def test_messages(node: Node, image: bytes, inputs: Callable[[int], int]) -> None:
    loop(node, inputs(150), [REQUEST], spoken(image))
