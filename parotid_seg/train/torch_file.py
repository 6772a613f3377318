"""Reads files of `torch.save` as data only: numbers, texts, lists, dictionaries and ordinary tensors.

`torch.load(weights_only=True)` runs no code of a file, but trusts its sizes: it reads beyond a tensor's values if the
file states that there are more, and allocates 2^33 bytes for 30 bytes of file. This module allocates nothing that the
file does not contain.
"""

from __future__ import annotations

import io
import math
import pickle
import sys
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from parotid_seg.errors import InputError

DTYPES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
}
"""Types by torch's names of storage classes."""
OPCODES = (
    *(pickle.PROTO, pickle.STOP, pickle.MARK, pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE),
    *(pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1, pickle.BINFLOAT, pickle.BINUNICODE),
    *(pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.EMPTY_LIST),
    *(pickle.APPEND, pickle.APPENDS, pickle.EMPTY_DICT, pickle.SETITEM, pickle.SETITEMS, pickle.BINPERSID),
    *(pickle.BINPUT, pickle.LONG_BINPUT, pickle.BINGET, pickle.LONG_BINGET, pickle.GLOBAL, pickle.REDUCE, pickle.BUILD),
)
"""Pickle opcodes that `torch.save` uses."""
BY_PICKLE: dict[int, Any] = dict(pickle._Unpickler.dispatch)
"""Handlers of these opcodes."""
LONGEST_DESCRIPTION = 2 << 20
"""Most bytes of the tensors' description; for a network of 1,000 tensors it has 0.1 MiB."""
MOST_RECORDS = 100_000
DEEPEST = 32
MOST_VALUES = 1_000_000
"""Most values, each counted as often as it is referenced."""
MOST_COPIES = 4
"""Most bytes of all tensors together, as a multiple of the file's size; tensors that share values all count."""
MOST_DIMENSIONS = 64
EXPORTED = (".onnx", ".engine")
"""Endings of model files, which hold no weights to train or export again."""
LONGEST_SHOWN = 60
"""Most characters of a name in a message."""


def load_torch_file(path: Path, *, values: bool = True) -> Any:
    """The content of a file of `torch.save`, with tensors on the CPU.

    Args:
        path: of the file, of torch 1.6 or later.
        values: read the tensors' values; otherwise they are on the device "meta" and have none.

    Raises:
        InputError: if it is not such a file, is damaged, or holds anything except numbers, texts, lists, dictionaries
            and tensors.
    """
    if not path.is_file() or not _is_zip(path):
        found = "found an exported model, " if path.suffix in EXPORTED else ""
        raise InputError(
            f"{found}expected a file written by torch.save, of torch 1.6 or later, such as best.pt of a training run",
            path=path,
        )
    try:
        with zipfile.ZipFile(path) as archive:
            content = _Reader(archive, path.stat().st_size, values).load()
            _check_extent(content)
            return content
    except InputError as error:
        raise InputError(error.reason, path=path) from error
    except Exception as error:  # any error of the unpickler on a damaged file
        raise InputError(f"not a readable file of torch.save ({type(error).__name__})", path=path) from error


