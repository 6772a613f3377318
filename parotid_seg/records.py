"""Strict reading and writing of JSON records, for every JSON file and line of the package.

Records are untrusted: they may come from a shared folder, an old version, or a machine that lost power. Size and depth
are limited before parsing, names must be unique, numbers must be finite and fit 64 bits, and types must be exactly
those of a dataclass (neither `true` nor "1" is a number). Anything else is a `RecordError` of one line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import math
import os
import re
import sys
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgspec

from parotid_seg.errors import InputError, OptionError, ParotidSegError, RecordError, system_reason
from parotid_seg.files import open_input, visible, write_text

MOST_BYTES = 16 * 2**20
"""Most bytes of a file, unless the caller sets another limit."""
LONGEST_LINE = 2**20
"""Most bytes of a line of a file of lines."""
DEEPEST = 32
"""Deepest nesting of lists and objects."""
LONGEST_REASON = 300
"""Most characters of a reason, which may quote the file."""
LONGEST_SHOWN = 60
"""Most characters of a quoted value."""
WIDEST_INTEGER = 64
"""Most bits of an integer, the sign included."""

_CONVERTING = threading.RLock()
"""Held during a conversion: msgspec 0.22 crashes if two threads convert to a dataclass that it does not know yet."""

T = TypeVar("T")


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A record, or a part of one, of a file with a JSON schema in the docs."""


def read_record(
    path: Path,
    kind: type[T],
    *,
    most_bytes: int = MOST_BYTES,
    follow: bool = True,
    unknown_fields: bool = False,
    version: int | None = None,
    advice: str = "",
    expected: str = "",
) -> T:
    """Read the record in a JSON file.

    Args:
        path: a regular file in UTF-8, with or without a byte order mark.
        kind: a dataclass, a msgspec.Struct, or a type such as `dict[str, list[str]]`.
        most_bytes: size of the largest file that is read.
        follow: whether the file may be a symbolic link; False for files in an output folder.
        unknown_fields: whether the file may have fields that `kind` does not have; they are ignored then.
        version: the accepted `schema_version`; None if the record has none.
        advice: advice for another version, the end of the error's sentence.
        expected: what the file should be, the end of the sentence of any error.

    Raises:
        RecordError: if it cannot be read, or is not such a record; its path is the file.
    """
    try:
        content = parse(read_bytes(path, most_bytes, follow=follow))
        return convert(content, kind, unknown_fields=unknown_fields, version=version, advice=advice)
    except RecordError as error:
        raise RecordError(f"{error.reason}; expected {expected}" if expected else error.reason, path=path) from error


def read_lines(path: Path, kind: type[T], *, follow: bool = True) -> Iterator[T | RecordError]:
    """Read a file with one record per line; an invalid line gives a `RecordError` in its place.

    A torn, foreign or hostile line costs that line only. Empty lines are skipped.

    Args:
        path: a regular file in UTF-8; the end of its last line may be missing.
        kind, follow: as in `read_record`; lines may have no other fields.

    Raises:
        RecordError: if the file cannot be read.
    """
    for number, line in enumerate(_lines(path, follow), start=1):
        try:
            if line is None:
                raise RecordError(f"found more than {LONGEST_LINE} bytes, expected a record")
            if line.strip():
                yield convert(parse(line), kind)
        except RecordError as error:
            yield RecordError(f"line {number}: {error.reason}", path=path)


def read_bytes(path: Path, most_bytes: int, *, follow: bool = True) -> bytes:
    """The content of a regular file of at most so many bytes; see `read_record`.

    Raises:
        RecordError: if it cannot be read, is not a regular file, or is larger.
    """
    with _opened(path, follow) as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise RecordError(f"found more than {most_bytes} bytes, expected at most so many", path=path)
    return content


def parse(content: bytes | str) -> Any:
    """JSON text as dictionaries, lists, texts, finite numbers, booleans and None.

    Raises:
        RecordError: if it is not JSON, nests deeper than `DEEPEST`, has a name twice in an object, or has a number that
            is not finite or an integer wider than `WIDEST_INTEGER` bits.
    """
    try:
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
        _check_depth(text)
        return json.loads(
            text, object_pairs_hook=_unique, parse_float=_finite, parse_int=_integer, parse_constant=_no_constant
        )
    except UnicodeDecodeError as error:
        raise RecordError(f"not JSON: found bytes at {error.start} that are not UTF-8") from error
    except ValueError as error:
        raise RecordError(_short(f"not JSON: {error}")) from error


