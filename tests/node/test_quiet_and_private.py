"""What hostile peers leave behind: one short line each, no traceback; and nothing of a node is for others to read."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from parotid_seg.node import segmenting
from parotid_seg.node.ledger import DONE, FAILED, SENT
from parotid_seg.node.work import Segmented
from parotid_seg.runtime.formats.mask_formats import FORMATS, RTSTRUCT
from tests.command_line import Run
from tests.node.hostile_peers import RELEASE, associate_request, connect, data, pdu
from tests.node.peers import Archive, Node, Process, fake_segment, make_series, name_of, send
from tests.processes.held import held

pytestmark = pytest.mark.slow


HOSTILE = [
    pdu(0x99, b""),
    pdu(1, b"\0\1" + bytes(70)),
    pdu(2, bytes(80)),
    pdu(3, bytes(4)),
    pdu(4, b"\0\0\0\0"),
    pdu(4, b"\xff\xff\xff\xff\1\3"),
    pdu(6, bytes(4)),
    pdu(7, b""),
    data(b"\xff" * 40),
    data(b"\0\0\0\0\4\0\0\0\0\0\0\0"),
    data(b"x", context=9),
    associate_request().replace(b"PAROTID-SEG", b"Doe^John\x07\n.."),
    pdu(4, b"half", 4000),
    RELEASE + RELEASE + pdu(4, bytes(100)),
    associate_request(),
]


def event_report() -> bytes:
    """An N-EVENT-REPORT-RQ, for which pynetdicom starts a thread."""
    elements = (
        b"\0\0\0\1\2\0\0\0\0\1",
        b"\0\0\x10\1\2\0\0\0\7\0",
        b"\0\0\0\x08\2\0\0\0\1\1",
        b"\0\0\2\0\4\0\0\0001.2\0",
        b"\0\0\0\x10\4\0\0\0001.2\0",
        b"\0\0\2\x10\2\0\0\0\1\0",
    )
    return data(b"".join(elements))


def test_quiet_leaves_out_all_but_what_went_wrong(
    start: Callable[..., Node], archive: Archive, tmp_path: Path, command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def segment(folder: Path, out: Path) -> Segmented:
        if folder.name == name_of(bad):
            return Segmented(reason="no gland")
        return replace(fake_segment(folder, out), failed="no gland in one" if folder.name == name_of(half) else "")

    good, bad, half = tmp_path / "good", tmp_path / "bad", tmp_path / "half"
    node = start(segment, send_to=archive.peer)
    send(node.options.port, make_series(good) + make_series(bad) + make_series(half))
    node.wait_for_status(name_of(good), SENT)
    node.wait_for_status(name_of(half), SENT)
    node.wait_for_status(name_of(bad), FAILED)
    node.stop()
    assert any("result sent" in line for line in node.lines)

    def listen(*_: object, say: Callable[[str], None], **__: object) -> int:
        for line in node.lines:
            say(line)
        return 0

    monkeypatch.setattr("parotid_seg.node.server.listen", listen)
    monkeypatch.setattr("parotid_seg.node.segmenting.settings_of", lambda *_: "")
    monkeypatch.setattr("parotid_seg.commands.model.load_model", lambda *_, say, **__: say("the engine is chosen"))
    for quiet in ("--quiet", None):
        done = command("listen", "--port", 11112, "--out", tmp_path / "out", *filter(None, [quiet]))
        if quiet:
            assert sorted(done.stderr.splitlines()) == sorted(
                [
                    f"parotid-seg: series {name_of(bad)}: cannot be segmented: no gland",
                    f"parotid-seg: series {name_of(half)}: a part of it cannot be segmented: no gland in one",
                ]
            )
        else:
            assert len(done.stderr.splitlines()) == len(node.lines) + 1


def test_a_volume_of_a_series_that_fails_is_told_apart_from_remarks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def infer(*_: object, progress: Callable[[Any], None]) -> None:
        result.touch()
        for status, failure in (("done", ""), ("failed", "series 2: too short")):
            entry = SimpleNamespace(failure=failure, flags=[])
            progress(SimpleNamespace(machine=False, status=status, entry=entry))

    monkeypatch.setattr(segmenting, "infer", infer)
    result = tmp_path / f"ct{FORMATS[RTSTRUCT].ending}"
    backend: Any = None
    assert segmenting.segment_with(backend)(tmp_path, tmp_path) == Segmented((result,), failed="series 2: too short")


def test_hostile_peers_leave_one_line_each_and_no_traceback(
    start_process: Callable[..., Process], tmp_path: Path
) -> None:
    node = start_process()
    peers = []
    for says in [*HOSTILE, event_report() * 50]:
        peer = connect(node.port)
        peer.sendall(associate_request())
        peer.recv(4096)
        peer.sendall(says)
        peers.append(peer)
    for peer in peers:
        peer.close()
    assert send(node.port, make_series(tmp_path / "ct")) == [0] * 3
    node.wait_for(lambda: node.calls("ended"))
    assert not [line for line in node.lines if "Traceback" in line or "Error" in line.partition(":")[0]]
    assert all(len(line) < 250 and line.isprintable() and "Doe" not in line for line in node.lines)
    assert len(node.lines) < len(HOSTILE) + 10


@pytest.mark.parametrize("before", [False, True])
def test_folders_and_files_are_for_the_nodes_user_only(
    start: Callable[..., Node], tmp_path: Path, before: bool
) -> None:
    if before:
        for name in ("inbox", "results", "state"):
            (tmp_path / "node" / name).mkdir(mode=0o755, parents=True)
        (tmp_path / "node").chmod(0o700)
    node = start(keep_received=True)
    assert send(node.options.port, make_series(tmp_path / "ct")) == [0] * 3
    node.wait_for_status(name_of(tmp_path / "ct"), DONE)
    paths = [node.options.out, *node.options.out.rglob("*")]
    assert len([path for path in paths if path.suffix == ".dcm"]) == 4
    for path in paths:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts in /proc, which is Linux's")
def test_series_leave_no_descriptor_thread_or_process_behind(start: Callable[..., Node], tmp_path: Path) -> None:
    node = start()

    def counts_after(numbers: range) -> tuple[int, int, int]:
        for number in numbers:
            assert send(node.options.port, make_series(tmp_path / f"ct{number}", slices=2)) == [0] * 2
        for number in numbers:
            node.wait_for_status(name_of(tmp_path / f"ct{number}"), DONE)
        node.wait_for(lambda: not [one for one in threading.enumerate() if "Acceptor" in one.name])
        time.sleep(0.1)  # a reading thread ends a moment after its association's
        return held()

    before = counts_after(range(3))
    assert counts_after(range(3, 15)) == before
