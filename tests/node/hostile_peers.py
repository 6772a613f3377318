"""Peers that mean ill, on raw sockets: what they say, and a flood of them that connect again and again."""

from __future__ import annotations

import selectors
import socket
import struct
import threading
import time
from collections import Counter

from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import build_context
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import A_ASSOCIATE, ImplementationClassUIDNotification, MaximumLengthNotification

RELEASE = b"\x05\0\0\0\0\x04\0\0\0\0"


def associate_request(title: str = "TESTER") -> bytes:
    """An A-ASSOCIATE-RQ for CT images, as an honest peer sends it."""
    primitive = A_ASSOCIATE()
    primitive.application_context_name = "1.2.840.10008.3.1.1.1"
    primitive.calling_ae_title, primitive.called_ae_title = title, "PAROTID-SEG"
    longest, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    longest.maximum_length_received = 16384
    implementation.implementation_class_uid = "1.2.3"
    primitive.user_information = [longest, implementation]
    context = build_context(CTImageStorage, ExplicitVRLittleEndian)
    context.context_id = 1
    primitive.presentation_context_definition_list = [context]
    request = A_ASSOCIATE_RQ()
    request.from_primitive(primitive)
    return bytes(request.encode())


def pdu(kind: int, content: bytes, length: int | None = None) -> bytes:
    return struct.pack(">BxL", kind, len(content) if length is None else length) + content


def data(content: bytes, *, context: int = 1, control: int = 3) -> bytes:
    """A P-DATA-TF with one fragment; control 3 is a whole command set."""
    return pdu(4, struct.pack(">LBB", len(content) + 2, context, control) + content)


def connect(port: int, source: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=10, source_address=(source, 0))


def received(connection: socket.socket) -> bytes:
    """All that comes until the node closes the connection."""
    found = b""
    try:
        while piece := connection.recv(4096):
            found += piece
    except ConnectionError:
        pass
    return found


class Flood:
    """So many connections from some addresses, in one thread; each that ends is made again.

    Args:
        port: of the node.
        sources: addresses, taken by turns.
        says: what is sent on a connection, taken by turns.
        count: connections at the same time.
    """

    def __init__(self, port: int, sources: list[str], says: list[bytes], count: int = 100) -> None:
        self.made = 0
        self.got: Counter[int] = Counter()
        """First bytes of what the node answered: 2 is an association accepted, 3 one rejected."""
        self._port, self._sources, self._says = port, sources, says
        self._over = threading.Event()
        self._selector = selectors.DefaultSelector()
        for _ in range(count):
            self._make()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _make(self) -> None:
        connection = socket.socket()
        connection.setblocking(False)
        connection.bind((self._sources[self.made % len(self._sources)], 0))
        connection.connect_ex(("127.0.0.1", self._port))
        self._selector.register(connection, selectors.EVENT_WRITE, self._says[self.made % len(self._says)])
        self.made += 1

    def _run(self) -> None:
        while not self._over.is_set():
            for key, _ in self._selector.select(0.1):
                connection, says = key.fileobj, key.data
                assert isinstance(connection, socket.socket)
                try:
                    if says is None:
                        found = connection.recv(4096)
                        self.got[found[0] if found else -1] += 1
                        if found:
                            continue
                    else:
                        connection.send(says)
                        self._selector.modify(connection, selectors.EVENT_READ, None)
                        continue
                except OSError:
                    pass
                self._selector.unregister(connection)
                connection.close()
                self._make()
            time.sleep(0.002)

    def __enter__(self) -> Flood:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()
