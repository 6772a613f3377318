"""Hostile files of `torch.save`: each ends in one line, in little time and memory, and nothing of it is believed."""

from __future__ import annotations

import copy
import io
import struct
import zipfile
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from parotid_seg.errors import InputError, ParotidSegError
from parotid_seg.train import torch_file
from parotid_seg.train.checkpoint import FORMAT, is_checkpoint, load_checkpoint
from parotid_seg.train.network import SwinUnet
from parotid_seg.train.torch_file import LONGEST_DESCRIPTION, load_torch_file
from parotid_seg.train.transfer import start_from
from tests.fuzz.memory import little_memory

pytestmark = pytest.mark.slow


TEXT = FORMAT.encode()
BEGIN = b"\x80\x02}X\x06\0\0\0format"
OURS = BEGIN + b"X" + struct.pack("<I", len(TEXT)) + TEXT + b"s"
"""Of a pickle: a dictionary with our format."""


def number(value: int) -> bytes:
    content = value.to_bytes(9, "little", signed=True)
    return b"\x8a" + bytes([len(content)]) + content


def called(name: str, arguments: bytes) -> bytes:
    module, _, function = name.rpartition(".")
    return f"c{module}\n{function}\n".encode() + b"(" + arguments + b"tR"


def as_(key: str, value: bytes) -> bytes:
    """One more item of the dictionary, which ends the pickle."""
    return b"X" + struct.pack("<I", len(key)) + key.encode() + value + b"s."


def storage(count: int, key: str = "0") -> bytes:
    parts = b"X\x07\0\0\0storagectorch\nFloatStorage\nX" + struct.pack("<I", len(key)) + key.encode() + b"X\3\0\0\0cpu"
    return b"(" + parts + number(count) + b"tQ"


def tensor(count: int, size: int, stride: int, offset: int = 0, key: str = "0") -> bytes:
    shape = number(offset) + number(size) + b"\x85" + number(stride) + b"\x85"
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    return called("torch._utils._rebuild_tensor_v2", storage(count, key) + shape + hooks)


def weights(*tensors: bytes) -> bytes:
    items = (b"X" + struct.pack("<I", 8) + f"{index:08}".encode() + each for index, each in enumerate(tensors))
    return OURS + as_("weights", b"}(" + b"".join(items) + b"u")


def shared(depth: int) -> bytes:
    """Lists of the same list twice: 2^depth values in a few bytes."""
    made = b"]q\0(K\1K\1e"
    for index in range(depth):
        made += b"](h" + bytes([index]) + b"h" + bytes([index]) + b"eq" + bytes([index + 1])
    return made


