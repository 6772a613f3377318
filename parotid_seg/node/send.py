"""Sends results to the peer, and keeps them until the peer has received them.

Each step of an association that this node requests has a deadline, and no answer is lost, whatever the peer does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydicom.filereader import read_file_meta_info
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, Association
from pynetdicom.dimse import DIMSEServiceProvider

from parotid_seg.errors import OutputError
from parotid_seg.node.bounds import BoundedSocket, guard
from parotid_seg.node.ledger import DONE, REFUSED, SENT, Ledger, SeriesRecord
from parotid_seg.node.listen_options import Peer, Routine
from parotid_seg.wording import Say

if TYPE_CHECKING:
    from pynetdicom.pdu_primitives import P_DATA
    from pynetdicom.transport import AddressInformation, AssociationSocket

MOST_UNREAD = 4
"""Most unexpected messages of the peer."""
LONGEST_ANSWER = 1 << 20
"""Most bytes of an answer; one to C-STORE has about 200."""
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 300.0
"""Seconds between tries while the peer is away, doubling from the first to the longest."""
MOST_REFUSALS = 5
CONNECTION_S, NEGOTIATION_S, ANSWER_S = 10.0, 30.0, 60.0
POLL_S = 0.2


class RequestingAE(AE):  # type: ignore[misc]
    """An AE that requests associations; its timeouts also apply to peers that stop in the middle of a PDU."""

    def _create_socket(self, assoc: Association, address: AddressInformation, tls_args: Any) -> AssociationSocket:
        """Called by `associate` before anything is sent."""
        assoc.dimse = _Answers(assoc)
        guard(assoc)
        return BoundedSocket(assoc, address=address)


class _Answers(DIMSEServiceProvider):  # type: ignore[misc]
    """Delivers a peer's answers only to the thread that waits for them.

    pynetdicom has a thread for each association, which takes requests of the peer off the queue. It pauses while
    another thread waits for an answer; but if it wakes up late between two answers, it takes the second one, which is
    lost then. A peer sends no requests on an association that this node requested, so that thread gets nothing here.
    """

    message: Any

    def get_msg(self, block: bool = False) -> Any:
        """The next message within `dimse_timeout`; (None, None) if there is none, or at once without waiting."""
        return super().get_msg(block=True) if block else (None, None)

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Handle a part of a message; end the association if it is too large for an answer, or there are too many."""
        super().receive_primitive(primitive)
        message = self.message
        size = message.encoded_command_set.tell() + message.data_set.tell() if message is not None else 0
        if size > LONGEST_ANSWER or self.msg_queue.qsize() > MOST_UNREAD:
            self.assoc.abort(block=False)


class _Away(Exception):  # noqa: N818 (a state of the peer, no error of ours)
    """The peer cannot be reached, or ends the association."""


class _Rejected(Exception):  # noqa: N818
    """The peer rejects a result."""


@dataclass
class _Waiting:
    """A series with an unsent result: when to send it (monotonic seconds), and how often the peer refused it."""

    due: float = 0.0
    refusals: int = 0


