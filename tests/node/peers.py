"""What the node's tests talk to it with: a node in a thread, a stand-in for the model, a peer that takes results."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage
from pynetdicom import AE, Association, evt

from parotid_seg.node.ledger import Ledger, SeriesRecord, short_hash
from parotid_seg.node.listen_options import ListenOptions, Peer
from parotid_seg.node.reception import SOP_CLASSES
from parotid_seg.node.send import RequestingAE
from parotid_seg.node.server import listen
from parotid_seg.node.work import Segmented
from tests.dicom_series import ct_voxels, save, uid, write_series
from tests.processes.fork_server import Server
from tests.processes.forked import OUTPUT_ENDS_S, Forked
from tests.processes.held import holders
from tests.processes.ports import free_port

NAME = "Marker^Nobody"
"""The patient's name in all series."""
BIRTH = "19010203"
IDENTITY = "PAT-4711-ID"


def make_series(folder: Path, slices: int = 3, **options: Any) -> list[Path]:
    """A small CT series; series of different folder names have different UIDs."""

    def mark(index: int, dataset: Dataset) -> None:
        dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = NAME, IDENTITY, BIRTH

    return write_series(folder, ct_voxels((slices, 40, 40)), change=mark, **options)


def name_of(folder: Path) -> str:
    """The name of such a series in the node."""
    return short_hash(uid(folder.name, "series"))


def fake_segment(folder: Path, out: Path) -> Segmented:
    """A small object of the right class that refers to the series, for the model's work; fails as a scan may."""
    images = [pydicom.dcmread(path) for path in sorted(folder.glob("*.dcm"))]
    if "broken" in str(images[0].SeriesDescription):
        return Segmented(reason="slices are not evenly spaced")
    result = Dataset()
    result.SOPClassUID = RTStructureSetStorage
    result.SOPInstanceUID = uid(images[0].SeriesInstanceUID, *sorted(image.SOPInstanceUID for image in images))
    result.PatientName, result.PatientID = images[0].PatientName, images[0].PatientID
    result.StudyInstanceUID, result.SeriesInstanceUID = images[0].StudyInstanceUID, uid("result", images[0].SOPClassUID)
    result.StructureSetLabel = "parotids"
    result.StructureSetDescription = f"{images[0].SeriesInstanceUID} {len(images)}"
    save(result, out / "rtstruct.dcm")
    return Segmented((out / "rtstruct.dcm",), note="left 20.0 ml, right 21.0 ml")


class Speaking:
    """Prints lines."""

    lines: list[str]

    def wait_for(self, true: Callable[[], object], seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, self.lines
            time.sleep(0.02)


class Node(Speaking):
    """A node that runs in a thread."""

    def __init__(self, out: Path, segment: Callable[[Path, Path], Segmented] = fake_segment, **options: Any) -> None:
        known: dict[str, Any] = {"allowed": ("TESTER",), "quiet_s": 0.3, "spare_mib": 1, "silence_s": 60.0}
        self.options = ListenOptions(port=free_port(), out=out, **(known | options))
        self.lines = []
        self.calls: list[str] = []
        self.status: int | None = None
        self._segment, self._stop = segment, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self.wait_for(lambda: self.lines)

    def _run(self) -> None:
        def segment(folder: Path, out: Path) -> Segmented:
            self.calls.append(folder.name)
            return self._segment(folder, out)

        self.status = listen(self.options, segment, say=self.lines.append, stop=self._stop)

    def record(self, series: str) -> SeriesRecord | None:
        path = self.options.out / "state"
        return Ledger(path).get(series) if path.is_dir() else None

    def wait_for_status(self, series: str, status: str) -> SeriesRecord:
        self.wait_for(lambda: (found := self.record(series)) is not None and found.status == status)
        found = self.record(series)
        assert found is not None
        return found

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()


@contextmanager
def associated(
    port: int, title: str = "TESTER", classes: tuple[str, ...] = SOP_CLASSES, patience_s: float = 30
) -> Iterator[Association]:
    ae = RequestingAE(title)
    ae.acse_timeout = ae.dimse_timeout = patience_s
    for sop_class in classes:
        ae.add_requested_context(sop_class, ExplicitVRLittleEndian)
    association = ae.associate("127.0.0.1", port)
    try:
        yield association
    finally:
        if association.is_established:
            association.release()


def send(port: int, paths: list[Path], title: str = "TESTER", patience_s: float = 30) -> list[int]:
    """Send files in one association; the statuses."""
    with associated(port, title, patience_s=patience_s) as association:
        assert association.is_established
        return [association.send_c_store(path).get("Status", -1) for path in paths]


class Archive:
    """A peer that takes results."""

    def __init__(self, port: int, answer: int = 0x0000) -> None:
        self.got: list[Dataset] = []
        self.callers: set[str] = set()
        ae = AE("ARCHIVE")
        ae.add_supported_context(RTStructureSetStorage)
        self.peer = Peer("ARCHIVE", "127.0.0.1", port)
        self._answer = answer
        self._server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, self._take)])

    def _take(self, event: evt.Event) -> int:
        self.callers.add(event.assoc.requestor.ae_title)
        if self._answer == 0x0000:
            self.got.append(event.dataset)
        return self._answer

    def close(self) -> None:
        self._server.shutdown()


DCMTK = {tool: shutil.which(tool) or "" for tool in ("storescu", "echoscu", "storescp")}
dcmtk = pytest.mark.skipif("" in DCMTK.values(), reason="dcmtk's storescu, echoscu and storescp are not installed")


def storescu(node: Node, folder: Path, *options: str, title: str = "TESTER") -> subprocess.CompletedProcess[str]:
    words = [DCMTK["storescu"], "-aet", title, "-aec", "PAROTID-SEG", *options, "+sd", "127.0.0.1"]
    return subprocess.run(
        [*words, str(node.options.port), str(folder)], capture_output=True, text=True, timeout=30, check=False
    )


def names_nobody(node: Node) -> None:
    """The patient is in no line, no file's name and no file that is not DICOM."""
    words = [word.encode() for word in (NAME, IDENTITY, BIRTH)]
    told = "\n".join(node.lines).encode()
    for path in node.options.out.rglob("*"):
        told += str(path).encode()
        told += path.read_bytes() if path.is_file() and path.suffix != ".dcm" else b""
    assert not [word for word in words if word in told]


RUN_NODE = "tests.node.run_node"
NODES = Server(RUN_NODE)
"""Forks nodes."""


class Process(Speaking):
    """A node in a process of its own, see `run_node`."""

    def __init__(self, out: Path, archive_port: int, seconds: float, quiet_s: float) -> None:
        self.out, self.port = out, free_port()
        run = partial(import_module(RUN_NODE).main, self.port, out, archive_port, seconds, quiet_s)
        self.process = Forked(run, server=NODES)
        self.lines = []
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self.wait_for(lambda: self.lines)

    def _listen(self) -> None:
        for line in self.process.stderr:
            self.lines.append(line.rstrip())

    def calls(self, kind: str) -> list[str]:
        path = Path(f"{self.out}.calls")
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.split()[1] for line in lines if line.startswith(kind)]

    def status(self, series: str) -> str:
        record = Ledger(self.out / "state").get(series)
        return record.status if record else ""

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)

    def close(self) -> None:
        """End it. Streams cannot be closed as long as a thread reads them."""
        self.process.kill()
        self.process.wait(60)
        self._listener.join(OUTPUT_ENDS_S)
        assert not self._listener.is_alive(), holders(self.process.stderr)
        self.process.stdout.close()
        self.process.stderr.close()
