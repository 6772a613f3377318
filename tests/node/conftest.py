"""What the node's tests share."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from parotid_seg.node import reception, server
from parotid_seg.node import send as sending
from parotid_seg.node.work import Segmented
from tests.node.peers import Archive, Node, Process, fake_segment
from tests.processes.ports import free_port


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    """Starts nodes, all in one folder unless told otherwise, and stops them."""
    nodes = []

    def starter(segment: Callable[..., Segmented] = fake_segment, out: Path | None = None, **options: Any) -> Node:
        nodes.append(Node(out or tmp_path / "node", segment, **options))
        return nodes[-1]

    yield starter
    for node in nodes:
        node.stop()
        assert node.status == 0


@pytest.fixture
def archive() -> Iterator[Archive]:
    peer = Archive(free_port())
    yield peer
    peer.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes in threads of this process wait shorter between two looks."""
    monkeypatch.setattr(sending, "FIRST_WAIT_S", 0.1)
    for module in (server, reception, sending):
        monkeypatch.setattr(module, "POLL_S", 0.02)


@pytest.fixture
def start_process(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    nodes = []

    def starter(archive_port: int = 1, seconds: float = 0.0, quiet_s: float = 0.2) -> Process:
        nodes.append(Process(tmp_path / "node", archive_port, seconds, quiet_s))
        return nodes[-1]

    yield starter
    for node in nodes:
        node.close()
