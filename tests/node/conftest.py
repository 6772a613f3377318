"""What the node's tests share."""

import pytest

from parotid_seg.node import send as sending
from tests.node.peers import Archive, Node, Process, fake_segment, free_port


@pytest.fixture
def start(tmp_path):
    """Starts nodes, all in one folder unless told otherwise, and stops them."""
    nodes = []

    def starter(segment=fake_segment, out=None, **options) -> Node:
        nodes.append(Node(out or tmp_path / "node", segment, **options))
        return nodes[-1]

    yield starter
    for node in nodes:
        node.stop()
        assert node.status == 0


@pytest.fixture
def archive():
    peer = Archive(free_port())
    yield peer
    peer.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(sending, "FIRST_WAIT_S", 0.1)


@pytest.fixture
def start_process(tmp_path):
    nodes = []

    def starter(archive_port=1, seconds=0.0, quiet_s=0.2) -> Process:
        nodes.append(Process(tmp_path / "node", archive_port, seconds, quiet_s))
        return nodes[-1]

    yield starter
    for node in nodes:
        node.process.kill()
        node.process.wait()
        node.process.stderr.close()
