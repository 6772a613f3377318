"""benchmarks/gpu all: steps with limits, which go on after failures, and what hung or crashed is not tried again."""

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
from gpu import install, isolated, steps
from gpu.record import Record
from gpu.tried import AGAIN, NOTHING_RAN, Tried

from parotid_seg.train.settings import load_config

HANGS = "import time; print('begun', flush=True); time.sleep(60)"


def step(name: str, code: str, minutes: float = 1.0) -> steps.Step:
    return steps.Step(name, minutes, "does it", ("-c", code))


def run_all(planned: list[steps.Step], out: Path, minutes: float = 1.0) -> dict[str, Any]:
    """Status of each step."""
    out.mkdir(exist_ok=True)
    with (out / "log.txt").open("a") as log:
        done = steps.run_all(planned, out, minutes, 1.0, log)
    assert done == steps.read_steps(out)
    return {name: found["status"] for name, found in done.items()}


def test_steps_go_on_after_a_failure_and_are_done_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    planned = [step("good", "print('well')"), step("bad", "raise SystemExit(7)"), step("other", "print('other')")]
    monkeypatch.setattr(steps, "plan", lambda _: planned)
    with pytest.raises(SystemExit):
        steps.main(["--out", str(out)])
    assert {name: found["status"] for name, found in steps.read_steps(out).items()} == {"good": 0, "bad": 7, "other": 0}
    assert (out / "log.txt").read_text().splitlines() == ["well", "other"]
    planned[1:2] = [step("bad", "print('now')")]
    steps.main(["--out", str(out)])
    assert (out / "log.txt").read_text().splitlines() == ["well", "other", "now"]


def test_two_runs_into_one_folder_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a run that was killed holds nothing, even while what it started still runs."""
    out = tmp_path / "out"
    monkeypatch.setattr(steps, "plan", lambda _: [step("good", "print('well')")])
    code = (
        f"import subprocess, sys, time; sys.path[:0] = [{str(BENCHMARKS)!r}, {str(BENCHMARKS.parent)!r}]\n"
        "from pathlib import Path\n"
        "from gpu import steps\n"
        "out = Path(sys.argv[1]); out.mkdir(); log = (out / 'log.txt').open('a'); steps.lock(log, out)\n"
        "print(subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL).pid, flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, out], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        child = int(first.stdout.readline())
        try:
            with pytest.raises(
                SystemExit, match=r"^.*/out: another `gpu all` is writing there; wait for it, or give a"
            ):
                steps.main(["--out", str(out)])
            assert steps.read_steps(out) == {}
        finally:
            first.kill()
        first.wait()
        steps.main(["--out", str(out)])
        os.kill(child, signal.SIGKILL)
    assert steps.read_steps(out)["good"]["status"] == 0


def test_setup_is_done_again_on_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results may be carried from one to the next, where the bundle is not installed."""
    planned = [step("setup", "print('set up')"), step("probe", "print('probed')")]
    monkeypatch.setattr(steps, "plan", lambda _: planned)
    monkeypatch.setattr(steps, "read_bundle", lambda folder: {"bundle": folder})
    places = []

    def is_installed(about: dict[str, Path], site: Path) -> bool:
        places.append((about["bundle"].name, site))
        return len(places) == 2

    monkeypatch.setattr(steps, "is_installed", is_installed)
    for _ in range(3):
        steps.main(["--out", str(tmp_path), "--bundle", "b"])
    assert (tmp_path / "log.txt").read_text().split("\n")[:-1] == ["set up", "probed", "set up"]
    assert places[0] == ("b", install.default_site())


def test_what_a_step_computes_is_counted(tmp_path: Path) -> None:
    run_all([step("computes", "sum(range(8_000_000))"), step("waits", "import time; time.sleep(0.3)")], tmp_path)
    computes, waits = steps.read_steps(tmp_path).values()
    assert 0.1 <= computes["cpu_seconds"] <= 2 * computes["seconds"]
    assert waits["cpu_seconds"] < min(waits["seconds"], computes["cpu_seconds"])


def test_what_hangs_or_crashes_is_tried_once_more_after_the_others(tmp_path: Path) -> None:
    crash = "import os; print('crash', flush=True); os.abort()"
    again = f"print('lost', flush=True); raise SystemExit({AGAIN})"
    planned = [step("hangs", HANGS, 0.005), step("crashes", crash), step("lost", again), step("good", "print('well')")]
    found = run_all(planned, tmp_path)
    assert found == {"hangs": "stopped after 0 s", "crashes": "ended by signal 6", "lost": AGAIN, "good": 0}
    lines = [line for line in (tmp_path / "log.txt").read_text().splitlines() if line != "begun"]
    assert lines == ["crash", "lost", "well", "crash", "lost"]


