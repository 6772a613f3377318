"""Limits what a peer with an association can use of this machine: memory, disk, waiting time and the log."""

from __future__ import annotations

import contextlib
import errno
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Container
from functools import partial
from typing import TYPE_CHECKING, Any

from pydicom import uid
from pynetdicom import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_ECHO_RQ, C_STORE_RQ, DIMSEMessage
from pynetdicom.dsutils import create_file_meta, encode_file_meta
from pynetdicom.transport import AssociationServer, AssociationSocket, RequestHandler

from parotid_seg.node import received_objects
from parotid_seg.node.inbox import Inbox
from parotid_seg.node.listen_options import ListenOptions
from parotid_seg.node.received_objects import Refused, Spool

if TYPE_CHECKING:
    from pynetdicom.pdu_primitives import P_DATA
    from pynetdicom.transport import T_CONNECT, AddressInformation

LONGEST_PDU = 1 << 20
"""Most bytes of a PDU; the maximum announced to peers is smaller."""
MOST_WAITING = 4
"""Most requests that a peer may send without waiting for answers; it should wait for each."""
CLOSING_S = 5.0
"""Seconds for a peer to close its connection after the end of its association."""
LONGEST_COMPLAINT = 150
"""Most characters of a complaint."""


class Server(AssociationServer):  # type: ignore[misc]
    """Listening socket; `Admission` accepts connections, and `hand_over` makes associations of them."""

    request_queue_size = 128

    def hand_over(self, connection: socket.socket, address: tuple[str, int], received: bytes) -> Association:
        """Make an association of a connection whose request has been received."""
        handler: _Handler = self.RequestHandlerClass(connection, address, self)
        handler.begin(received)
        return handler.association


class _Handler(RequestHandler):  # type: ignore[misc]
    prepare: Callable[[Association], None]

    def handle(self) -> None:
        """Do nothing before `begin`."""

    def begin(self, received: bytes) -> None:
        """Start the association.

        Args:
            received: bytes received on the connection.
        """
        self.association = association = self._create_association()
        association.dul.socket = None
        association.dul.event_queue.get_nowait()  # the new socket raises its connection event again
        association.set_socket(BoundedSocket(association, connection=self.request, received=received))
        guard(association)
        self.prepare(association)
        association.start()


def guard(association: Association) -> None:
    """Turn any exception in an association's two threads into one short complaint.

    `association.complaint` is the first error, a line without any content from the peer.
    """
    association.complaint = ""
    association.dul.daemon = True
    for thread in (association, association.dul):
        thread.run = partial(_run, association, thread.run)
    association.kill = partial(_kill, association)


def _run(association: Association, run: Callable[[], None]) -> None:
    try:
        run()
    except Exception as error:  # any error that a hostile peer causes in the library
        association.complaint = association.complaint or type(error).__name__
        association._kill = association._is_paused = True  # release threads that wait for this one to pause
        association.is_established = False
        _shut(association)
        association.dul.kill_dul()


def _kill(association: Association) -> None:
    """`Association.kill` without its unlimited wait for the peer."""
    association._reactor_checkpoint.set()
    association._kill, association.is_established, association._is_paused = True, False, True
    end = time.monotonic() + CLOSING_S
    while association.dul.is_alive() and association.dul.state_machine.current_state != "Sta1":
        if time.monotonic() > end:
            _shut(association)
            break
        time.sleep(0.01)
    association.dul.kill_dul()


def _shut(association: Association) -> None:
    """Close an association's connection."""
    wrapper = association.dul.socket
    connection = wrapper.socket if wrapper is not None else None
    if connection is not None:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()


class _Complaints(logging.Handler):
    """Log handler that keeps the first message of each incoming association, and prints nothing.

    The message ends at the first quotation mark, where content from the peer begins.
    """

    def emit(self, record: logging.LogRecord) -> None:
        thread: Any = threading.current_thread()
        association = getattr(thread, "assoc", thread)  # in its reader thread, or in its own
        if getattr(association, "complaint", None) == "":
            text = type(record.msg).__name__ if isinstance(record.msg, BaseException) else record.getMessage()
            association.complaint = re.split(r"[^A-Za-z -]", text)[0].strip()[:LONGEST_COMPLAINT] or "unknown"


def hush() -> None:
    """Silence the logs of pynetdicom and pydicom, which contain data from peers."""
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    log = logging.getLogger("pynetdicom")
    log.setLevel(logging.ERROR)
    log.propagate = False
    if not any(isinstance(handler, _Complaints) for handler in log.handlers):
        log.addHandler(_Complaints())


def handler_of(prepare: Callable[[Association], None]) -> type[RequestHandler]:
    """A class that makes bounded associations of connections.

    Args:
        prepare: called with each association, before anything is read from it.
    """
    return type("Handler", (_Handler,), {"prepare": staticmethod(prepare)})


