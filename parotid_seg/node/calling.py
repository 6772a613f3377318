"""Associations that this node requests: each step has a deadline, and no answer is lost, whatever the peer does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pynetdicom import AE, Association
from pynetdicom.dimse import DIMSEServiceProvider

from parotid_seg.node.bounds import BoundedSocket, guard

if TYPE_CHECKING:
    from pynetdicom.pdu_primitives import P_DATA
    from pynetdicom.transport import AddressInformation, AssociationSocket

MOST_UNREAD = 4
"""Most unexpected messages of the peer."""
LONGEST_ANSWER = 1 << 20
"""Most bytes of an answer; one to C-STORE has about 200."""


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
