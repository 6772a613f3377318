"""A process in its process: what it answers, and how it ends."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from slowed import Slowed

from parotid_seg.bench import engine_process
from parotid_seg.bench.child import Child
from parotid_seg.bench.engine_process import EngineProcess
from parotid_seg.bench.mask_parity import compare, reference_masks
from parotid_seg.bench.scan_stages import STAGES
from parotid_seg.bench.selection import noise_like, rotation
from parotid_seg.bench.turns import Turns
from parotid_seg.contract import Contract
from parotid_seg.errors import ModelError, ParotidSegError
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.engines.onnxruntime.cpu import OnnxRuntimeBackend
from parotid_seg.scan.chunks import CroppedScan, Inputs
from tests.bench import engines
from tests.bench.engines import PLAIN, candidate
from tests.processes.forked import ForkedPrograms

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def real(covered: list[CroppedScan], contract: Contract) -> list[Inputs]:
    return rotation(covered, contract, 2).chunks


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes are forked, and not started as those of users are."""
    monkeypatch.setattr(engine_process, "subprocess", ForkedPrograms)


@pytest.fixture
def plain(real: list[Inputs], forked: None) -> Iterator[EngineProcess]:
    process = EngineProcess(PLAIN, real[0])
    yield process
    process.end()


def test_it_starts_and_tells_its_times(real: list[Inputs]) -> None:
    plain = EngineProcess(PLAIN, real[0])
    started = plain.started
    assert plain.cold_s > started.load_s + started.first_s
    assert plain.ask(Child.start_again, PLAIN.make, real[0]) > 0
    assert (started.ran.device, started.ran.precision) == ("cpu", "fp32")
    assert (started.largest_batch, started.queue_depth) == (None, 1)
    plain.ask(Child.hold, 2, real, noise_like(real))
    found = plain.ask(Child.round, 2, 5)
    assert (len(found.real_ms), len(found.noise_ms), found.ahead_ms) == (5, 2, ())
    assert all(ms > 0 for ms in (*found.real_ms, *found.noise_ms))
    assert 50 < plain.ask(Child.memory_mib, 2, 2) < 2000
    plain.end()


def test_chunks_follow_each_other_and_noise_has_their_shapes(real: list[Inputs]) -> None:
    assert len({chunk["slices"].tobytes() for chunk in real}) == len(real) > 2
    noise = noise_like(real)
    for chunk, other in zip(real, noise, strict=True):
        assert {name: array.shape for name, array in chunk.items()} == {n: a.shape for n, a in other.items()}
        assert -200 <= other["slices"].min() < -150
        assert 250 < other["slices"].max() <= 300
    assert len({chunk["slices"].tobytes() for chunk in noise}) == len(real)


@pytest.mark.alone
def test_its_stages_explain_the_whole(plain: EngineProcess, scan: tuple[Path]) -> None:
    found = plain.ask(Child.stages, [scan, scan], 4)
    for each in found:
        assert tuple(each.seconds) == STAGES
        assert sum(each.seconds.values()) == pytest.approx(each.whole_s, rel=0.05)
        assert each.seconds["compute"] > 0.3 * each.whole_s


def test_whole_runs(plain: EngineProcess, few: tuple[Path]) -> None:
    assert 0 < plain.ask(Child.infer, few[0].parent, 4) < 60
    few[0].with_name("bad.nii.gz").write_bytes(b"no scan")
    try:
        with pytest.raises(ParotidSegError, match=r"1 of 2 scans failed, the first: bad.nii.gz: "):
            plain.ask(Child.infer, few[0].parent, 4)
    finally:
        few[0].with_name("bad.nii.gz").unlink()


def test_masks_are_compared_with_the_reference(
    plain: EngineProcess, few: tuple[Path], real: list[Inputs], contract: Contract
) -> None:
    reference = reference_masks(OnnxRuntimeBackend(DEFAULT_MODEL), [few])
    labels = len(contract.labels)
    same = compare(reference, {few: plain.ask(Child.labels, few, 3)}, "fp32", labels)
    assert (same.within, same.scans) == (True, 1)
    assert same.dsc > 0.999
    wrong = EngineProcess(candidate("wrong", engines.Wrong), real[0])
    other = compare(reference, {few: wrong.ask(Child.labels, few, 3)}, "fp32", labels)
    wrong.end()
    assert (other.within, other.dsc) == (False, 0.0)
    assert other.changed > 100


@pytest.mark.usefixtures("forked")
def test_several_under_way(real: list[Inputs]) -> None:
    process = EngineProcess(candidate("ahead", engines.Ahead), real[0])
    process.ask(Child.hold, 2, real, real)
    found = process.ask(Child.round, 2, 2)
    process.end()
    assert process.started.queue_depth == 2
    assert len(found.ahead_ms) == 1


@pytest.mark.usefixtures("forked")
def test_memory_is_that_of_one_model(covered: list[CroppedScan], contract: Contract) -> None:
    """The second load, whose time is measured, comes later."""
    both = Turns([PLAIN, candidate("hoarder", engines.Hoarder)], contract, covered, [2], print)
    with both.launched():
        (plain,), (hoarder,) = (both.entries[name].jobs[2].peak_mib for name in ("plain", "hoarder"))
    assert len(both.entries["hoarder"].warm_s) == 1
    assert hoarder - plain == pytest.approx(engines.HOARDED_MIB, rel=0.4)


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (engines.crash, "bad: its process ended with status 7"),
        (engines.refuse, "model.onnx: no such operator"),
        (engines.stumble, "unexpected ZeroDivisionError: of a library"),
    ],
)
def test_one_that_cannot_start(
    real: list[Inputs], make: Callable[..., None], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ParotidSegError, match=words) as error:
        EngineProcess(candidate("bad", make), real[0])
    assert isinstance(error.value, ModelError) == (make is engines.refuse)
    assert ("Traceback" in capfd.readouterr().err) == (make is engines.stumble)  # a bug keeps it


def test_one_that_is_killed(plain: EngineProcess) -> None:
    plain._process.kill()
    with pytest.raises(ParotidSegError, match="plain: its process was killed"):
        plain.ask(Child.round, 2, 1)


@pytest.mark.alone
def test_an_engine_that_sleeps_is_slower(real: list[Inputs]) -> None:
    """By about as much as it sleeps."""
    both = {"plain": PLAIN, "slowed": candidate("slowed", partial(Slowed, 0.5))}
    running = {name: EngineProcess(each, real[0]) for name, each in both.items()}
    times: dict[str, list[float]] = {name: [] for name in both}
    for process in running.values():
        process.ask(Child.hold, 2, real, real)
    for _ in range(10):
        for name, process in running.items():
            times[name] += process.ask(Child.round, 2, 4).real_ms
    for process in running.values():
        process.end()
    assert 1.2 < np.median(times["slowed"]) / np.median(times["plain"]) < 2.5
