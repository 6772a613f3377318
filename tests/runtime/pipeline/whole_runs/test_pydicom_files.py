"""All files that come with pydicom, of every kind that DICOM has: each is a scan, or told in one line."""

import re
import shutil
import socket
from pathlib import Path

import nibabel
import pydicom.data
import pytest
from pydicom.misc import is_dicom

from parotid_seg.runtime.engines.base import Backend
from parotid_seg.runtime.pipeline.discovery import find_scans
from tests.dicom_example import Ran, few_slices, run, write_image

SHIPPED = Path(pydicom.data.__file__).parent
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("something wants the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def ran(model: Backend, head: nibabel.Nifti1Image, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ran]:
    """A run on all of them, with one good series among them."""
    folder = tmp_path_factory.mktemp("shipped")
    shutil.copytree(SHIPPED, folder / "scans", ignore=shutil.ignore_patterns("*.py", "*.pyc", "__pycache__"))
    write_image(folder / "scans" / "good", few_slices(head))
    return folder, run(model, folder / "scans", folder / "out")


def test_the_good_one_is_done(ran: tuple[Path, Ran]) -> None:
    folder, went = ran
    assert went.outcomes["good"].status == "done"
    assert went.summary.exit_status == 3
    assert (folder / "out" / "good.nii.gz").exists()


def test_every_file_is_told_of(ran: tuple[Path, Ran]) -> None:
    folder, went = ran
    lines = [*went.errors, *(line for line in went.lines if line.startswith("not used: "))]
    counts = [int(found[1]) if (found := re.search(r" \((\d+) files\)$", line)) else 1 for line in lines]
    files = [path for path in (folder / "scans").rglob("*") if path.is_file() and is_dicom(path)]
    assert len(files) > 150
    assert sum(counts) + 8 >= len(files)
    assert len(set(lines)) == len(lines)
    for line in lines:
        assert line.isprintable()
        assert str(folder / "scans") in line
        assert "unexpected" not in line


def test_each_file_alone(capfd: pytest.CaptureFixture[str]) -> None:
    for path in SHIPPED.rglob("*"):
        if path.is_file():
            scans, errors = find_scans([path], ("CT",))
            assert len(scans) + len(errors) == 1, path
            for error in errors:
                assert str(error).startswith(f"{path}: ")
                assert str(error).isprintable()
    assert capfd.readouterr() == ("", "")
