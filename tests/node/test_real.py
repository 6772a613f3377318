"""The node as it is installed, with the packaged model: storescu sends a series, storescp gets its contours."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest

from parotid_seg.dicom.read.rt_read import read_rtstruct
from parotid_seg.dicom.read.series_volume import find_series
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.engines.load import load_backend
from tests.dicom_example import few_slices, run, write_image
from tests.node.peers import BIRTH, DCMTK, IDENTITY, NAME, dcmtk
from tests.processes.ports import free_port

PATIENCE_S = 90.0


def wait_for(true: Callable[..., bool], told: Callable[..., str]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end, told()
        time.sleep(0.05)


@pytest.fixture
def processes() -> Iterator[Callable[..., subprocess.Popen[Any]]]:
    """Starts programs, and ends those that are still there."""
    started = []

    def start(*words: Any, **options: Any) -> subprocess.Popen[Any]:
        started.append(subprocess.Popen(list(map(str, words)), **options))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def mark(_: object, dataset: pydicom.dataset.Dataset) -> None:
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = NAME, IDENTITY, BIRTH


@dcmtk
@pytest.mark.slow
def test_a_series_goes_in_and_its_contours_come_out(
    processes: Callable[..., subprocess.Popen[Any]], head: nibabel.Nifti1Image, tmp_path: Path
) -> None:
    write_image(tmp_path / "ct", few_slices(head), change=mark)
    got, out, log = tmp_path / "got", tmp_path / "node", tmp_path / "log"
    got.mkdir()
    port, archive = free_port(), free_port()
    processes(DCMTK["storescp"], "-aet", "ARCHIVE", "-od", got, archive)
    words = ["--port", port, "--out", out, "--allow", "TESTER", "--send-to", f"ARCHIVE@127.0.0.1:{archive}"]
    quick = ["--quiet-seconds", 0.5, "--spare-mib", 1, "--backend", "onnxruntime"]
    with log.open("w") as stderr:
        node = processes(sys.executable, "-m", "parotid_seg", "listen", *words, *quick, stderr=stderr)
    wait_for(lambda: "listens on" in log.read_text(), log.read_text)
    subprocess.run(
        [DCMTK["storescu"], "-aet", "TESTER", "-aec", "PAROTID-SEG", "+sd", "127.0.0.1", str(port), tmp_path / "ct"],
        check=True,
        timeout=30,
    )
    wait_for(lambda: "result sent to" in log.read_text(), log.read_text)
    node.send_signal(signal.SIGTERM)
    assert node.wait(30) == 0, log.read_text()
    (received,) = got.iterdir()

    backend = load_backend(DEFAULT_MODEL, "onnxruntime", "cpu")
    assert run(backend, tmp_path / "ct", tmp_path / "out").statuses == {"ct": "done"}
    mask = np.asarray(nibabel.load(tmp_path / "out" / "ct.nii.gz").dataobj).T
    (series,) = find_series(sorted((tmp_path / "ct").iterdir())).series
    rois = {roi.name: roi.drawn().mask for roi in read_rtstruct(received, series)}
    assert list(rois) == ["Parotid_L", "Parotid_R"]
    for value, drawn in enumerate(rois.values(), start=1):
        assert drawn.any()
        np.testing.assert_array_equal(drawn, mask == value)
    assert pydicom.dcmread(received).PatientName == NAME
    files = [path for path in out.rglob("*") if path.is_file() and path.suffix != ".dcm"]
    told = log.read_text() + " ".join(path.name for path in out.rglob("*"))
    told += "".join(path.read_bytes().decode("latin-1") for path in files)
    assert len(files) > 4
    assert not re.search(f"{NAME}|{IDENTITY}|{BIRTH}".replace("^", r"\^"), told)
    assert not list((out / "inbox").rglob("*.dcm")), "what was delivered is not kept"
