"""Links at the folders of a run: nothing is written through those that the run names itself."""

from pathlib import Path

import pytest

from parotid_seg.errors import OutputError
from parotid_seg.train.settings import load_config
from parotid_seg.train.stages import _started_stages, train


@pytest.mark.parametrize("name", ["organs", "cache"])
def test_a_run_writes_through_no_link(balls: Path, short_config: Path, tmp_path: Path, name: str) -> None:
    config = load_config("compact", short_config, stages=["organs", "segment"])
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    for folder in (run, elsewhere):
        folder.mkdir()
    (run / name).symlink_to(elsewhere)
    with pytest.raises(OutputError, match=f"{name}: found a symbolic link, expected a folder"):
        train(config, balls, run, labelled=2, device="cpu", max_minutes=0.0001)
    assert list(elsewhere.iterdir()) == []


def test_a_run_and_a_cache_that_are_given_may_be_links(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    for name in ("run", "cache"):
        (tmp_path / name).symlink_to(tmp_path / "disk")
    run = tmp_path / "run"
    folders = {"organs": run / "organs", "segment": run}
    assert _started_stages(run, folders, resume=False, source="scratch", cache=tmp_path / "cache") == []
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["organs"]
