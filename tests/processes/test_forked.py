"""Processes that tests fork."""

import subprocess
import sys

import pytest

from tests.processes import forked
from tests.processes.forked import LIGHT, Forked


def leave_a_child() -> None:
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(20)"])


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_child_that_keeps_the_output_open_is_named_and_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forked, "OUTPUT_ENDS_S", 0.5)
    with pytest.raises(AssertionError, match=r"its output is held by \['\d+ \(.*time.sleep\(20\)\)'\]"):
        Forked(leave_a_child, server=LIGHT).communicate()