def archive(pickled: bytes, values: bytes = bytes(64), *, names: int = 1) -> bytes:
    """A file as of `torch.save`; with more names for the same values, whose bytes are there once."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        file.writestr("a/data.pkl", pickled)
        file.writestr("a/byteorder", "little")
        file.writestr("a/data/0", values)
        for index in range(1, names):
            again = copy.copy(file.filelist[2])
            again.filename = f"a/data/{index}"
            file.filelist.append(again)
    return made.getvalue()


DEEP = 10_000
FEWER_VALUES = 10_000
"""Takes the place of `torch_file.MOST_VALUES`, which take seconds to read."""
HOSTILE = {
    "a buffer of 2^33 bytes": archive(OURS + as_("training", called("builtins.bytearray", number(2**33)))),
    "a buffer of 2^40 bytes": archive(OURS + as_("training", called("builtins.bytearray", number(2**40)))),
    "a buffer by its own code": archive(OURS + as_("training", b"\x96" + struct.pack("<Q", 2**33))),
    "bytes": archive(OURS + as_("training", called("builtins.bytes", number(2**33)))),
    "text of another code": archive(OURS + as_("training", called("_codecs.encode", b"X\1\0\0\0aX\3\0\0\0hex"))),
    "dictionaries deep within each other": archive(OURS + as_("training", b"}X\1\0\0\0a" * DEEP + b"N" + b"s" * DEEP)),
    "lists deep within each other": archive(OURS + as_("training", b"]" * DEEP + b"a" * (DEEP - 1))),
    "tuples deep within each other": archive(OURS + as_("training", b")" + b"\x85" * DEEP)),
    "a format of lists deep within each other": archive(BEGIN + b"]" * DEEP + b"a" * (DEEP - 1) + b"s."),
    "a key of tuples deep within each other": archive(OURS + as_("training", b"})" + b"\x85" * DEEP + b"Ns")),
    "a list that holds itself": archive(OURS + as_("training", b"]q\0h\0a")),
    "the same list again and again": archive(OURS + as_("training", shared(40))),
    "a format that is the same list again and again": archive(BEGIN + shared(40) + b"s."),
    "a format of many digits": archive(BEGIN + b"\x8a\xff" + b"\x7f" * 255 + b"s."),
    "a tuple of many values": archive(OURS + as_("training", b"(" + b"K\1" * (FEWER_VALUES + 1) + b"t")),
    "a description without end": archive(OURS + b"0" * LONGEST_DESCRIPTION),
    "a memory of many places": archive(OURS + as_("training", b"]r\xff\xff\xff\xff")),
    "a long number": archive(OURS + as_("training", b"\x8b" + struct.pack("<i", 2**31 - 1) + b"1")),
    "more values than there are": archive(weights(tensor(10**6, 10**6, 1))),
    "many more values than there are": archive(weights(tensor(2**40, 2**40, 1))),
    "more values than can be counted": archive(weights(tensor(2**62, 4, 1))),
    "fewer values than none": archive(weights(tensor(-1, 4, 1))),
    "one value many times": archive(weights(tensor(16, 2**40, 0))),
    "a tensor that ends behind its values": archive(weights(tensor(16, 4, 5, 1))),
    "a tensor that begins behind its values": archive(weights(tensor(16, 4, 1, 2**40))),
    "values of no name": archive(weights(tensor(16, 16, 1, key="../0"))),
    "the same values by many names": archive(
        weights(*(tensor(1 << 20, 1 << 20, 1, key=str(index)) for index in range(500))), bytes(4 << 20), names=500
    ),
    "many tensors of the same values": archive(
        weights(*(tensor(1 << 20, 1 << 20, 1) for _ in range(500))), bytes(4 << 20)
    ),
}


PLAIN = ("a format of many digits", "a memory of many places")
"""Of these, the content is numbers and texts, but no checkpoint."""


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(torch_file, "MOST_VALUES", FEWER_VALUES)
    path = tmp_path / "best.pt"
    path.write_bytes(HOSTILE[name])
    with little_memory():
        is_checkpoint(path)
    network = cast(SwinUnet, None)  # which is not reached
    readers = [load_checkpoint, lambda found: start_from(str(found), network, ("encoder",))]
    for read in readers if name in PLAIN else [load_torch_file, *readers]:
        with pytest.raises(InputError) as caught:
            read(path)
        assert len(str(caught.value).splitlines()) == 1
        assert len(caught.value.reason) < 400


def tensors_of(content: dict[str, Any]) -> list[torch.Tensor]:
    single = [content[name] for name in ("parameter", "turned", "part", "scalar", "none")]
    return [*content["state"].values(), *single, *content["kinds"]]


@pytest.mark.parametrize("name", ["model.onnx", "model.engine"])
def test_an_exported_model_is_no_checkpoint(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"\x08\x0a")
    words = "found an exported model, expected a file written by torch.save, .* such as best.pt of a training run"
    with pytest.raises(InputError, match=words):
        load_checkpoint(path)
    network = cast(SwinUnet, None)  # which is not reached
    with pytest.raises(ParotidSegError, match="without parotid-seg's contract" if path.suffix == ".onnx" else words):
        start_from(str(path), network, ("encoder",))


def test_what_torch_writes_is_read_as_torch_reads_it(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    content = {
        "state": net.state_dict(),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "turned": base.T,
        "part": base[1:, ::2],
        "scalar": torch.tensor(3, dtype=torch.int64),
        "none": torch.empty(0, 3),
        "kinds": [torch.ones(3, dtype=kind) for kind in (torch.bool, torch.uint8, torch.float16, torch.bfloat16)],
        "plain": {"a": [1, 2.5, None, True, "text", (3, 2**70, -1)], 5: "five"},
    }
    path = tmp_path / "file.pt"
    torch.save(content, path)
    found, expected = load_torch_file(path), torch.load(path, weights_only=True)
    assert found["plain"] == expected["plain"]
    for one, other in zip(tensors_of(found), tensors_of(expected), strict=True):
        assert (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride())
        assert torch.equal(one, other)
    assert found["turned"].untyped_storage().data_ptr() == found["part"].untyped_storage().data_ptr()


def test_without_values_only_shapes_are_read(tmp_path: Path) -> None:
    path = Path(tmp_path / "file.pt")
    torch.save({"format": FORMAT, "weights": {"a": torch.ones(3, 4)}}, path)
    assert is_checkpoint(path)
    assert load_torch_file(path, values=False)["weights"]["a"].is_meta


def test_what_looks_like_a_part_of_an_archive_of_several_files_is_one_line(tmp_path: Path) -> None:
    """Found by fuzzing: some versions of Python raise an error when they are asked whether it is an archive."""
    path = tmp_path / "best.pt"
    torch.save({"format": FORMAT}, path)
    content = path.read_bytes()
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, 0, 2)  # of the end record of an archive in two files
    path.write_bytes(content[:-22] + locator + content[-22:])
    with pytest.raises(InputError, match=r"expected a file written by torch\.save"):
        load_checkpoint(path)
    assert not is_checkpoint(path)
