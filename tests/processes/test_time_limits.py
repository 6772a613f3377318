"""The time limits of pyproject.toml: no test can hold up a run for ever."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TWICE = """
import time

def test_that_waits_again_while_it_cleans_up():
    try:
        time.sleep(60)
    finally:
        time.sleep(60)
"""


@pytest.mark.slow
def test_a_test_that_the_limit_cannot_interrupt_is_ended_with_its_process(tmp_path: Path) -> None:
    """The first limit interrupts one wait only: a whole run waited for hours for a test that had two."""
    (tmp_path / "test_twice.py").write_text(TWICE)
    words = ["-c", ROOT / "pyproject.toml", "--rootdir", tmp_path, "-p", "no:xdist", "-p", "no:cacheprovider"]
    words += ["-o", "timeout=1", "-o", "faulthandler_timeout=3", tmp_path]

    run = subprocess.run(
        [sys.executable, "-m", "pytest", *map(str, words)],
        capture_output=True, text=True, cwd=tmp_path, timeout=50, check=False,
    )  # fmt: skip

    assert run.returncode == 1
    assert "Timeout" in run.stderr
    assert "in test_that_waits_again_while_it_cleans_up" in run.stderr
