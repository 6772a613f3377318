"""Decides which connections become associations, before any resources are spent on them.

One thread holds all new connections, each with little memory and for a short time, and counts them by address. Only a
connection with a complete association request from an allowed caller is handed over to pynetdicom, which starts two
threads for it. A peer therefore cannot block others by opening connections.
"""

from __future__ import annotations

import contextlib
import ipaddress
import selectors
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock, Thread

from parotid_seg.node.listen_options import ListenOptions
from parotid_seg.wording import Say

FIRST_PDU_S = 5.0
"""Seconds for a connection to send its association request."""
LEAVING_S = 2.0
"""Seconds for a rejected peer to close the connection."""
LONGEST_REQUEST = 1 << 18
"""Most bytes of an association request; one with all SOP classes and transfer syntaxes of this node has 10 kB."""
MOST_OPENING = 16
"""Most connections of one address without an association. One more closes the oldest of them."""
MOST_OPENING_IN_ALL = 128
"""The same for all addresses together that `--allow` does not name."""
SPARE_ASSOCIATIONS = 4
"""Associations in addition to `most_associations` (the limit of one address), reserved for other addresses."""
MOST_ACCEPTED = 8
"""Connections that are accepted before existing ones are handled."""
PAUSE_S = 0.005
"""Pause after that, if connections had to be closed for new ones, so that peers have time to send their request."""
NOTICE_S = 60.0
"""Seconds in which the same line about the same address is printed once."""
MOST_NOTICES = 500

ASSOCIATE_REQUEST = 0x01
TITLE = slice(26, 42)
"""Position of the calling AE title in a request (DICOM PS3.8, table 9-11)."""
UNKNOWN_CALLER = b"\x03\0\0\0\0\x04\0\x01\x01\x03"
LIMIT_EXCEEDED = b"\x03\0\0\0\0\x04\0\x02\x03\x02"
"""A-ASSOCIATE-RJ (PS3.8, table 9-21): permanently, calling AE title not recognized; for now, local limit exceeded."""
UNEXPECTED_PDU = b"\x07\0\0\0\0\x04\0\0\x02\x02"
"""A-ABORT (table 9-26)."""

Address = tuple[str, int]
HandOver = Callable[[socket.socket, Address, bytes], Thread]
"""Makes an association from a connection and the bytes received so far, and returns the association's thread."""


class Notices:
    """Rate-limited lines about peers: repeated lines are counted and reported from time to time. Thread-safe."""

    def __init__(self, say: Say) -> None:
        self._say, self._lock = say, Lock()
        self._more: Counter[tuple[str, str]] = Counter()
        self._until = 0.0

    def say(self, address: str, what: str, title: str = "", count: int = 0) -> None:
        """Report an event.

        Args:
            address: the peer's.
            what: one line, of a bounded number of different ones.
            title, count: AE title and number in front of the line, if any; lines that differ only in these count as
                the same.
        """
        self.flush()
        with self._lock:
            key = (address if len(self._more) < MOST_NOTICES else "other addresses", what)
            if key in self._more:
                self._more[key] += 1
                return
            self._more[key] = 0
        caller = f"{title!r} at {key[0]}" if title else key[0]
        self._say(f"{caller}: {count} {what}" if count else f"{caller}: {what}")

    def flush(self) -> None:
        """Report how often lines were repeated, if it is time."""
        now = time.monotonic()
        with self._lock:
            if now < self._until:
                return
            repeated = [(key, count) for key, count in self._more.items() if count]
            self._more.clear()
            self._until = now + NOTICE_S
        for (address, what), count in repeated:
            self._say(f"{address}: {count} times more: {what}")


@dataclass
class _Opening:
    """A connection without an association.

    Attributes:
        address: of the peer.
        origin: address or network that it is counted under, see `Admission._origin_of`.
        until: when it is closed (monotonic seconds).
        received: bytes received so far.
        leaving: whether it was rejected and the peer should close it.
    """

    address: Address
    origin: str
    until: float
    received: bytearray = field(default_factory=bytearray)
    leaving: bool = False