class BoundedSocket(AssociationSocket):  # type: ignore[misc]
    """A socket that limits the length of PDUs and the time to receive one.

    Args:
        association: its association.
        connection: an accepted connection; None for one that is not connected yet.
        received: bytes received already.
        address: this machine's, for a connection that is not connected yet.
    """

    def __init__(
        self,
        association: Association,
        *,
        connection: socket.socket | None = None,
        received: bytes = b"",
        address: AddressInformation | None = None,
    ) -> None:
        super().__init__(association, client_socket=connection, address=address)
        if connection is not None:
            connection.settimeout(association.network_timeout)
        self._received = bytearray(received)

    def connect(self, primitive: T_CONNECT) -> None:
        """Connect; sending has the same time limit."""
        super().connect(primitive)
        if self.socket is not None:
            self.socket.settimeout(self.assoc.network_timeout)

    @property
    def ready(self) -> bool:
        """Whether there is something to read."""
        return bool(self._received and self.socket) or bool(super().ready)

    def recv(self, nr_bytes: int) -> bytearray:
        """Read so many bytes; fewer if the connection ends."""
        if nr_bytes > LONGEST_PDU:
            raise OSError(errno.EMSGSIZE, "a PDU is too long")
        connection, silence_s = self.socket, self.assoc.network_timeout
        if connection is None:
            raise OSError(errno.ENOTCONN, "the connection is closed")
        stream = self._received[:nr_bytes]
        del self._received[:nr_bytes]
        end = time.monotonic() + silence_s
        while len(stream) < nr_bytes:
            connection.settimeout(max(end - time.monotonic(), 0.001))
            piece = connection.recv(min(nr_bytes - len(stream), 1 << 16))
            if not piece:
                break
            stream += piece
        connection.settimeout(silence_s)  # for sending
        return stream


class Messages(DIMSEServiceProvider):  # type: ignore[misc]
    """Parses messages as they arrive and writes their data sets to disk. Runs in the thread that reads the network."""

    def __init__(
        self, association: Association, inbox: Inbox, options: ListenOptions, sop_classes: Container[str]
    ) -> None:
        super().__init__(association)
        self.message: DIMSEMessage | None
        self._inbox, self._limit = inbox, options.largest_object_mib << 20
        self._sop_classes = sop_classes
        self._spare = options.spare_mib << 20
        self._spools: list[Spool] = []

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Handle a part of a message."""
        try:
            if self.message is None:
                self.message = DIMSEMessage()
                self.message.data_set = self._spool(self.message)
                self.message.message_to_primitive = partial(_primitive_of, self.message)
            message = self.message
            super().receive_primitive(primitive)
            bad = self.msg_queue.qsize() > MOST_WAITING or message.encoded_command_set.tell() > LONGEST_PDU
        except Exception:  # any error that a hostile message causes in the library must not end the reader thread
            bad = True
        if bad:
            self.discard()
            self.assoc.abort(block=False)

    def _spool(self, message: DIMSEMessage) -> Spool:
        self._spools = [spool for spool in self._spools if spool.refusal is None]
        spool = Spool(self._inbox.new_path(), self._limit, lambda: self._begin(message))
        self._spools.append(spool)
        return spool

    def discard(self) -> None:
        """Remove an incomplete object."""
        for spool in self._spools:
            spool.discard(received_objects.OVER)

    def _begin(self, message: DIMSEMessage) -> bytes:
        """The bytes before a data set in a file (DICOM PS3.10, section 7.1), if the data set is acceptable."""
        if not isinstance(message, C_STORE_RQ):
            raise Refused(received_objects.UNRECOGNISED_OPERATION, "it is not a C-STORE request")
        accepted = {context.context_id: context for context in self.assoc.accepted_contexts}
        context = accepted.get(message.context_id)
        sop_class = str(message.command_set.get("AffectedSOPClassUID"))
        sop_instance = str(message.command_set.get("AffectedSOPInstanceUID"))
        if context is None or context.abstract_syntax != sop_class or sop_class not in self._sop_classes:
            raise Refused(received_objects.CLASS_NOT_SUPPORTED, "its SOP class is not the one agreed on")
        if not received_objects.UID.fullmatch(sop_instance):
            raise Refused(received_objects.INVALID_INSTANCE, "its SOP instance UID is not valid")
        if self._inbox.free_bytes() < self._spare:
            raise Refused(received_objects.OUT_OF_RESOURCES, f"less than {self._spare >> 20} MiB are free on the disk")
        meta = create_file_meta(
            sop_class_uid=uid.UID(sop_class),
            sop_instance_uid=uid.UID(sop_instance),
            transfer_syntax=context.transfer_syntax[0],
        )
        encoded: bytes = encode_file_meta(meta)
        return bytes(128) + b"DICM" + encoded


def _primitive_of(message: DIMSEMessage) -> Any:
    """The primitive for the service classes. Raises ValueError unless it is a C-STORE or a C-ECHO.

    For some other requests pynetdicom would start a thread or send answers that this node does not intend.
    """
    if not isinstance(message, (C_STORE_RQ, C_ECHO_RQ)):
        raise ValueError("neither C-STORE nor C-ECHO")
    return type(message).message_to_primitive(message)