def options_in(folder: Path, **others: Any) -> argparse.Namespace:
    usual = {"bundle": folder, "device": "cuda", "bench": [], "probe": [], "data": None, "steps": None}
    return argparse.Namespace(out=folder, work=folder, **{**usual, **others})


def test_some_steps_of_all(tmp_path: Path) -> None:
    planned = steps.plan(options_in(tmp_path, steps=["train", "setup"], data=tmp_path))
    assert [each.name for each in planned] == ["setup", "train"]
    with pytest.raises(SystemExit, match=r"--steps: found train, expected some of setup, probe, .*, planning$"):
        steps.plan(options_in(tmp_path, steps=["train"]))


def test_the_step_train_trains_every_stage() -> None:
    config = load_config("compact", BENCHMARKS / "gpu" / "train.toml")
    assert config.stages == ("organs", "contrast", "dense", "segment")
    assert config.segment.epochs * config.segment.images_per_epoch < 20_000


def test_caches_lie_beside_the_scans_unless_they_are_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The home folder may be read-only."""
    planned = steps.plan(options_in(tmp_path))
    assert [each.name for each in planned][:3] == ["setup", "probe", "first-use"]
    assert {each.environment["XDG_CACHE_HOME"] for each in planned} == {str(tmp_path / "cache")}
    monkeypatch.setenv("XDG_CACHE_HOME", "/set")
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    code = "import os; print(os.environ['XDG_CACHE_HOME'], os.environ['TRITON_CACHE_DIR'])"
    run_all([dataclasses.replace(step("shows", code), environment=planned[0].environment)], tmp_path)
    assert (tmp_path / "log.txt").read_text().split() == ["/set", str(tmp_path / "triton")]


def test_a_part_of_bench_is_told_when_it_must_have_ended(tmp_path: Path) -> None:
    """Its imports count, too: on a slow machine it would else be ended in the midst of its last work."""
    code = "import sys, time; print(sys.argv[1], float(sys.argv[2]) - time.time())"
    run_all([dataclasses.replace(step("shows", code, minutes=0.9), timed=True)], tmp_path)
    option, left_s = (tmp_path / "log.txt").read_text().split()
    assert option == "--until"
    assert 30 < float(left_s) < 0.9 * 60 - steps.GRACE_S + 0.1  # the time is given in tenths


def test_setup_comes_first_and_failed_steps_last() -> None:
    planned = [step(name, "") for name in ("setup", "probe", "eager", "compiled", "tests")]
    done = {"setup": {"status": 1}, "probe": {"status": "stopped after 90 s"}, "eager": {"status": 0}}
    assert [each.name for each in steps.in_turn(planned, done)] == ["setup", "compiled", "tests", "probe"]


def test_where_no_graph_runs_the_rest_waits_until_one_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    probe, other = step("probe", f"print('probed'); raise SystemExit({NOTHING_RAN})"), step("other", "print('other')")
    assert run_all([probe, other], tmp_path) == {"probe": NOTHING_RAN}
    assert f"== stopped: no graph ran, see {tmp_path}/probe.jsonl" in capsys.readouterr().out
    assert run_all([other, probe], tmp_path) == {"probe": NOTHING_RAN}, "it is asked first"
    assert run_all([other, step("probe", "print('now')")], tmp_path) == {"probe": 0, "other": 0}
    assert (tmp_path / "log.txt").read_text().split() == ["probed", "probed", "now", "other"]


def test_no_step_is_begun_without_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_all([step("late", "print('done')")], tmp_path, minutes=0.3) == {}
    assert "== late: no time left for it" in capsys.readouterr().out


def test_what_a_step_leaves_behind_is_ended(tmp_path: Path) -> None:
    """A process of it that lives on would hold the GPU, and here also its output."""
    code = "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).pid)"
    began = time.monotonic()
    assert run_all([step("leaves", code)], tmp_path) == {"leaves": 0}
    assert time.monotonic() - began < 50
    assert ended(int((tmp_path / "log.txt").read_text()))


def test_a_step_ends_with_the_command(tmp_path: Path) -> None:
    """Killed, it cannot end the step; the next call would share the GPU with it."""
    code = f"""
import pathlib, sys
sys.path.insert(0, {str(BENCHMARKS)!r})
from gpu import steps
hangs = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
with open({str(tmp_path / "log.txt")!r}, "a") as log:
    steps.run(steps.Step("hangs", 1.0, "", ("-c", hangs)), 50, log)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout is not None
        process = int(command.stdout.readline())
        command.kill()
    assert ended(process)