class Outbox:
    """Sends results in a separate thread (`run`).

    Args:
        peer: the receiver.
        ae_title: the node's own.
        results: folder that has a folder of results for each series.
        ledger: the node's.
        delivered: called with each series whose result the peer has received.
        say: called with one line for each event.
    """

    def __init__(
        self,
        peer: Peer,
        ae_title: str,
        results: Path,
        ledger: Ledger,
        delivered: Callable[[str], None],
        say: Say,
    ) -> None:
        self._peer, self._results, self._ledger = peer, results, ledger
        self._delivered, self._say = delivered, say
        self._ae = RequestingAE(ae_title)
        self._ae.connection_timeout, self._ae.acse_timeout = CONNECTION_S, NEGOTIATION_S
        self._ae.dimse_timeout = self._ae.network_timeout = ANSWER_S
        self._open: Association | None = None
        self._waiting: dict[str, _Waiting] = {}
        self._lock = threading.Lock()

    def add(self, series: str) -> None:
        """Queue a series' result; may be called from any thread."""
        with self._lock:
            self._waiting[series] = _Waiting()

    def run(self, stopping: Callable[[], bool]) -> None:
        """Send queued results until the node is stopped; a transfer in progress is finished."""
        wait_s, quiet_until = FIRST_WAIT_S, 0.0
        while not stopping():
            due = self._due() if time.monotonic() >= quiet_until else {}
            if not due:
                time.sleep(POLL_S)
                continue
            try:
                self._send_all(due, stopping)
                wait_s = FIRST_WAIT_S
            except _Away as away:
                self._say(f"{self._peer}: {away}; {len(due)} results wait, trying again in {wait_s:.0f} s")
                quiet_until = time.monotonic() + wait_s
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    def close(self) -> None:
        """Abort a transfer in progress; it is repeated after a restart."""
        association = self._open
        if association is not None:
            association.abort(block=False)

    def _due(self) -> dict[str, _Waiting]:
        now = time.monotonic()
        with self._lock:
            return {series: waiting for series, waiting in self._waiting.items() if waiting.due <= now}

    def _send_all(self, due: Mapping[str, _Waiting], stopping: Callable[[], bool]) -> None:
        """Send due results in one association. Raises _Away."""
        records = {}
        for series, waiting in due.items():
            record = self._ledger.get(series)
            if record is None or record.status not in (DONE, REFUSED):
                self._forget(series, waiting)  # it is segmented again at present
            else:
                records[series] = record
        kinds = {kind for series, record in records.items() for kind in self._kinds(series, record)}
        if not kinds:
            for series, record in records.items():
                self._refused(series, record, due[series], "its result file is missing or damaged")
            return
        with self._association(kinds) as association:
            for series, record in records.items():
                if stopping():
                    return
                self._send(series, record, due[series], association)

    def _send(self, series: str, record: SeriesRecord, waiting: _Waiting, association: Association) -> None:
        try:
            for name in record.results:
                _store(self._results / series / name, association)
        except _Rejected as reason:
            self._refused(series, record, waiting, str(reason))
            return
        try:
            if self._ledger.replace(series, record, replace(record, status=SENT, reason="")):
                self._say(Routine(f"series {series}: result sent to {self._peer}"))
                self._delivered(series)
            self._forget(series, waiting)
        except OutputError as error:
            self._put_off(series, waiting, f"it was sent, but that cannot be recorded: {error}")

    def _refused(self, series: str, record: SeriesRecord, waiting: _Waiting, reason: str) -> None:
        refusals = self._put_off(series, waiting, f"{self._peer} does not take the result: {reason}")
        if refusals < MOST_REFUSALS:
            return
        self._forget(series, waiting)
        self._say(f"series {series}: given up; it is sent again after a restart, or when the series is received again")
        try:
            self._ledger.replace(series, record, replace(record, status=REFUSED, reason=reason))
        except OutputError as error:
            self._say(f"series {series}: {error}")

    def _put_off(self, series: str, waiting: _Waiting, reason: str) -> int:
        """Try a series again later; returns how often that happened."""
        with self._lock:
            waiting.refusals += 1
            waiting.due = time.monotonic() + min(FIRST_WAIT_S * 2**waiting.refusals, LONGEST_WAIT_S)
        self._say(f"series {series}: {reason}")
        return waiting.refusals

    def _forget(self, series: str, waiting: _Waiting) -> None:
        """Do not send a series any more, unless it was queued again meanwhile, with a newer result."""
        with self._lock:
            if self._waiting.get(series) is waiting:
                del self._waiting[series]

    def _kinds(self, series: str, record: SeriesRecord) -> Iterator[tuple[str, str]]:
        """SOP class and transfer syntax of each result file that can be read."""
        for name in record.results:
            try:
                meta = read_file_meta_info(self._results / series / name)
                yield str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID)
            except Exception:  # missing or damaged; `_store` reports it
                continue

    @contextmanager
    def _association(self, kinds: set[tuple[str, str]]) -> Iterator[Association]:
        """An association for files of these SOP classes and transfer syntaxes. Raises _Away."""
        self._ae.requested_contexts = []
        for sop_class in sorted({sop_class for sop_class, _ in kinds}):
            syntaxes = {syntax for kind, syntax in kinds if kind == sop_class}
            plain = {str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian)}
            for syntax in sorted(syntaxes - plain):
                self._ae.add_requested_context(sop_class, syntax)
            self._ae.add_requested_context(sop_class, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
        try:
            association = self._ae.associate(self._peer.host, self._peer.port, ae_title=self._peer.ae_title)
        except OSError as error:
            raise _Away(f"cannot be reached ({error.strerror})") from error
        if not association.is_established:
            raise _Away("rejects the association" if association.is_rejected else "cannot be reached")
        self._open = association
        try:
            yield association
        finally:
            self._open = None
            if association.is_established:
                association.release()


def _store(path: Path, association: Association) -> None:
    """Send a file. Raises _Away or _Rejected."""
    if not association.is_established:
        raise _Away("broke the association off")
    try:
        answer = association.send_c_store(path)
    except ValueError as error:  # the peer accepted no such presentation context
        raise _Rejected("it agreed to no transfer of this kind of object") from error
    except RuntimeError as error:
        raise _Away("broke the association off") from error
    except Exception as error:  # any error that a damaged file causes in the parser
        raise _Rejected(f"its result file is missing or damaged ({type(error).__name__})") from error
    status = answer.get("Status")
    if status is None:
        raise _Away("does not answer")
    if status >> 8 == 0xA7:
        raise _Away(f"is out of resources (status {status:04X})")
    if not (status in (0x0000, 0x0001, 0x0107, 0x0116) or status >> 12 == 0xB):
        raise _Rejected(f"status {status:04X}")