def read_toml(path: Path, option: str) -> dict[str, Any]:
    """The content of a TOML file that an option names, in UTF-8, with or without a byte order mark.

    Raises:
        OptionError: if it cannot be read, is not a regular file, or is too large.
        InputError: if it is not TOML.
    """
    try:
        content = read_bytes(path, MOST_BYTES)
    except RecordError as error:
        raise OptionError(f"{option}: {path}: {error.reason}") from error
    try:
        return tomllib.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        reason = f"found bytes at {error.start} that are not UTF-8"
    except RecursionError:
        reason = "found too many lists and tables within each other"
    except ValueError as error:  # the line of another one is Python's advice for programmers
        digits = sys.get_int_max_str_digits()
        reason = str(error) if isinstance(error, tomllib.TOMLDecodeError) else f"found a number of over {digits} digits"
    raise InputError(f"{option}: {path}: not TOML: {reason}")


def shown(value: object) -> str:
    """A value of a JSON or TOML file in a message: in the form of JSON, in one line of limited length."""
    try:
        text = json.dumps(value, default=str, ensure_ascii=False)
    except ValueError:
        text = "a number of too many digits"
    return visible(text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}...")


def convert(
    content: Any,
    kind: type[T],
    *,
    unknown_fields: bool = False,
    version: int | None = None,
    advice: str = "",
) -> T:
    """Convert a parsed record to a dataclass; types are checked and never coerced.

    Args:
        content: the result of `parse`, or any tree of dictionaries, lists and plain values.
        kind, unknown_fields, version, advice: as in `read_record`.

    Raises:
        RecordError: if it is not such a record; it names the field as a path from the record ($), what was found and
            what was expected.
    """
    try:
        if version is not None:
            _check_version(content, version, advice)
        with _CONVERTING:
            record = msgspec.convert(content, kind)
        field = "" if unknown_fields else _unknown(content, record, "$")
    except RecordError:
        raise
    except msgspec.ValidationError as error:
        raise RecordError(_short(str(error))) from error
    except ParotidSegError as error:  # of the dataclass itself
        raise RecordError(_short(error.reason)) from error
    except UnicodeError as error:
        raise RecordError("found the name of a field that is no Unicode text, expected only known ones") from error
    except RecursionError as error:
        raise RecordError("found too many lists and objects within each other, expected fewer") from error
    if field:
        raise RecordError(_short(f"found the unknown field `{field}`, expected only known ones"))
    return record


def record_text(record: object) -> str:
    """A record as JSON text: one line per field, in the order of the fields, with a line end.

    Args:
        record: a dataclass, or a tree of dictionaries, lists and plain values; paths become text.

    Raises:
        ValueError: for a number that is not finite.
    """
    return json.dumps(_plain(record), indent=1, allow_nan=False) + "\n"


def record_line(record: object) -> bytes:
    """A record as one line of a file of lines, with its line end; see `record_text`."""
    return json.dumps(_plain(record), allow_nan=False).encode("ascii") + b"\n"


def canonical(record: object) -> bytes:
    """A record as JSON for hashing: names in alphabetical order, tuples equal to lists."""
    return json.dumps(_plain(record), sort_keys=True, allow_nan=False).encode("ascii")


def write_record(record: object, path: Path) -> None:
    """Write a record completely or not at all; see `record_text`.

    Raises:
        OutputError: if that fails.
    """
    write_text(record_text(record), path)


def schema_text(kind: type[Record]) -> str:
    """The JSON schema (draft 2020-12) of a record."""
    schema = msgspec.json.schema(kind)
    for each in schema["$defs"].values():
        each["description"] = inspect.cleandoc(each.get("description", ""))
    return record_text({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})


