"""The node between its peers, pynetdicom and dcmtk: series come in, results go out, each once."""

import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pydicom
import pytest
from pydicom.uid import JPEG2000Lossless, RLELossless

from parotid_seg.errors import ScanError
from parotid_seg.node.ledger import DONE, FAILED, SENT
from parotid_seg.node.send import RequestingAE
from parotid_seg.node.work import Segmented
from tests.dicom_series import ct_voxels, write_enhanced
from tests.node.peers import (
    DCMTK,
    NAME,
    Archive,
    Node,
    associated,
    dcmtk,
    fake_segment,
    make_series,
    name_of,
    names_nobody,
    send,
    storescu,
)

pytestmark = pytest.mark.slow


@dcmtk
def test_echo(start: Callable[..., Node]) -> None:
    node = start()
    words = [DCMTK["echoscu"], "-aet", "TESTER", "127.0.0.1", str(node.options.port)]
    assert subprocess.run(words, timeout=30, check=False).returncode == 0


@dcmtk
def test_twenty_series_in_a_row(start: Callable[..., Node], archive: Archive, tmp_path: Path) -> None:
    node = start(send_to=archive.peer)
    folders = [tmp_path / f"ct{number:02d}" for number in range(20)]
    for folder in folders:
        make_series(folder)
        assert storescu(node, folder).returncode == 0
    node.wait_for(lambda: len(archive.got) == 20)
    for folder in folders:
        node.wait_for_status(name_of(folder), SENT)
    assert sorted(node.calls) == sorted(map(name_of, folders))
    assert len({result.StructureSetDescription for result in archive.got}) == 20
    assert {str(result.StructureSetDescription).split()[1] for result in archive.got} == {"3"}
    assert archive.callers == {"PAROTID-SEG"}
    assert list((node.options.out / "inbox").rglob("*.dcm")) == []
    assert len(list((node.options.out / "results").rglob("*.dcm"))) == 20
    names_nobody(node)


def test_four_at_once_interleaved(start: Callable[..., Node], archive: Archive, tmp_path: Path) -> None:
    node = start(send_to=archive.peer)
    folders = [tmp_path / f"ct{number}" for number in range(4)]
    paths = [make_series(folder, slices=12) for folder in folders]
    mixed = [[paths[(number + index) % 4][index] for index in range(12)] for number in range(4)]  # of all series
    with ThreadPoolExecutor(4) as pool:
        statuses = list(pool.map(lambda some: send(node.options.port, some), mixed))
    assert statuses == [[0] * 12] * 4
    node.wait_for(lambda: len(archive.got) == 4)
    assert sorted(node.calls) == sorted(map(name_of, folders))
    assert {str(result.StructureSetDescription).split()[1] for result in archive.got} == {"12"}


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_compressed_objects_are_kept_as_they_came(
    start: Callable[..., Node], tmp_path: Path, syntax: pydicom.uid.UID
) -> None:
    paths = make_series(tmp_path / "ct", transfer_syntax=syntax)
    node = start(keep_received=True)
    ae = RequestingAE("TESTER")
    ae.add_requested_context("1.2.840.10008.5.1.4.1.1.2", syntax)
    association = ae.associate("127.0.0.1", node.options.port)
    assert [association.send_c_store(path).Status for path in paths] == [0, 0, 0]
    association.release()
    node.wait_for_status(name_of(tmp_path / "ct"), DONE)
    kept = sorted((node.options.out / "inbox" / name_of(tmp_path / "ct")).glob("*.dcm"))
    sent = {pydicom.dcmread(path).SOPInstanceUID: pydicom.dcmread(path) for path in paths}
    assert len(kept) == 3
    for path in kept:
        found = pydicom.dcmread(path)
        assert found == sent[found.SOPInstanceUID]
        assert found.file_meta.TransferSyntaxUID == syntax


def test_one_multi_frame_object_and_mr(start: Callable[..., Node], tmp_path: Path) -> None:
    node = start()
    one = write_enhanced(tmp_path / "all.dcm", ct_voxels((4, 8, 8)))
    mr = make_series(tmp_path / "mr", modality="MR")
    assert send(node.options.port, [one, *mr]) == [0] * 4
    node.wait_for_status(name_of(tmp_path / "mr"), DONE)
    node.wait_for(lambda: len(node.calls) == 2)


def test_an_association_that_breaks_off_leaves_nothing_half(start: Callable[..., Node], tmp_path: Path) -> None:
    node = start()
    paths = make_series(tmp_path / "ct")
    with associated(node.options.port) as association:
        assert association.send_c_store(paths[0]).Status == 0
        association.abort()
    node.wait_for_status(name_of(tmp_path / "ct"), DONE)
    assert send(node.options.port, paths) == [0] * 3  # it is sent again as a whole
    node.wait_for(lambda: len(node.record(name_of(tmp_path / "ct")).slices) == 3)
    node.wait_for_status(name_of(tmp_path / "ct"), DONE)
    found = pydicom.dcmread(next((node.options.out / "results").rglob("*.dcm")))
    assert str(found.StructureSetDescription).endswith(" 3")


def test_a_series_that_fails_does_not_stop_the_next(
    start: Callable[..., Node], archive: Archive, tmp_path: Path
) -> None:
    def segment(folder: Path, out: Path) -> Segmented:
        kind = str(pydicom.dcmread(next(folder.glob("*.dcm"))).SeriesInstanceUID)
        if kind == str(pydicom.dcmread(bad[0]).SeriesInstanceUID):
            raise ScanError("slices are not evenly spaced")
        if kind == str(pydicom.dcmread(bug[0]).SeriesInstanceUID):
            raise ValueError(f"what is {NAME}")
        return fake_segment(folder, out)

    node = start(segment, send_to=archive.peer)
    bad, bug, good = (make_series(tmp_path / name) for name in ("bad", "bug", "good"))
    assert send(node.options.port, [*bad, *bug, *good]) == [0] * 9
    node.wait_for_status(name_of(tmp_path / "good"), SENT)
    assert node.wait_for_status(name_of(tmp_path / "bad"), FAILED).reason == "slices are not evenly spaced"
    assert node.wait_for_status(name_of(tmp_path / "bug"), FAILED).reason.startswith("unexpected ValueError in test_")
    assert len(archive.got) == 1
    names_nobody(node)
