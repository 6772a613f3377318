"""kill -9, while series come in, are segmented and sent: nothing is lost, nothing is done twice."""

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from parotid_seg.node.ledger import SENT
from tests.node.peers import Archive, Process, make_series, name_of, send
from tests.processes.ports import free_port


@pytest.mark.slow
def test_kill_9_again_and_again(start_process: Callable[..., Process], tmp_path: Path) -> None:
    archive = Archive(free_port())
    folders = [tmp_path / f"ct{number}" for number in range(4)]
    paths = {folder: make_series(folder) for folder in folders}
    node = start_process(archive.peer.port, 0.3, 2.0)
    taken: list[str] = []

    def deliver() -> None:
        """As a scanner does it: until all are taken, by whatever node is there."""
        for folder in folders:
            while True:
                try:
                    if send(node.port, paths[folder], patience_s=1) == [0] * 3:
                        break
                except Exception:  # nobody listens, or no longer
                    time.sleep(0.05)
            taken.append(name_of(folder))

    scanner = threading.Thread(target=deliver, daemon=True)
    scanner.start()
    moments = (
        lambda: len(list((node.out / "inbox").glob("*/*.dcm"))) > 1,
        lambda: len(taken) == 4 and node.calls("begun"),
        lambda: archive.got,
    )
    for moment in moments:
        node.wait_for(moment)
        node.process.kill()
        assert node.process.wait() == -signal.SIGKILL
        node = start_process(archive.peer.port, 0.3, 2.0)
    node.wait_for(lambda: all(node.status(name) == SENT for name in taken))
    assert node.end(signal.SIGTERM) == 0
    archive.close()
    sent = Counter(str(result.SOPInstanceUID) for result in archive.got)
    assert len(sent) == 4
    assert sum(sent.values()) <= 5  # the last kill may come before it is written down that the archive has it
    assert len(node.calls("ended")) <= 5  # nor that a result is whole
    assert {str(result.StructureSetDescription).split()[1] for result in archive.got} == {"3"}
    assert list((node.out / "inbox").rglob("*.dcm")) == []
    last: Process = start_process(archive.peer.port)
    time.sleep(0.5)
    assert last.end(signal.SIGTERM) == 0
    assert not any("segmenting" in line or "sent" in line for line in last.lines)
