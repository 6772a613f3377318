"""Addresses of servers, options beside them, and a client that is missing."""

import sys
from pathlib import Path

import pytest

from parotid_seg.cli import main
from parotid_seg.errors import InputError
from parotid_seg.models import DEFAULT_MODEL, example_folder
from parotid_seg.runtime.engines.triton_client import TritonBackend, check_address
from tests.runtime.engines.test_triton import one_line


@pytest.mark.parametrize("good", ["localhost:8001", "10.0.0.7:1", "[::1]:65535", "gpu_1.ward-3.example:8001"])
def test_addresses(good: str) -> None:
    assert check_address(good) == good


@pytest.mark.parametrize(
    "bad",
    ["", "localhost", ":8001", "localhost:", "localhost:0", "localhost:65536", "localhost:8001/", "http://a:8001",
     "grpc://a:1", "dns:///a:1", "unix:/tmp/socket", "a:b:1", "::1:8001", "[::g]:1", "[]:1", "a b:1", "a:1\n", "a:٣",
     "-a:1", "a:+1", "user@a:1", "a\x1b:1"],
)  # fmt: skip
def test_no_addresses(bad: str) -> None:
    with pytest.raises(InputError, match="--triton: found") as caught:
        check_address(bad)
    one_line(str(caught.value), "expected HOST:PORT")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (("--triton", "localhost"), "expected HOST:PORT"),
        (("--triton-model", "mine"), "expected --triton HOST:PORT as well"),
        (
            ("--triton", "a:1", "--model", DEFAULT_MODEL, "--backend", "openvino", "--device", "cpu"),
            "expected no --model and no --backend and no --device",
        ),
    ],
)
def test_a_wrong_command_line(
    tmp_path: Path,
    told: tuple[Path | str, ...],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = ("parotid-seg", "infer", example_folder(), "--out", tmp_path / "out", *told)
    monkeypatch.setattr(sys, "argv", list(map(str, line)))
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    one_line(capsys.readouterr().err, words)
    assert not (tmp_path / "out").exists()


def test_a_missing_client_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tritonclient", None)
    with pytest.raises(InputError, match=r"pip install 'parotid-seg\[triton\]'") as caught:
        TritonBackend("localhost:8001")
    one_line(str(caught.value))
