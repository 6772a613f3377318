"""Associations that this node begins: each step ends by a deadline, and no answer is lost, whatever the peer does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pynetdicom import AE, Association
from pynetdicom.dimse import DIMSEServiceProvider

from parotid_seg.node.bounds import BoundedSocket, guard

if TYPE_CHECKING:
    from pynetdicom.pdu_primitives import P_DATA
    from pynetdicom.transport import AddressInformation, AssociationSocket

MOST_UNREAD = 4
"""Messages of the peer that nobody waits for."""
LONGEST_ANSWER = 1 << 20
"""Bytes; an answer to C-STORE has some 200."""


class Caller(AE):  # type: ignore[misc]
    """An AE that begins associations; its timeouts hold for peers that stop in the middle of a PDU, too."""

    def _create_socket(self, assoc: Association, address: AddressInformation, tls_args: Any) -> AssociationSocket:
        """Called by `associate` before anything is sent."""
        assoc.dimse = _Answers(assoc)
        guard(assoc)
        return BoundedSocket(assoc, address=address)


class _Answers(DIMSEServiceProvider):  # type: ignore[misc]
    """Gives a peer's answers to nobody but the thread that waits for them.

    pynetdicom has a thread for each association, which takes requests of the peer off the queue. It pauses while an
    answer is waited for; but when it is late in waking up between two answers, it takes the second, which then never
    comes. Nobody sends requests to a node that has called, so that thread gets nothing here.
    """

    message: Any

    def get_msg(self, block: bool = False) -> Any:
        """The next message, waited for until `dimse_timeout`; (None, None) if there is none, or without waiting."""
        return super().get_msg(block=True) if block else (None, None)

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Take a piece of a message; end the association if it is no answer by its size, or one of too many."""
        super().receive_primitive(primitive)
        message = self.message
        size = message.encoded_command_set.tell() + message.data_set.tell() if message is not None else 0
        if size > LONGEST_ANSWER or self.msg_queue.qsize() > MOST_UNREAD:
            self.assoc.abort(block=False)
