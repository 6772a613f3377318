"""Connections before they are associations: who is let in is decided before anything is started for a connection.

All of them are held in one thread, each with little memory and for a short time, and counted by address. Only a
connection whose association request has come whole, from a caller that may connect, is handed over to pynetdicom, which
starts two threads for it. So nobody keeps others out by connecting.
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

from parotid_seg.node.options import ListenOptions, Say

FIRST_PDU_S = 5.0
"""For a connection to send its association request."""
LEAVING_S = 2.0
"""For a peer that is rejected to close the connection."""
LONGEST_REQUEST = 1 << 18
"""Bytes of an association request; one with all SOP classes and transfer syntaxes of this node has 10 kB."""
MOST_OPENING = 16
"""Connections of one address that are no associations yet. One more closes the oldest of them."""
MOST_OPENING_IN_ALL = 128
"""The same of all addresses that `--allow` does not name."""
SPARE_ASSOCIATIONS = 4
"""Associations beyond `most_associations`, which one address has at most: they are left for other addresses."""
MOST_ACCEPTED = 8
"""Connections that are accepted before others are attended to."""
BREATH_S = 0.005
"""Pause after that, if connections had to be closed for new ones: peers have time to send what they want to."""
NOTICE_S = 60.0
"""A line on one address and one matter is said once in so long."""
MOST_NOTICES = 500

ASSOCIATE_REQUEST = 0x01
TITLE = slice(26, 42)
"""Where a request has the calling AE title (DICOM PS3.8, table 9-11)."""
UNKNOWN_CALLER = b"\x03\0\0\0\0\x04\0\x01\x01\x03"
LIMIT_EXCEEDED = b"\x03\0\0\0\0\x04\0\x02\x03\x02"
"""A-ASSOCIATE-RJ (PS3.8, table 9-21): permanently, calling AE title not recognized; for now, local limit exceeded."""
UNEXPECTED_PDU = b"\x07\0\0\0\0\x04\0\0\x02\x02"
"""A-ABORT (table 9-26)."""

Address = tuple[str, int]
HandOver = Callable[[socket.socket, Address, bytes], Thread]
"""Makes an association of a connection and what came on it so far, and gives the thread that ends with it."""


class Notices:
    """Lines about what peers do, bounded: repeated ones are counted, and told once in a while. Threads may share it."""

    def __init__(self, say: Say) -> None:
        self._say, self._lock = say, Lock()
        self._more: Counter[tuple[str, str]] = Counter()
        self._until = 0.0

    def say(self, address: str, what: str, title: str = "", count: int = 0) -> None:
        """Say that something happened.

        Args:
            address: where it came from.
            what: one line, of a bounded number of different ones.
            title, count: AE title and number that are put before it, if there are; lines that differ in them only are
                one.
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
        """Say how often lines would have been repeated, if it is time."""
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
    """A connection that is no association.

    Attributes:
        address: of the peer.
        origin: what it counts as, see `Admission._origin_of`.
        until: when it is closed (monotonic seconds).
        received: what came so far.
        leaving: whether it was rejected, and waits for the peer to close it.
    """

    address: Address
    origin: str
    until: float
    received: bytearray = field(default_factory=bytearray)
    leaving: bool = False


class Admission:
    """Takes connections, and hands those over that may become associations. For one thread.

    Args:
        listener: the listening socket.
        options: the node's.
        hand_over: see `HandOver`.
        notices: called with who is rejected.
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
        """Attend to connections, for so long at most if nothing comes."""
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
        """Close all connections that are no associations."""
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
            except OSError as error:  # the peer is gone, or this machine has run out of something
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
            time.sleep(BREATH_S)

    def _make_room(self, origin: str) -> bool:
        """Close the oldest connection of an address, or of all that are not named, if there are too many."""
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
            self._reject(connection, UNEXPECTED_PDU, "what came first is no association request")
        elif len(opening.received) >= 6:
            (length,) = struct.unpack_from(">L", opening.received, 2)
            if not TITLE.stop <= 6 + length <= LONGEST_REQUEST:
                self._reject(connection, UNEXPECTED_PDU, "an association request of an impossible length")
            elif len(opening.received) >= 6 + length:
                self._decide(connection, opening)

    def _decide(self, connection: socket.socket, opening: _Opening) -> None:
        """Let a caller in or turn it away, its request being there."""
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
            except Exception as error:  # no thread can be started, or whatever pynetdicom raises
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
        """What an address counts as: itself if it is named or of IPv4, else its network of 64 bits."""
        address = ipaddress.ip_address(host.partition("%")[0])
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        if str(address) in self._named or address.version == 4:
            return str(address)
        return str(ipaddress.ip_network((address, 64), strict=False))
