"""The node's options, checked before anything starts."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from parotid_seg.errors import OptionError
from parotid_seg.options import Option, OptionGroup

HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9._-]{1,253}")


class Routine(str):
    """A line on an event that is no error: --quiet leaves it out. Such lines may come from any thread."""

    __slots__ = ()


@dataclass(frozen=True)
class Peer:
    """Another node that receives results.

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
        """A peer from "AE@HOST:PORT", with an IPv6 address in brackets.

        Raises:
            OptionError: if the text has another form.
        """
        ae_title, _, address = text.rpartition("@")
        host, _, port = address.rpartition(":")
        host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        complete = ae_title and host and port.isascii() and port.isdecimal()
        if not complete or not (HOST_NAME.fullmatch(host) or _address(host)):
            raise OptionError(f"--send-to: found {text!r}, expected AE@HOST:PORT, for example PACS@10.0.0.5:104")
        check_ae_title(ae_title, "--send-to")
        check_port(int(port), "--send-to")
        return cls(ae_title, host, int(port))

    def __str__(self) -> str:
        return f"{self.ae_title}@{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


@dataclass(frozen=True)
class Caller:
    """A node that may connect.

    Attributes:
        ae_title: its AE title.
        address: its only allowed address; empty for any.
    """

    ae_title: str
    address: str = ""

    @classmethod
    def parse(cls, text: str) -> Caller:
        """A caller from "AE" or "AE@ADDRESS".

        Raises:
            OptionError: if the text has another form.
        """
        ae_title, at, address = text.rpartition("@")
        if at and not _address(address):
            raise OptionError(
                f"--allow: found {text!r}, where {address!r} is no IP address; expected AE or AE@ADDRESS, such as "
                "CT1@10.0.0.5"
            )
        if not at:
            ae_title, address = text, ""
        check_ae_title(ae_title, "--allow")
        return cls(ae_title, str(ipaddress.ip_address(address)) if address else "")


@dataclass(frozen=True)
class ListenOptions(OptionGroup, panel="Node"):
    """How the node listens, and what it does with received series."""

    port: Annotated[int, Option("--port", "TCP port to listen on.", metavar="N")]
    out: Annotated[Path, Option("--out", "Folder for received slices, results and their states.", metavar="DIR")]
    allowed: Annotated[
        tuple[str, ...],
        Option(
            "--allow",
            "AE title that may connect; with @ADDRESS from that address only. May be given several times. Without this "
            "option no node may connect.",
            metavar="AE[@ADDRESS]",
        ),
    ] = ()
    send_to: Annotated[
        Peer | None,
        Option(
            "--send-to",
            "Node that gets the results. Default: they are only kept in DIR/results.",
            metavar="AE@HOST:PORT",
            parse=Peer.parse,
        ),
    ] = None
    host: Annotated[
        str,
        Option(
            "--host",
            "Address to listen on. DICOM neither authenticates nor encrypts: see docs/listen.md.",
            metavar="ADDRESS",
        ),
    ] = "127.0.0.1"
    ae_title: Annotated[str, Option("--ae-title", "The node's own AE title.", metavar="AE")] = "PAROTID-SEG"
    quiet_s: Annotated[
        float,
        Option("--quiet-seconds", "A series is complete when no object arrived for S seconds.", metavar="S", least=0),
    ] = 30.0
    keep_received: Annotated[
        bool,
        Option("--keep-received", "Keep received slices after the result is delivered. Default: remove them."),
    ] = False
    keep_failed_days: Annotated[
        float,
        Option(
            "--keep-failed-days",
            "Days for which slices of series that could not be segmented are kept.",
            metavar="N",
            least=0,
        ),
    ] = 7.0
    most_associations: Annotated[
        int,
        Option(
            "--max-associations",
            "Largest number of associations of one address; more are rejected. All addresses that --allow does "
            "not name may have four more than that, together.",
            metavar="N",
            least=1,
        ),
    ] = 10
    largest_object_mib: Annotated[
        int,
        Option(
            "--max-object-mib",
            "Largest size of a received object in MiB; larger ones are refused.",
            metavar="N",
            least=1,
        ),
    ] = 1024
    spare_mib: Annotated[
        int, Option("--spare-mib", "Free disk space in MiB below which objects are refused.", metavar="N", least=0)
    ] = 1024
    silence_s: Annotated[
        float,
        Option("--silence-seconds", "An association without data for S seconds is ended.", metavar="S", least=0),
    ] = 60.0

    def __post_init__(self) -> None:
        """Check all options before anything starts.

        Raises:
            OptionError: for one that is out of its bounds, or is not a valid port, address or AE title.
        """
        super().__post_init__()
        check_port(self.port, "--port")
        if not _address(self.host):
            raise OptionError(f"--host: found {self.host!r}, expected an IP address of this machine, such as 127.0.0.1")
        check_ae_title(self.ae_title, "--ae-title")
        for caller in self.allowed:
            Caller.parse(caller)
        if not self.silence_s > 0:
            raise OptionError(f"--silence-seconds: found {self.silence_s}, expected more than 0")

    @property
    def callers(self) -> tuple[Caller, ...]:
        """The nodes that may connect."""
        return tuple(map(Caller.parse, self.allowed))

    @property
    def exposed(self) -> bool:
        """Whether other machines can reach the node."""
        return not ipaddress.ip_address(self.host).is_loopback


def check_ae_title(title: str, option: str) -> None:
    """Check an AE title (DICOM PS3.5, section 6.2, VR AE); spaces around it are not allowed.

    Raises:
        OptionError: if it is not valid.
    """
    plain = title.isascii() and title.isprintable() and "\\" not in title
    if not (0 < len(title) <= 16 and plain and title == title.strip()):
        raise OptionError(f"{option}: found {title!r}, expected an AE title: 1 to 16 ASCII characters, no backslash")


def check_port(port: int, option: str) -> None:
    """Check a TCP port.

    Raises:
        OptionError: if it is not valid.
    """
    if not 0 < port < 65536:
        raise OptionError(f"{option}: found port {port}, expected 1 to 65535")


def _address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return "%" not in host
