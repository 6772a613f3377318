"""What the node refuses, from peers that may not connect, are broken or mean ill."""

import os
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
from pydicom.uid import MRImageStorage, RTStructureSetStorage
from pynetdicom import association as pynetdicom_association

from parotid_seg import files
from parotid_seg.errors import InputError, OutputError
from parotid_seg.node import admission
from parotid_seg.node.ledger import DONE
from parotid_seg.node.listen_options import ListenOptions
from parotid_seg.node.server import listen
from tests.node.peers import (
    NAME,
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
from tests.processes.ports import free_port

pytestmark = pytest.mark.slow


SOP_CLASS_CT = "1.2.840.10008.5.1.4.1.1.2"


@dcmtk
@pytest.mark.parametrize("allowed", [("OTHER",), ()])
def test_an_ae_title_that_is_not_allowed(start: Callable[..., Node], tmp_path: Path, allowed: tuple[str, ...]) -> None:
    node = start(allowed=allowed)
    make_series(tmp_path / "ct")
    refused = storescu(node, tmp_path / "ct")
    assert refused.returncode != 0
    assert "Calling AE Title Not Recognized" in refused.stderr
    node.wait_for(lambda: any("'TESTER' at 127.0.0.1: rejected" in line for line in node.lines))
    assert any("nobody may connect" in line for line in node.lines) == (not allowed)
    assert list((node.options.out / "inbox").rglob("*.dcm")) == []


def test_too_many_associations(start: Callable[..., Node]) -> None:
    node = start(most_associations=2)
    with associated(node.options.port) as first, associated(node.options.port) as second:
        assert first.is_established
        assert second.is_established
        with associated(node.options.port) as third:
            assert third.is_rejected
    node.wait_for(lambda: any("too many associations" in line for line in node.lines))


def test_another_sop_class(start: Callable[..., Node], tmp_path: Path) -> None:
    node = start()
    with associated(node.options.port, classes=(RTStructureSetStorage,)) as association:
        assert association.accepted_contexts == []
    paths = make_series(tmp_path / "ct")
    image = pydicom.dcmread(paths[0])
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = MRImageStorage
    image.save_as(paths[0])
    with associated(node.options.port) as association:  # an MR object in the place for CT, as no honest peer does it
        message = "_get_valid_context"
        real = getattr(association, message)
        setattr(association, message, lambda sop_class, *rest, **more: real(SOP_CLASS_CT, *rest, **more))
        assert association.send_c_store(paths[0]).Status == 0x0122
    node.wait_for(lambda: any("its SOP class is not the one agreed on (status 0122)" in line for line in node.lines))


def without_pixels(image: pydicom.FileDataset) -> None:
    del image.PixelData


def without_series(image: pydicom.FileDataset) -> None:
    del image.SeriesInstanceUID


def with_a_path(image: pydicom.FileDataset) -> None:
    image["SeriesInstanceUID"]._value = "../../evil"


@pytest.mark.parametrize(
    ("damage", "status"), [(without_pixels, 0xC000), (without_series, 0xC000), (with_a_path, 0xC000)]
)
@pytest.mark.filterwarnings("ignore")
def test_a_data_set_that_makes_no_sense(
    start: Callable[..., Node], tmp_path: Path, damage: Callable[..., None], status: int
) -> None:
    node = start()
    paths = make_series(tmp_path / "ct")
    image = pydicom.dcmread(paths[0])
    damage(image)
    with associated(node.options.port) as association:
        assert association.send_c_store(image).Status == status
        assert association.send_c_store(paths[1]).Status == 0x0000
    node.wait_for_status(name_of(tmp_path / "ct"), DONE)
    assert {path.name for path in node.options.out.iterdir()} == {".lock", "inbox", "results", "state"}
    assert sum("object is refused" in line for line in node.lines) == 1
    names_nobody(node)


def send_bytes(port: int, content: bytes, instance: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Send a data set of any bytes under a CT image's name."""
    image = pydicom.Dataset()
    image.SOPClassUID, image.SOPInstanceUID = SOP_CLASS_CT, instance
    image.file_meta = pydicom.dataset.FileMetaDataset()
    image.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    with monkeypatch.context() as patch, associated(port) as association:
        patch.setattr(pynetdicom_association, "encode", lambda *_: content)
        return association.send_c_store(image).Status


def test_truncated_and_wild_data_sets(
    start: Callable[..., Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = start()
    paths = make_series(tmp_path / "ct")
    whole = paths[0].read_bytes()
    image = pydicom.dcmread(paths[0])
    begin = whole.index(b"ISO_IR 192") - 8  # of the data set
    instance = str(image.SOPInstanceUID)
    nested = struct.pack("<HH2sHL", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    for content in (whole[begin:-1], whole[begin : begin + 300], b"\xff" * 400, NAME.encode() * 9, nested * 5000):
        assert send_bytes(node.options.port, content, instance, monkeypatch) == 0xC000
    assert send_bytes(node.options.port, whole[begin:], "1.2.3", monkeypatch) == 0xA900
    assert send_bytes(node.options.port, whole[begin:], instance, monkeypatch) == 0x0000
    assert list((node.options.out / "inbox" / ".incoming").iterdir()) == []
    names_nobody(node)


def test_an_object_that_is_too_large(start: Callable[..., Node], tmp_path: Path) -> None:
    node = start(largest_object_mib=1)
    (tmp_path / "ct").mkdir()
    paths = make_series(tmp_path / "ct", slices=2)
    image = pydicom.dcmread(paths[0])
    image.Rows, image.Columns, image.PixelData = 1024, 1024, bytes(2 << 20)
    with associated(node.options.port) as association:
        assert association.send_c_store(image).Status == 0xA700
        assert association.send_c_store(paths[1]).Status == 0x0000
    assert any("it has more than 1 MiB (status A700)" in line for line in node.lines)


def test_a_full_disk_is_told_once(start: Callable[..., Node], tmp_path: Path) -> None:
    node = start(spare_mib=(1 << 32) - 1)
    assert send(node.options.port, make_series(tmp_path / "ct")) == [0xA700] * 3
    node.wait_for(lambda: any("3 objects refused in all" in line for line in node.lines))
    assert sum("status A700" in line for line in node.lines) == 1


def test_peers_that_are_silent_or_say_too_much(
    start: Callable[..., Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "FIRST_PDU_S", 0.5)
    node = start(silence_s=0.5, most_associations=1)
    heads = (
        b"",
        b"\x01\x00\x00",
        b"\x01\x00\x00\x00\x10\x00half of it",
        b"\x04\x00\xff\xff\xff\xff",
        b"GET / HTTP/1.0\r\n",
    )
    sockets = [socket.create_connection(("127.0.0.1", node.options.port)) for _ in range(9)]
    for connection, head in zip(sockets, heads, strict=False):
        connection.sendall(head)
    with associated(node.options.port) as association:  # established, then silent in the middle of a message
        if association.is_established:
            association.dul.socket.socket.sendall(b"\x04\x00\x00")
    node.wait_for(lambda: not [one for one in threading.enumerate() if "AcceptorThread" in one.name], 40)
    for connection in sockets:
        connection.close()
    assert send(node.options.port, make_series(tmp_path / "ct")) == [0] * 3


def test_the_port_is_in_use(start: Callable[..., Node], tmp_path: Path) -> None:
    node = start()
    with pytest.raises(InputError, match=rf"127.0.0.1:{node.options.port} cannot be listened on: the port is in use"):
        listen(ListenOptions(port=node.options.port, out=tmp_path / "other"), fake_segment)


def test_one_node_a_folder(start: Callable[..., Node], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PATIENCE_S", 0.2)
    node = start()
    with pytest.raises(OutputError, match="another run is working in this folder"):
        listen(ListenOptions(port=free_port(), out=node.options.out), fake_segment)


def test_an_address_of_no_interface(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no such address"):
        listen(ListenOptions(port=free_port(), out=tmp_path, host="192.0.2.1"), fake_segment)


def test_an_open_node_warns(start: Callable[..., Node]) -> None:
    node = start(host="0.0.0.0")
    node.wait_for(lambda: any("can be reached from other machines" in line for line in node.lines))


def test_nothing_is_loud(start: Callable[..., Node], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    node = start()
    with socket.create_connection(("127.0.0.1", node.options.port)) as wild:
        wild.sendall(os.urandom(4000))
    send(node.options.port, make_series(tmp_path / "ct"))
    node.wait_for_status(name_of(tmp_path / "ct"), DONE)
    assert capfd.readouterr() == ("", "")
