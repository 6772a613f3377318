"""How the node is set up, checked before anything starts."""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from parotid_seg.errors import InputError

Say = Callable[[str], None]
"""Told what happens, a line at a time, from any thread."""
HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9._-]{1,253}")


@dataclass(frozen=True)
class Peer:
    """Another node that takes results.

    Attributes:
        ae_title: its AE title.
        host: name or address.
        port: TCP port.
    """

    ae_title: str
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Peer:
        """A peer from "AE@HOST:PORT"; an IPv6 address stands in brackets.

        Raises:
            InputError: if the text is none.
        """
        ae_title, _, address = text.rpartition("@")
        host, _, port = address.rpartition(":")
        host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        whole = ae_title and host and port.isascii() and port.isdecimal()
        if not whole or not (HOST_NAME.fullmatch(host) or _address(host)):
            raise InputError(f"--send-to: found {text!r}, expected AE@HOST:PORT, for example PACS@10.0.0.5:104")
        check_ae_title(ae_title, "--send-to")
        check_port(int(port), "--send-to")
        return cls(ae_title, host, int(port))

    def __str__(self) -> str:
        return f"{self.ae_title}@{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


@dataclass(frozen=True)
class Caller:
    """Who may connect.

    Attributes:
        ae_title: its AE title.
        address: the only address that it may have; empty if any.
    """

    ae_title: str
    address: str = ""

    @classmethod
    def parse(cls, text: str) -> Caller:
        """A caller from "AE" or "AE@ADDRESS"; what follows an @ and is no IP address belongs to the title.

        Raises:
            InputError: if the text is none.
        """
        ae_title, _, address = text.rpartition("@")
        if not (ae_title and _address(address)):
            ae_title, address = text, ""
        check_ae_title(ae_title, "--allow")
        return cls(ae_title, str(ipaddress.ip_address(address)) if address else "")


@dataclass(frozen=True)
class ListenOptions:
    """How the node listens, and what it does with what it has got.

    Attributes:
        port: TCP port to listen on.
        out: folder for everything: received slices, results, the state of each series.
        host: address of the network interface to listen on; "0.0.0.0" is all of them.
        ae_title: the node's own.
        allowed: who may connect, see `Caller.parse`; with none, nobody may. Addresses that are named here have room
            of their own: whatever comes from others does not keep them out.
        send_to: who gets the results; None keeps them in `out` only.
        quiet_s: a series is complete once nothing more came for so long.
        keep_received: keep received slices after the result was delivered, or, without `send_to`, written.
        keep_failed_days: how long the slices of a series that could not be segmented are kept.
        most_associations: of one address at the same time; more are turned away. All addresses that are not named in
            `allowed` have four more together.
        largest_object_mib: an object with more bytes is refused.
        spare_mib: with less free space on `out`'s disk, objects are refused.
        silence_s: an association in which nothing comes for so long is ended.
    """

    port: int
    out: Path
    host: str = "127.0.0.1"
    ae_title: str = "PAROTID-SEG"
    allowed: tuple[str, ...] = ()
    send_to: Peer | None = None
    quiet_s: float = 30.0
    keep_received: bool = False
    keep_failed_days: float = 7.0
    most_associations: int = 10
    largest_object_mib: int = 1024
    spare_mib: int = 1024
    silence_s: float = 60.0

    def __post_init__(self) -> None:
        check_port(self.port, "--port")
        if not _address(self.host):
            raise InputError(f"--host: found {self.host!r}, expected an IP address of this machine, such as 127.0.0.1")
        check_ae_title(self.ae_title, "--ae-title")
        for caller in self.allowed:
            Caller.parse(caller)
        for option, value in (("--quiet-seconds", self.quiet_s), ("--keep-failed-days", self.keep_failed_days)):
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"{option}: found {value}, expected 0 or more")
        if not (math.isfinite(self.silence_s) and self.silence_s > 0):
            raise InputError(f"--silence-seconds: found {self.silence_s}, expected more than 0")
        for option, number in (
            ("--max-associations", self.most_associations),
            ("--max-object-mib", self.largest_object_mib),
        ):
            if number < 1:
                raise InputError(f"{option}: found {number}, expected at least 1")
        if self.spare_mib < 0:
            raise InputError(f"--spare-mib: found {self.spare_mib}, expected 0 or more")

    @property
    def callers(self) -> tuple[Caller, ...]:
        """Who may connect."""
        return tuple(map(Caller.parse, self.allowed))

    @property
    def exposed(self) -> bool:
        """Whether other machines can reach the node."""
        return not ipaddress.ip_address(self.host).is_loopback


def check_ae_title(title: str, option: str) -> None:
    """Refuse what is no AE title (DICOM PS3.5, section 6.2, VR AE); spaces around one are refused, too.

    Raises:
        InputError: if it is none.
    """
    plain = title.isascii() and title.isprintable() and "\\" not in title
    if not (0 < len(title) <= 16 and plain and title == title.strip()):
        raise InputError(f"{option}: found {title!r}, expected an AE title: 1 to 16 ASCII characters, no backslash")


def check_port(port: int, option: str) -> None:
    """Refuse what is no TCP port.

    Raises:
        InputError: if it is none.
    """
    if not 0 < port < 65536:
        raise InputError(f"{option}: found port {port}, expected 1 to 65535")


def _address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return "%" not in host