def _is_zip(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # it looks like a part of an archive of several files (some versions of Python)
        return False


@dataclass(frozen=True)
class _Storage:
    """The values of tensors: a 1-D tensor."""

    values: torch.Tensor


class _Reader(pickle._Unpickler):  # in Python, because the C version allocates any size stated in a file
    """Reads the content of an archive.

    Args:
        archive: opened.
        size: of its file, in bytes.
        values: see `load_torch_file`.
    """

    stack: list[Any]
    dispatch: ClassVar[dict[int, Any]] = {code[0]: BY_PICKLE[code[0]] for code in OPCODES}

    def __init__(self, archive: zipfile.ZipFile, size: int, values: bool) -> None:
        self._archive, self._values, self._left = archive, values, MOST_COPIES * size
        self._records = {each.filename: each for each in archive.infolist()}
        self._storages: dict[tuple[str, torch.dtype], torch.Tensor] = {}
        if any(each.compress_type != zipfile.ZIP_STORED for each in self._records.values()):
            raise InputError("its content is compressed, which torch.save never does")
        if len(self._records) > MOST_RECORDS:
            raise InputError(f"found {len(self._records)} parts, expected at most {MOST_RECORDS}")
        if sum(each.file_size for each in self._records.values()) > size:
            raise InputError("its parts have more bytes together than the file, expected fewer")
        descriptions = [name for name in self._records if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(descriptions) != 1 or self._records[descriptions[0]].file_size > LONGEST_DESCRIPTION:
            raise InputError(
                f"found {len(descriptions)} descriptions of its tensors, "
                f"expected one, of at most {LONGEST_DESCRIPTION} bytes"
            )
        self._folder = descriptions[0].removesuffix("data.pkl")
        order = f"{self._folder}byteorder"
        if order in self._records and self._record(order, 16) != sys.byteorder.encode():
            raise InputError(f"its byte order is not this machine's, {sys.byteorder}")
        super().__init__(io.BytesIO(self._record(descriptions[0], LONGEST_DESCRIPTION)))

    def find_class(self, module: str, name: str) -> Any:
        """The object for a class name; called by `load`."""
        classes: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): _ordered,
            ("torch", "Size"): tuple,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        }
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if (module, name) in classes:
            return classes[module, name]
        shown = f"{module}.{name}"[:LONGEST_SHOWN]
        raise InputError(f"found {shown!r} in it, expected only numbers, texts, lists, dictionaries and tensors")

    def persistent_load(self, pid: Any) -> _Storage:
        """The values of tensors; called by `load`."""
        kind, dtype, key, _, count = pid
        name = f"{self._folder}data/{key}"
        if (
            kind != "storage"
            or not isinstance(dtype, torch.dtype)
            or not isinstance(key, str)
            or type(count) is not int
        ):
            raise InputError(
                "found a description of tensors' values that torch.save does not write, expected one that it writes"
            )
        record = self._records.get(name)
        if record is None or not 0 <= count * dtype.itemsize <= record.file_size:
            there = "none" if record is None else f"{record.file_size} bytes"
            shown = name[:LONGEST_SHOWN]
            raise InputError(f"{shown!r}: found {there}, expected {min(count, 1 << 62)} values of {dtype}")
        if not self._values or count == 0:
            return _Storage(torch.empty(count, dtype=dtype, device="cpu" if self._values else "meta"))
        if (key, dtype) not in self._storages:
            content = self._record(name, record.file_size)
            self._storages[key, dtype] = torch.frombuffer(
                bytearray(content), dtype=dtype, count=record.file_size // dtype.itemsize
            )
        return _Storage(self._storages[key, dtype][:count])

    def _record(self, name: str, most_bytes: int) -> bytes:
        with self._archive.open(name) as file:
            content = file.read(most_bytes)
        if len(content) != min(self._records[name].file_size, most_bytes):
            raise InputError(f"{name[:LONGEST_SHOWN]!r} is cut off")
        return content

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> torch.Tensor:
        """A tensor of some values."""
        if not isinstance(storage, _Storage) or not all(_are_sizes(each) for each in ((offset,), size, stride)):
            raise InputError(
                "found a description of a tensor that torch.save does not write, expected one that it writes"
            )
        count, there = math.prod(size), len(storage.values)
        last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        if count > there or (count and last >= there):
            raise InputError(f"found a tensor of more values than the {there} in the file")
        self._left -= count * storage.values.dtype.itemsize
        if self._left < 0:
            raise InputError(f"its tensors have more than {MOST_COPIES} times the bytes of the file, expected fewer")
        return torch.as_strided(storage.values, size, stride, offset)

    def _build(self) -> None:
        """Ignore attributes of a dictionary, such as versions of modules."""
        self.stack.pop()
        if type(self.stack[-1]) is not OrderedDict:
            raise InputError(f"found attributes of {type(self.stack[-1]).__name__}, expected none")

    def _set_item(self) -> None:
        _check_key(self.stack[-2])
        BY_PICKLE[pickle.SETITEM[0]](self)

    def _set_items(self) -> None:
        for key in self.stack[::2]:
            _check_key(key)
        BY_PICKLE[pickle.SETITEMS[0]](self)

    dispatch |= {pickle.BUILD[0]: _build, pickle.SETITEM[0]: _set_item, pickle.SETITEMS[0]: _set_items}


def _ordered() -> OrderedDict[Any, Any]:
    """An empty dictionary; its items are added one by one, with checks."""
    return OrderedDict()


def _check_key(key: object) -> None:
    if not isinstance(key, str | int):
        raise InputError(f"found a dictionary with a {type(key).__name__} for a key, expected texts and numbers")


def _are_sizes(value: Any) -> bool:
    if not isinstance(value, tuple) or len(value) > MOST_DIMENSIONS:
        return False
    return all(type(each) is int and 0 <= each < 1 << 62 for each in value)


def _check_extent(content: Any) -> None:
    """Raise InputError for content that is nested too deeply, or has too many values, counting each reference."""
    extents: dict[int, tuple[int, int]] = {}
    """Number of values in a list, tuple or dictionary and its depth, by identity; 0 if not counted yet."""
    waiting: list[tuple[Any, bool]] = [(content, False)] if isinstance(content, dict | list | tuple) else []
    while waiting:
        container, counted = waiting.pop()
        inside = list(container.values()) if isinstance(container, dict) else container
        if counted:
            sizes = [extents.get(id(each), (1, 0)) for each in inside]
            values, depth = 1 + sum(size for size, _ in sizes), 1 + max((deep for _, deep in sizes), default=0)
            extents[id(container)] = values, depth
            if depth > DEEPEST or values > MOST_VALUES:
                raise InputError(
                    f"found lists and dictionaries within each other, {depth} deep and with {values} values, "
                    f"expected at most {DEEPEST} and {MOST_VALUES}"
                )
        elif id(container) not in extents:
            extents[id(container)] = 0, 0
            waiting.append((container, True))
            waiting += ((each, False) for each in inside if isinstance(each, dict | list | tuple))
        elif extents[id(container)] == (0, 0):
            raise InputError("found a list or dictionary within itself, expected none")
