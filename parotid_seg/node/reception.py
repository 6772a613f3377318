"""The listening side of the node: which nodes may connect, and which objects are accepted."""

from __future__ import annotations

import contextlib
import errno
import secrets
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pydicom import uid
from pynetdicom import AE, Association, _config, evt
from pynetdicom.sop_class import Verification

from parotid_seg.errors import InputError
from parotid_seg.node import received_objects
from parotid_seg.node.admission import Admission, Notices
from parotid_seg.node.bounds import CLOSING_S, LONGEST_PDU, Messages, Server, handler_of, hush
from parotid_seg.node.inbox import Inbox
from parotid_seg.node.listen_options import ListenOptions, Routine
from parotid_seg.node.received_objects import Refused, Spool, identify
from parotid_seg.wording import Say

if TYPE_CHECKING:
    from pynetdicom.events import Event, EventHandlerType

SOP_CLASSES = (
    uid.CTImageStorage,
    uid.EnhancedCTImageStorage,
    uid.LegacyConvertedEnhancedCTImageStorage,
    uid.MRImageStorage,
    uid.EnhancedMRImageStorage,
    uid.LegacyConvertedEnhancedMRImageStorage,
)
TRANSFER_SYNTAXES = (
    uid.ExplicitVRLittleEndian,
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.RLELossless,
    uid.JPEGLosslessSV1,
    uid.JPEGLossless,
    uid.JPEGLSLossless,
    uid.JPEG2000Lossless,
    uid.JPEGLSNearLossless,
    uid.JPEG2000,
    uid.JPEGBaseline8Bit,
    uid.JPEGExtended12Bit,
)
"""Transfer syntaxes, best first: the first that a peer offers is accepted. Deflated is missing: it can be a bomb."""
MOST_THREADS = 10_000
"""pynetdicom's own limit of associations, set high because `Admission` has its own."""
POLL_S = 0.2


@dataclass
class _Traffic:
    """What an association has sent so far."""

    title: str = ""
    address: str = ""
    taken: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)


class Reception:
    """The listening side of the node. The constructor opens the port; `serve` begins to answer.

    Args:
        options, inbox: the node's.
        say: called with one line for each event.

    Raises:
        InputError: if the port cannot be listened on.
    """

    def __init__(self, options: ListenOptions, inbox: Inbox, say: Say) -> None:
        _config.LOG_HANDLER_LEVEL = "none"  # otherwise pynetdicom formats each PDU for a log that nobody reads
        hush()
        self._options, self._inbox, self._say, self._notices = options, inbox, say, Notices(say)
        self._traffic: dict[Association, _Traffic] = {}
        self._lock = threading.Lock()
        ae = AE(options.ae_title)
        ae.add_supported_context(Verification)
        for sop_class in SOP_CLASSES:
            ae.add_supported_context(sop_class, list(TRANSFER_SYNTAXES))
        # An empty list would accept everybody; a random title accepts nobody.
        ae.require_calling_aet = [each.ae_title for each in options.callers] or [secrets.token_hex(8)]
        ae.maximum_associations = MOST_THREADS
        ae.maximum_pdu_size = LONGEST_PDU // 4
        ae.acse_timeout, ae.dimse_timeout, ae.network_timeout = CLOSING_S, options.silence_s, options.silence_s
        handlers: list[EventHandlerType] = [
            (evt.EVT_ESTABLISHED, self._note_caller),
            (evt.EVT_C_STORE, self._store),
        ]
        try:
            self._server = ae.make_server(
                (options.host, options.port),
                evt_handlers=handlers,
                server_class=Server,
                request_handler=handler_of(self._prepare),
            )
        except OSError as error:
            reasons = {errno.EADDRINUSE: "the port is in use", errno.EADDRNOTAVAIL: "this machine has no such address"}
            reason = reasons.get(error.errno or 0, error.strerror)
            raise InputError(f"--port: {options.host}:{options.port} cannot be listened on: {reason}") from error
        self._admission = Admission(self._server.socket, options, self._begin, self._notices)

    def serve(self, stopping: Callable[[], bool]) -> None:
        """Answer until the node is stopped; then no new association is accepted."""
        try:
            while not stopping():
                self._admission.poll(POLL_S)
                self.handle_ended()
                self._notices.flush()
        finally:
            self._admission.close()
            self._server.server_close()
            self._say(Routine("stopping: no new association is accepted"))

    def close(self, grace_s: float) -> None:
        """Wait so long for associations to end, then end them."""
        self._wait_for_the_end(grace_s)
        for association in self._server.active_associations:
            association.abort(block=False)
        self._wait_for_the_end(1.0)
        for association in self._server.active_associations:  # their threads block on the peer's next byte
            with contextlib.suppress(OSError, AttributeError):
                association.dul.socket.socket.shutdown(socket.SHUT_RDWR)
        self._wait_for_the_end(1.0)
        self.handle_ended()

    def _wait_for_the_end(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while any(one.is_established for one in self._server.active_associations) and time.monotonic() < end:
            time.sleep(0.05)

    def handle_ended(self) -> None:
        """Handle associations that are over."""
        with self._lock:
            over = [(one, traffic) for one, traffic in self._traffic.items() if one.ident and not one.is_alive()]
            for association, _ in over:
                del self._traffic[association]
        for association, traffic in over:
            if isinstance(association.dimse, Messages):
                association.dimse.discard()
            self._inbox.left(association)
            for series, count in traffic.taken.items():
                sender = f"{traffic.title!r} at {traffic.address}"
                self._say(Routine(f"{sender}: {count} objects of series {series} received"))
            for reason, count in traffic.refused.items():
                if count > 1:
                    self._notices.say(traffic.address, f"objects refused in all: {reason}", traffic.title, count)
            if association.complaint:
                self._notices.say(association.requestor.address, f"an association failed: {association.complaint}")

    def _begin(self, connection: socket.socket, address: tuple[str, int], received: bytes) -> Association:
        """See `Server.hand_over`."""
        try:
            return self._server.hand_over(connection, address, received)
        except Exception:
            with self._lock:
                self._traffic = {one: traffic for one, traffic in self._traffic.items() if one.ident}
            raise

    def _prepare(self, association: Association) -> None:
        """Prepare the association of a peer that has connected."""
        association.dimse = Messages(association, self._inbox, self._options, SOP_CLASSES)
        with self._lock:
            self._traffic[association] = _Traffic()

    def _note_caller(self, event: Event) -> None:
        with self._lock:
            traffic, requestor = self._traffic[event.assoc], event.assoc.requestor
            traffic.title, traffic.address = str(requestor.ae_title), requestor.address

    def _store(self, event: Event) -> int:
        """Store an object; returns the status of the answer."""
        traffic, request = self._traffic[event.assoc], event.request
        spool = request.DataSet
        assert isinstance(spool, Spool)
        try:
            file = spool.finish()
            identity = identify(spool.path, str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID))
            series = self._inbox.place(file, spool.path, identity.series, identity.sop_instance, event.assoc)
            traffic.taken[series] += 1
            return 0x0000
        except Refused as error:
            refusal = error
        except OSError as error:
            refusal = Refused(received_objects.OUT_OF_RESOURCES, f"it cannot be written ({error.strerror})")
        finally:
            spool.discard(received_objects.OVER)  # removes nothing that is in its place by now
        traffic.refused[refusal.reason] += 1
        if traffic.refused[refusal.reason] == 1:
            what = f"an object is refused: {refusal.reason} (status {refusal.status:04X})"
            self._notices.say(traffic.address, what, traffic.title)
        return refusal.status
