"""What a peer that connects can do to this machine, bounded: connections, memory, disk and waiting."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Container
from typing import TYPE_CHECKING, Any

from pydicom import uid
from pynetdicom import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ, DIMSEMessage
from pynetdicom.dsutils import create_file_meta, encode_file_meta
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from parotid_seg.node import objects
from parotid_seg.node.inbox import Inbox
from parotid_seg.node.objects import Refused, Spool
from parotid_seg.node.options import ListenOptions

if TYPE_CHECKING:
    from pynetdicom.pdu_primitives import P_DATA

LONGEST_PDU = 1 << 20
"""Bytes; a peer is told to send less."""
MOST_WAITING = 4
"""Requests that a peer may have sent ahead; it is to wait for each answer."""
SPARE_CONNECTIONS = 8
"""Beyond the associations, so that one too many gets an answer."""


class Server(ThreadedAssociationServer):  # type: ignore[misc]
    """Closes connections beyond those that could become associations or get an answer that they cannot."""

    daemon_threads = True

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether there is room for a connection."""
        return bool(len(self.active_associations) < self.ae.maximum_associations + SPARE_CONNECTIONS)


def handler_of(welcome: Callable[[Association], None]) -> type[RequestHandler]:
    """A class that makes bounded associations of connections.

    Args:
        welcome: told of each, before anything is read from it.
    """

    class Handler(RequestHandler):  # type: ignore[misc]
        def _create_association(self) -> Association:
            association = super()._create_association()
            association.dul.socket = None
            association.dul.event_queue.get_nowait()  # the new socket announces itself again
            association.set_socket(_BoundedSocket(association, client_socket=self.request))
            welcome(association)
            return association

    return Handler


class _BoundedSocket(AssociationSocket):  # type: ignore[misc]
    """Reads no PDU that is much longer than what the peer was told, and waits for the rest of one for so long only."""

    def recv(self, nr_bytes: int) -> bytearray:
        if nr_bytes > LONGEST_PDU:
            raise OSError(errno.EMSGSIZE, "a PDU is too long")
        connection, silence_s = self.socket, self.assoc.network_timeout
        if connection is None:
            raise OSError(errno.ENOTCONN, "the connection is closed")
        end, stream = time.monotonic() + silence_s, bytearray()
        while len(stream) < nr_bytes:
            connection.settimeout(max(end - time.monotonic(), 0.001))
            piece = connection.recv(min(nr_bytes - len(stream), 1 << 16))
            if not piece:
                break
            stream += piece
        connection.settimeout(silence_s)  # for what is sent
        return stream


class Messages(DIMSEServiceProvider):  # type: ignore[misc]
    """Takes messages apart as they come, their data sets to the disk. Runs in the thread that reads the network."""

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
        """Take a piece of a message."""
        try:
            if self.message is None:
                self.message = DIMSEMessage()
                self.message.data_set = self._spool(self.message)
            message = self.message
            super().receive_primitive(primitive)
            bad = self.msg_queue.qsize() > MOST_WAITING or message.encoded_command_set.tell() > LONGEST_PDU
        except Exception:  # whatever a hostile message does to the library; the reader's thread must not die of it
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
        """Remove what is not whole."""
        for spool in self._spools:
            spool.discard(objects.OVER)

    def _begin(self, message: DIMSEMessage) -> bytes:
        """What precedes a data set in a file (DICOM PS3.10, section 7.1), if the data set is one to take."""
        if not isinstance(message, C_STORE_RQ):
            raise Refused(objects.UNRECOGNISED_OPERATION, "it is no C-STORE request")
        accepted = {context.context_id: context for context in self.assoc.accepted_contexts}
        context = accepted.get(message.context_id)
        sop_class = str(message.command_set.get("AffectedSOPClassUID"))
        sop_instance = str(message.command_set.get("AffectedSOPInstanceUID"))
        if context is None or context.abstract_syntax != sop_class or sop_class not in self._sop_classes:
            raise Refused(objects.CLASS_NOT_SUPPORTED, "its SOP class is not the one agreed on")
        if not objects.UID.fullmatch(sop_instance):
            raise Refused(objects.INVALID_INSTANCE, "its SOP instance UID is not valid")
        if self._inbox.free_bytes() < self._spare:
            raise Refused(objects.OUT_OF_RESOURCES, f"less than {self._spare >> 20} MiB are free on the disk")
        meta = create_file_meta(
            sop_class_uid=uid.UID(sop_class),
            sop_instance_uid=uid.UID(sop_instance),
            transfer_syntax=context.transfer_syntax[0],
        )
        encoded: bytes = encode_file_meta(meta)
        return bytes(128) + b"DICM" + encoded
