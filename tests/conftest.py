"""What several tests need: the example scan, scans made from it, and the way to run the command."""

from __future__ import annotations

from tests.processes.workers import keep_to_own_cores, shared_folder

keep_to_own_cores()  # before numpy starts its threads

import difflib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from parotid_seg.models import example_folder
from parotid_seg.runtime.pipeline import worker_process
from tests.command_line import Run, in_process, own_process
from tests.processes.forked import ForkedPrograms
from tests.processes.forked import forked as forked_process

SNAPSHOTS = Path(__file__).with_name("snapshots")
ALONE = Path(__file__).parent / "bench"
"""Where tests that must not run beside others are."""
settings.register_profile("busy machines", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machines")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-snapshots", action="store_true", help="Write tests/snapshots anew instead of comparing with it."
    )
    parser.addoption(
        "--fuzz-inputs", type=int, default=None, metavar="N", help="Inputs of each loop in tests/fuzz (default: a few)."
    )
    parser.addoption(
        "--fuzz-first", type=int, default=0, metavar="N", help="Number of the first input, for others (default: 0)."
    )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no worker is left with a long one when the others have ended.

    Of those with the model that is trained once (`run` in tests/export/conftest.py), one comes at the very beginning
    and the others after all other slow files, as a worker would wait for another one that trains it.

    Raises:
        pytest.UsageError: for the marker `alone` outside the folder where `make test` looks for it.
    """
    for item in items:
        if item.get_closest_marker("alone") and item.path.parent != ALONE:
            raise pytest.UsageError(f"{item.nodeid}: marked alone, expected in {ALONE}")
    slow = {item.path: 1 for item in items if item.get_closest_marker("slow")}
    trained = [item.path for item in items if item.path in slow and "marked" in getattr(item, "fixturenames", ())]
    order = slow | dict.fromkeys(trained, 2) | dict.fromkeys(trained[:1], 0)
    items.sort(key=lambda item: order.get(item.path, 3))


@pytest.fixture
def snapshot(request: pytest.FixtureRequest) -> Callable[[str, str | Path], None]:
    """Compares a text with what tests/snapshots, or another place, has of that name; --update-snapshots writes it."""

    def compare(text: str, name: str | Path) -> None:
        path = SNAPSHOTS / name
        if request.config.getoption("--update-snapshots"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
        expected = path.read_text("utf-8").splitlines() if path.exists() else []
        changed = "\n".join(difflib.unified_diff(expected, text.splitlines(), "before", "now", lineterm="", n=1))
        assert not changed, (
            f"{path} differs; if that is meant: pytest --update-snapshots, then read the diff\n{changed}"
        )

    return compare


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Choices of engines are kept for the time of the tests, and not among the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(shared_folder(tmp_path_factory, "cache", lambda _: None)))
        yield


@pytest.fixture(scope="session", autouse=True)
def forked_workers() -> Iterator[None]:
    """Runs in the tests' process fork their workers, which saves each of them the imports. Others start them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker_process, "subprocess", ForkedPrograms)
        yield


@pytest.fixture
def started_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are started as those of users are, and not forked."""
    monkeypatch.setattr(worker_process, "subprocess", subprocess)


@pytest.fixture(scope="session")
def example() -> nibabel.Nifti1Image:
    return nibabel.load(next((example_folder() / "imagesTr").glob("*.nii.gz")))


@pytest.fixture(scope="session")
def example_labels() -> nibabel.Nifti1Image:
    return nibabel.load(next((example_folder() / "labelsTr").glob("*.nii.gz")))


@pytest.fixture(scope="session")
def around_glands(example_labels: nibabel.Nifti1Image) -> tuple[slice, ...]:
    """Every second of the example scan's slices that show the glands, with two more at either end."""
    shown = np.flatnonzero(np.asarray(example_labels.dataobj).any(axis=(0, 1)))
    return (slice(None), slice(None), slice(max(0, shown[0] - 2), shown[-1] + 3, 2))


@pytest.fixture(scope="session")
def head(example: nibabel.Nifti1Image, around_glands: tuple[slice, ...]) -> nibabel.Nifti1Image:
    """A part of the example scan, to be quick."""
    return example.slicer[around_glands]


@pytest.fixture(scope="session")
def head_labels(example_labels: nibabel.Nifti1Image, around_glands: tuple[slice, ...]) -> nibabel.Nifti1Image:
    """The contours of `head`."""
    return example_labels.slicer[around_glands]


@pytest.fixture
def scans(tmp_path: Path, head: nibabel.Nifti1Image) -> Path:
    """A folder with one good scan."""
    folder = tmp_path / "scans"
    folder.mkdir()
    nibabel.save(head, folder / "good_0000.nii.gz")
    return folder


@pytest.fixture(scope="session")
def command() -> Run:
    """Runs `parotid-seg` with some arguments in this process."""
    return in_process


@pytest.fixture(scope="session")
def process() -> Run:
    """Runs it in a process of its own; each takes a second or more to start."""
    return own_process


@pytest.fixture(scope="session")
def forked() -> Run:
    """Runs it in a process of its own that has torch and all else imported already, as trainings need."""
    return forked_process
