"""What is refused before the node starts, each in one line."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parotid_seg.errors import InputError
from parotid_seg.node.listen_options import ListenOptions, Peer


@pytest.mark.parametrize(
    ("text", "peer"),
    [
        ("PACS@10.0.0.5:104", Peer("PACS", "10.0.0.5", 104)),
        ("A B@C@pacs.example.org:11112", Peer("A B@C", "pacs.example.org", 11112)),
        ("PACS@[::1]:104", Peer("PACS", "::1", 104)),
    ],
)
def test_a_peer(text: str, peer: Peer) -> None:
    assert Peer.parse(text) == peer
    assert str(peer) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "PACS",
        "PACS@host",
        "@host:104",
        "PACS@:104",
        "PACS@host:",
        "PACS@host:0",
        "PACS@host:65536",
        "PACS@host:-1",
        "PACS@host:1e3",
        "PACS@ho st:104",
        "PACS@host/path:104",
        "PACS@-oProxy:104",
        "SEVENTEEN-LETTERS@host:104",
        "PA\\CS@host:104",
        " PACS@host:104",
        "PÄCS@host:104",
        "PACS@host:١٠٤",
    ],
)
def test_no_peer(text: str) -> None:
    with pytest.raises(InputError, match=r"^--send-to: found") as error:
        Peer.parse(text)
    assert "\n" not in str(error.value)


@given(st.text() | st.from_regex(r"[A-Z ]{1,17}@[a-z.:0-9]*:[0-9]{1,6}", fullmatch=True))
def test_any_text_is_a_peer_or_an_error(text: str) -> None:
    with contextlib.suppress(InputError):
        peer = Peer.parse(text)
        assert Peer.parse(str(peer)) == peer


@pytest.mark.parametrize(
    ("option", "wrong"),
    [
        ("--port", {"port": 0}),
        ("--port", {"port": 65536}),
        ("--host", {"host": "localhost"}),
        ("--host", {"host": ""}),
        ("--host", {"host": "10.0.0.256"}),
        ("--host", {"host": "fe80::1%eth0"}),
        ("--ae-title", {"ae_title": ""}),
        ("--ae-title", {"ae_title": "A" * 17}),
        ("--ae-title", {"ae_title": "A\\B"}),
        ("--ae-title", {"ae_title": "A\nB"}),
        ("--ae-title", {"ae_title": "   "}),
        ("--allow", {"allowed": ("CT1", "Gerät")}),
        ("--quiet-seconds", {"quiet_s": -1.0}),
        ("--quiet-seconds", {"quiet_s": float("nan")}),
        ("--keep-failed-days", {"keep_failed_days": float("inf")}),
        ("--silence-seconds", {"silence_s": 0.0}),
        ("--silence-seconds", {"silence_s": 1e300}),
        ("--max-associations", {"most_associations": 0}),
        ("--max-object-mib", {"largest_object_mib": 0}),
        ("--spare-mib", {"spare_mib": -1}),
    ],
)
def test_what_is_refused(tmp_path: Path, option: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"^{option}: found .*, expected ") as error:
        ListenOptions(**{"port": 104, "out": tmp_path, **wrong})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("host", "exposed"), [("127.0.0.1", False), ("::1", False), ("0.0.0.0", True), ("10.0.0.5", True)]
)
def test_who_can_reach_it(tmp_path: Path, host: str, exposed: bool) -> None:
    assert ListenOptions(104, tmp_path, host=host).exposed == exposed