def finite_or_none(value: Any) -> Any:
    """A tree of values with None for numbers that are not finite."""
    if isinstance(value, dict):
        return {key: finite_or_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def is_plain_name(name: str) -> bool:
    """Whether a text is a plain file name: no path, no drive, no `..`."""
    return name not in ("", ".", "..") and "\0" not in name and Path(name).name == name


def _plain(record: object) -> Any:
    return msgspec.to_builtins(record, enc_hook=_as_plain)


def _as_plain(value: Any) -> Any:
    """The plain form of a value that is neither plain nor a dataclass; for example float for NumPy's float64."""
    kinds: tuple[type[Any], ...] = (dict, float, int, str)
    for kind in kinds:
        if isinstance(value, kind):
            return kind(value)
    return os.fspath(value)


def _check_version(content: Any, version: int, advice: str) -> None:
    expected = f"expected {version}" + (f"; {advice}" if advice else "")
    if not isinstance(content, dict) or "schema_version" not in content:
        raise RecordError(f"found no schema_version, {expected}")
    found = content["schema_version"]
    if type(found) is not int or found != version:
        raise RecordError(f"found schema_version {_short(json.dumps(found))[:20]}, {expected}")


@contextlib.contextmanager
def _opened(path: Path, follow: bool) -> Iterator[BinaryIO]:
    """Open a regular file."""
    try:
        with open_input(path, follow=follow) as file:
            yield file
    except OSError as error:
        raise RecordError(f"cannot be read ({system_reason(error)})", path=path) from error
    except ValueError as error:  # a null character in the name
        raise RecordError("cannot be read: no file can have this name", path=path) from error


def _lines(path: Path, follow: bool) -> Iterator[bytes | None]:
    """Lines without their ends; None for a line that is too long, which is never held in memory as a whole."""
    with _opened(path, follow) as file:
        while line := file.readline(LONGEST_LINE + 1):
            if len(line) > LONGEST_LINE and not line.endswith(b"\n"):
                while line and not line.endswith(b"\n"):
                    line = file.readline(LONGEST_LINE)
                yield None
            else:
                yield line.rstrip(b"\r\n")


def _check_depth(text: str) -> None:
    if text.count("[") + text.count("{") <= DEEPEST:
        return
    depth, without_texts = 0, re.sub(r'"[^"]*"?', "", text.replace("\\\\", "").replace('\\"', ""))
    for bracket in re.finditer(r"[\[{]|[\]}]", without_texts):
        depth += 1 if bracket[0] in "[{" else -1
        if depth > DEEPEST:
            raise RecordError(f"found more than {DEEPEST} lists and objects within each other, expected fewer")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = set()
        for name, _ in pairs:
            if name in names:
                raise RecordError(_short(f"found {name!r} twice in one object, expected different names"))
            names.add(name)
    return content


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise RecordError(_short(f"found the number {text}, expected a finite one"))
    return number


def _integer(text: str) -> int:
    if len(text) <= WIDEST_INTEGER // 3:
        number = int(text)
        if -(2 ** (WIDEST_INTEGER - 1)) <= number < 2 ** (WIDEST_INTEGER - 1):
            return number
    raise RecordError(f"found the integer {text[:30]}, expected one of {WIDEST_INTEGER} bits")


def _no_constant(text: str) -> float:
    raise RecordError(f"found {text}, expected a finite number")


def _unknown(content: Any, record: Any, place: str) -> str:
    """Path of the first field that is unknown to its type in the record; empty if there is none."""
    pairs: Iterator[tuple[str, Any, Any]]
    if isinstance(content, dict) and not isinstance(record, dict):
        fields_of_record = (
            record.__struct_fields__ if isinstance(record, msgspec.Struct) else dataclasses.fields(record)
        )
        names = {each if isinstance(each, str) else each.name for each in fields_of_record}
        for name in content:
            if name not in names:
                return f"{place}.{name}"
        pairs = ((f"{place}.{name}", each, getattr(record, name)) for name, each in content.items())
    elif isinstance(content, dict) and isinstance(record, dict):
        pairs = ((f"{place}[...]", each, record.get(name)) for name, each in content.items())
    elif isinstance(content, list) and isinstance(record, list | tuple):
        pairs = ((f"{place}[{at}]", *pair) for at, pair in enumerate(zip(content, record, strict=False)))
    else:
        return ""
    fields = (_unknown(each, part, at) for at, each, part in pairs if isinstance(each, dict | list))
    return next(filter(None, fields), "")


def _short(reason: str) -> str:
    """A reason as one line of limited length."""
    return visible(reason[:LONGEST_REASON])