class Admission:
    """Accepts connections, and hands over those that may become associations. For one thread.

    Args:
        listener: the listening socket.
        options: the node's.
        hand_over: see `HandOver`.
        notices: reports rejected peers.
    """

    def __init__(self, listener: socket.socket, options: ListenOptions, hand_over: HandOver, notices: Notices) -> None:
        self._options, self._hand_over, self._notices = options, hand_over, notices
        self._named = {each.address for each in options.callers if each.address}
        self._openings: dict[socket.socket, _Opening] = {}
        self._associations: dict[Thread, str] = {}
        self._listener = listener
        listener.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)

    def poll(self, seconds: float) -> None:
        """Handle connections; wait at most so long if nothing is received."""
        for key, _ in self._selector.select(seconds):
            if key.fileobj is self._listener:
                self._accept()
            elif isinstance(key.fileobj, socket.socket) and key.fileobj in self._openings:
                self._read(key.fileobj)
        now = time.monotonic()
        for connection in [one for one, opening in self._openings.items() if opening.until < now]:
            if not self._openings[connection].leaving:
                self._notices.say(self._openings[connection].address[0], "a connection sent no association request")
            self._close(connection)

    def close(self) -> None:
        """Close all connections without an association."""
        for connection in list(self._openings):
            self._close(connection)
        self._selector.close()

    def _accept(self) -> None:
        crowded = False
        for _ in range(MOST_ACCEPTED):
            try:
                connection, address = self._listener.accept()
            except BlockingIOError:
                break
            except OSError as error:  # the peer is gone, or a resource of this machine is exhausted
                self._notices.say("this machine", f"a connection cannot be accepted ({error.strerror})")
                time.sleep(0.05)
                return
            connection.setblocking(False)
            origin = self._origin_of(address[0])
            crowded |= self._make_room(origin)
            self._openings[connection] = _Opening(address[:2], origin, time.monotonic() + FIRST_PDU_S)
            self._selector.register(connection, selectors.EVENT_READ)
            self._read(connection)
        if crowded:
            time.sleep(PAUSE_S)

    def _make_room(self, origin: str) -> bool:
        """Close the oldest connection of an address, or of all addresses that are not named, if there are too many."""
        same = [one for one, opening in self._openings.items() if opening.origin == origin]
        unnamed = [one for one, opening in self._openings.items() if opening.origin not in self._named]
        if len(same) >= MOST_OPENING:
            self._close(same[0])
            return True
        if origin not in self._named and len(unnamed) >= MOST_OPENING_IN_ALL:
            self._close(unnamed[0])
            return True
        return False

    def _read(self, connection: socket.socket) -> None:
        opening = self._openings[connection]
        try:
            piece = connection.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        if not piece:
            self._close(connection)
            return
        if opening.leaving:
            return
        opening.received += piece
        if opening.received[0] != ASSOCIATE_REQUEST:
            self._reject(connection, UNEXPECTED_PDU, "the first bytes are not an association request")
        elif len(opening.received) >= 6:
            (length,) = struct.unpack_from(">L", opening.received, 2)
            if not TITLE.stop <= 6 + length <= LONGEST_REQUEST:
                self._reject(connection, UNEXPECTED_PDU, "an association request of an impossible length")
            elif len(opening.received) >= 6 + length:
                self._decide(connection, opening)

    def _decide(self, connection: socket.socket, opening: _Opening) -> None:
        """Accept or reject a caller whose request is complete."""
        title = opening.received[TITLE].decode("ascii", "replace").strip()
        callers = [each for each in self._options.callers if each.ae_title == title]
        if not callers:
            why = "rejected, this AE title is not allowed (--allow)"
            self._reject(connection, UNKNOWN_CALLER, why, title)
        elif not any(each.address in ("", opening.origin) for each in callers):
            why = "rejected, this AE title is not allowed at this address (--allow)"
            self._reject(connection, UNKNOWN_CALLER, why, title)
        elif not self._has_room(opening.origin):
            self._reject(connection, LIMIT_EXCEEDED, "rejected, there are too many associations", title)
        else:
            self._forget(connection)
            try:
                association = self._hand_over(connection, opening.address, bytes(opening.received))
            except Exception as error:  # no thread can be started, or any error of pynetdicom
                self._notices.say(opening.address[0], f"an association cannot be begun ({type(error).__name__})")
                connection.close()
                return
            self._associations[association] = opening.origin

    def _has_room(self, origin: str) -> bool:
        """Whether an address may have one more association."""
        self._associations = {one: its for one, its in self._associations.items() if one.is_alive()}
        counts = Counter(self._associations.values())
        most = self._options.most_associations
        unnamed = sum(count for each, count in counts.items() if each not in self._named)
        return counts[origin] < most and (origin in self._named or unnamed < most + SPARE_ASSOCIATIONS)

    def _reject(self, connection: socket.socket, answer: bytes, why: str, title: str = "") -> None:
        opening = self._openings[connection]
        self._notices.say(opening.address[0], why, title=title)
        opening.leaving, opening.until = True, time.monotonic() + LEAVING_S
        opening.received.clear()
        try:
            connection.send(answer)
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            self._close(connection)

    def _close(self, connection: socket.socket) -> None:
        self._forget(connection)
        connection.close()

    def _forget(self, connection: socket.socket) -> None:
        del self._openings[connection]
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(connection)

    def _origin_of(self, host: str) -> str:
        """The origin that an address is counted under: itself if it is named or IPv4, else its 64-bit network."""
        address = ipaddress.ip_address(host.partition("%")[0])
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        if str(address) in self._named or address.version == 4:
            return str(address)
        return str(ipaddress.ip_network((address, 64), strict=False))
