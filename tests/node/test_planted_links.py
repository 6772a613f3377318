"""Links and folders of others in the node's folder: nothing outside it is changed, and nothing of others is removed."""

import threading
from pathlib import Path

import pytest

from parotid_seg.errors import OutputError
from parotid_seg.files import make_folder
from parotid_seg.node import inbox
from parotid_seg.node.listen_options import ListenOptions
from parotid_seg.node.server import listen
from tests.node.work_bench import Bench, Clock
from tests.processes.ports import free_port


def content(folder: Path) -> dict[str, tuple[int, str]]:
    """Modes and texts of everything in a folder, and its own mode."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mode, path.read_text() if path.is_file() else "")
        for path in (folder, *folder.rglob("*"))
    }


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Of a node whose folder is a link itself, which is allowed."""
    monkeypatch.setattr(inbox, "time", Clock)
    (tmp_path / "disk").mkdir()
    (tmp_path / "node").symlink_to(tmp_path / "disk")
    return Bench(tmp_path / "node")


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    victim = tmp_path / "victim"
    for name in ("study1/notes.txt", ".incoming/theirs.txt", ".partial-keep/theirs.txt", "state.json"):
        make_folder((victim / name).parent)
        (victim / name).write_text("theirs")
    victim.chmod(0o755)
    return victim


@pytest.mark.parametrize("name", ["inbox", "inbox/.incoming", "results", "state"])
def test_a_node_does_not_work_through_a_link(tmp_path: Path, victim: Path, name: str) -> None:
    link = tmp_path / "node" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(victim)
    before, stop = content(victim), threading.Event()
    stop.set()
    with pytest.raises(OutputError, match=f"{link.name}: found a symbolic link, expected a folder"):
        listen(ListenOptions(free_port(), tmp_path / "node"), lambda *_: pytest.fail("segmented"), stop=stop)
    assert content(victim) == before


def test_the_folder_of_a_node_may_be_a_link_itself(bench: Bench) -> None:
    series = bench.receive("a")
    assert bench.run() == [series]
    assert bench.result(series) == "a"


def test_no_series_is_received_or_removed_through_a_link(bench: Bench, victim: Path) -> None:
    series = bench.receive("a")
    bench.run()
    bench.inbox.path_of(series).symlink_to(victim)
    before = content(victim)
    with pytest.raises(OSError, match="found a symbolic link"):
        bench.receive("a")
    assert bench.inbox.all_series() == []
    bench.inbox.remove(series)
    assert content(victim) == before


def test_folders_that_no_node_has_made_stay_among_the_results(bench: Bench) -> None:
    (bench.work.results / ".partial-keep").mkdir()
    bench.restarted()
    assert (bench.work.results / ".partial-keep").is_dir()
