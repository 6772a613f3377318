"""A decoder that ends its process ends no command: what may do so is called in a process of its own."""

import os
from pathlib import Path

import pytest

from parotid_seg.dicom.read.decoders import Decoder
from parotid_seg.dicom.read.series_volume import find_series
from parotid_seg.errors import ScanError
from parotid_seg.runtime.pipeline import apart as module
from parotid_seg.runtime.pipeline.apart import apart, with_care
from tests.command_line import Run
from tests.dicom_series import ct_voxels, lay, write_series

pytestmark = pytest.mark.slow


SHAPE = (12, 32, 36)


def test_a_process_that_ends_is_an_error_with_its_cause() -> None:
    with pytest.raises(ScanError, match=r"scan: pixels that cannot be decoded: its process was ended by SIGABRT$"):
        apart(os.abort, path=Path("scan"))


def test_results_and_errors_come_back() -> None:
    assert apart(divmod, 7, 2, path=Path("scan")) == (3, 1)
    with pytest.raises(FileNotFoundError):
        apart(os.stat, "/gone/for/good", path=Path("scan"))


def test_what_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLOWEST_S", 0.01)
    with pytest.raises(ScanError, match="no end after 0 s"):
        apart(os.getpid, path=Path("scan"))


@pytest.mark.parametrize("decoder", ["python-gdcm", "pylibjpeg-libjpeg"])
def test_only_what_gdcm_decodes_is_read_apart(decoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (series,) = find_series(write_series(tmp_path / "ct", ct_voxels(SHAPE), lay())).series
    syntax = "1.2.840.10008.1.2.4.70"
    monkeypatch.setattr(module, "read_file_meta_info", lambda path: {"TransferSyntaxUID": syntax})
    monkeypatch.setattr(module, "decoder_for", lambda found: Decoder(decoder, lambda image: b""))
    assert (with_care((series,), os.getpid) == os.getpid()) == (decoder != "python-gdcm")
    monkeypatch.undo()
    assert with_care((series,), os.getpid) == os.getpid(), "not compressed"
    assert with_care((tmp_path / "scan.nii.gz",), os.getpid) == os.getpid()


def test_inspect_and_dataset_read_with_care(
    command: Run, example_dicom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both go on after a scan whose process has ended."""
    monkeypatch.setattr(module, "_may_end_process", lambda series: True)
    monkeypatch.setattr(module, "command_of", lambda name: ["sh", "-c", "kill -ABRT $$"])
    ended = "pixels that cannot be decoded: its process was ended by SIGABRT"
    inspected = command("inspect", example_dicom)
    assert inspected.returncode == 0
    assert f"would be refused: {ended}" in inspected.stdout
    made = command("dataset", example_dicom, "--out", tmp_path / "data")
    assert ended in made.stdout + made.stderr
    assert "Traceback" not in made.stderr


@pytest.fixture
def example_dicom(tmp_path: Path) -> Path:
    write_series(tmp_path / "ct", ct_voxels(SHAPE), lay())
    return tmp_path / "ct"