def ended(process: int) -> bool:
    """Whether a process ends within some seconds."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    os.kill(process, signal.SIGKILL)
    return False


TRIES = """
import pathlib, sys, time
out = pathlib.Path(sys.argv[1])
if not (out / "avoided.txt").exists():
    (out / "trying.txt").write_text("ours")
    time.sleep(60)
"""


@pytest.mark.parametrize("is_short", [False, True])
def test_what_a_step_hung_at_is_avoided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_short: bool) -> None:
    """By the same step, tried once more; but not if the call had too little time for it."""
    monkeypatch.setattr(steps, "LEAST_S", 0.5)
    hangs = steps.Step("hangs", 1.0 if is_short else 0.04, "", ("-S", "-c", TRIES, str(tmp_path)))
    found = run_all([hangs], tmp_path, 0.04 if is_short else 1.0)
    if is_short:
        assert found == {"hangs": "stopped after 2 s"}
        assert not (tmp_path / "avoided.txt").exists()
    else:
        assert found == {"hangs": 0}
        assert (tmp_path / "avoided.txt").read_text() == "ours\n"


def test_what_was_avoided_is_named_and_not_tried(tmp_path: Path) -> None:
    (tmp_path / "avoided.txt").write_text("ours\n")
    kept = Record(tmp_path, 1.0, {})
    assert kept.attempt("ours", lambda: pytest.fail("tried again")) is None
    assert kept.attempt("torch", (tmp_path / "trying.txt").read_text) == "torch"
    assert not (tmp_path / "trying.txt").exists()
    assert [each["why"] for each in kept.content["skipped"]] == ["it hung or crashed before"]


def test_the_innermost_is_what_is_tried(tmp_path: Path) -> None:
    tried, file = Tried(tmp_path), tmp_path / "trying.txt"
    with tried.now("batches of 64"):
        with contextlib.suppress(ZeroDivisionError), tried.now("ours"):
            assert file.read_text() == "ours"
            raise ZeroDivisionError
        assert file.read_text() == "batches of 64"
    assert not file.exists()


def test_where_the_gpu_is_lost_the_process_is_started_again(tmp_path: Path) -> None:
    kept = Record(tmp_path, 1.0, {}, is_lost=lambda: True)
    assert kept.attempt("torch", lambda: 7) == 7
    with pytest.raises(SystemExit) as ended:
        kept.attempt("ours", lambda: 1 // 0)
    assert ended.value.code == AGAIN
    assert Tried(tmp_path).avoided == {"ours"}
    assert "ZeroDivisionError" in json.loads((tmp_path / "gpu.json").read_text())["skipped"][0]["why"]


def test_what_other_parts_skipped_is_kept(tmp_path: Path) -> None:
    before = Record(tmp_path, 1.0, {}, ["eager", "options"])
    for before.part in ("", "eager", "options"):
        before.skip(f"something of {before.part}", "it failed")
        before.skip(f"something of {before.part}", "it failed")
    after = Record(tmp_path, 1.0, {}, ["eager"])
    assert [each["what"] for each in after.content["skipped"]] == ["something of options"]


def test_work_in_a_process_of_its_own() -> None:
    assert isolated.isolated(sorted, [2, 1], most_s=60.0) == [1, 2]
    with pytest.raises(RuntimeError, match=r"ZeroDivisionError: .*zero"):
        isolated.isolated(divmod, 1, 0, most_s=60.0)
    with pytest.raises(RuntimeError, match="its process ended with status -6"):
        isolated.isolated(os.abort, most_s=60.0)
    with pytest.raises(TimeoutError, match="stopped after 1 s"):
        isolated.isolated(time.sleep, 60, most_s=0.5001)


def test_the_minutes_are_listed_where_nothing_is_installed(tmp_path: Path) -> None:
    """Without any package, as before `setup`."""
    command = [sys.executable, "-I", "-S", str(BENCHMARKS / "gpu"), "all", "--out", str(tmp_path / "out"), "--dry"]
    done = subprocess.run([*command, "--bundle", "bundle"], capture_output=True, text=True, check=True)
    assert "| `setup`: installs the bundle" in done.stdout
    assert done.stdout.splitlines()[-1] == "| all | 15.00 |"
    minutes = [float(line.split("|")[2]) for line in done.stdout.splitlines()[2:-1]]
    assert sum(minutes) == pytest.approx(15.0)
    assert min(minutes) > 0
    readme = (BENCHMARKS / "gpu" / "README.md").read_text()
    assert done.stdout.strip() in readme
    assert not (tmp_path / "out").exists()


def test_every_command_has_help() -> None:
    wrong = subprocess.run([sys.executable, str(BENCHMARKS / "gpu"), "x"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("usage: python benchmarks/gpu {all,bench,bundle,kernels,planning,probe,setup}")
