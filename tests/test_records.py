"""The one reader of JSON: what is not exactly the record that was expected is one line, and costs nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from parotid_seg.errors import InputError, RecordError
from parotid_seg.flags import FlagCode
from parotid_seg.records import (
    DEEPEST,
    LONGEST_LINE,
    parse,
    read_lines,
    read_record,
    record_line,
    record_text,
    write_record,
)


@dataclass(frozen=True)
class Inner:
    name: str
    sizes: tuple[float, ...] = ()


@dataclass(frozen=True)
class Example:
    count: int
    inner: Inner | None = None
    parts: dict[str, Inner] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    schema_version: int = 2

    def __post_init__(self) -> None:
        if self.count < 0:
            raise InputError(f"count: found {self.count}, expected none or more")


def written(folder: Path, content: str | bytes) -> Path:
    path = folder / "record.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    record = Example(3, Inner("a", (0.5, 2.0)), {"left": Inner("b")}, ("x\udcff",))
    write_record(record, tmp_path / "record.json")
    assert read_record(tmp_path / "record.json", Example, version=2) == record
    assert (tmp_path / "record.json").read_text().startswith('{\n "count": 3,\n "inner"')
    assert (tmp_path / "record.json").read_bytes().endswith(b"}\n")


def test_numbers_of_numpy_counters_and_paths_are_written(tmp_path: Path) -> None:
    record = {"a": np.float64(0.5), "b": Counter({"x": 2}), "c": tmp_path, "d": (FlagCode.NOTHING_FOUND,)}
    expected = {"a": 0.5, "b": {"x": 2}, "c": str(tmp_path), "d": ["nothing_found"]}
    assert parse(record_line(record)) == parse(record_text(record)) == expected


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "not JSON: "),
        ("{", "not JSON: "),
        (b'{"count": "\xff"}', "not UTF-8"),
        ("5", "Expected `object`, got `int`"),
        ("{}", "missing required field `count`"),
        ('{"count": "3"}', "Expected `int`, got `str` - at `$.count`"),
        ('{"count": true}', "Expected `int`, got `bool` - at `$.count`"),
        ('{"count": 3.0}', "Expected `int`, got `float` - at `$.count`"),
        ('{"count": null}', "Expected `int`, got `null` - at `$.count`"),
        ('{"count": 1e999}', "found the number 1e999, expected a finite one"),
        ('{"count": NaN}', "found NaN, expected a finite number"),
        ('{"count": -Infinity}', "found -Infinity, expected a finite number"),
        ('{"count": 9223372036854775808}', "expected one of 64 bits"),
        ('{"count": ' + "9" * 100_000 + "}", "expected one of 64 bits"),
        ('{"count": 1, "count": 2}', "found 'count' twice in one object"),
        ('{"count": -1}', "count: found -1, expected none or more"),
        ('{"count": 1, "size": 2}', "found the unknown field `$.size`"),
        ('{"count": 1, "parts": {"a": {"name": "b", "more": 1}}}', "found the unknown field `$.parts[...].more`"),
        (
            '{"count": 1, "inner": {"name": "b", "sizes": [1, "2"]}}',
            "Expected `float`, got `str` - at `$.inner.sizes[1]`",
        ),
        ('{"count": 1, "names": "abc"}', "Expected `array`, got `str` - at `$.names`"),
        ("[" * 100_000, f"found more than {DEEPEST} lists and objects within each other"),
        ('{"count":' * 100_000, f"found more than {DEEPEST} lists and objects within each other"),
        ('{"\\ud800": 1}', "found the name of a field that is no Unicode text"),
        ('{"count": 1, "a\\nb": 2}', r"`$.a\u000ab`"),
    ],
)
def test_what_is_no_such_record_is_one_line(tmp_path: Path, content: bytes | str, reason: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(RecordError) as caught:
        read_record(path, Example)
    assert reason in caught.value.reason
    assert caught.value.path == path
    assert "\n" not in str(caught.value)
    assert len(caught.value.reason) < 400


def test_brackets_within_texts_do_not_nest() -> None:
    assert parse(json.dumps(['[{"\\' * 100])) == ['[{"\\' * 100]


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = written(tmp_path, " " * 100 + "{}")
    with pytest.raises(RecordError, match="found more than 100 bytes"):
        read_record(path, Example, most_bytes=100)


def test_another_version_is_told_before_its_fields(tmp_path: Path) -> None:
    path = written(tmp_path, '{"count": 1, "new": 2, "schema_version": 3}')
    with pytest.raises(RecordError, match="found schema_version 3, expected 2; update"):
        read_record(path, Example, version=2, advice="update")
    with pytest.raises(RecordError, match="found no schema_version, expected"):
        read_record(written(tmp_path, '{"count": 1}'), Example, version=2)
    with pytest.raises(RecordError, match="found schema_version true, expected 1"):
        read_record(written(tmp_path, '{"count": 1, "schema_version": true}'), Example, version=1)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(RecordError, match="expected a regular file"):
        read_record(tmp_path / "pipe.json", Example)
    with pytest.raises(RecordError, match="cannot be read"):
        read_record(tmp_path / "none.json", Example)
    with pytest.raises(RecordError, match="expected a regular file"):
        read_record(tmp_path, Example)


def test_a_bad_line_costs_that_line_only(tmp_path: Path) -> None:
    good = record_line(Example(1)), record_line(Example(2))
    bad = [b'{"count": "1"}', b"[" * 100_000, b"\xff\xfe", b'{"count": 1', b"x" * (LONGEST_LINE + 5)]
    path = written(tmp_path, good[0] + b"\n".join(bad) + b"\n\n" + good[1].rstrip(b"\n"))
    found = list(read_lines(path, Example))
    assert [each for each in found if isinstance(each, Example)] == [Example(1), Example(2)]
    reasons = [each.reason for each in found if isinstance(each, RecordError)]
    assert [reason.partition(":")[0] for reason in reasons] == [f"line {number}" for number in range(2, 7)]
    assert str(LONGEST_LINE) in reasons[-1]


THREADS = """
import sys, threading
from dataclasses import field, make_dataclass
from parotid_seg.records import convert
sys.setswitchinterval(1e-6)
for _ in range(200):
    inner = make_dataclass("Inner", [(f"x{number}", int | None, None) for number in range(20)])
    outer = make_dataclass("Outer", [("one", inner), ("more", dict[str, inner], field(default_factory=dict))])
    start = threading.Barrier(6)
    work = lambda: (start.wait(), convert({"one": {"x3": 1}, "more": {"a": {}}}, outer))
    threads = [threading.Thread(target=work) for _ in range(6)]
    for step in ("start", "join"):
        for thread in threads:
            getattr(thread, step)()
"""


def test_threads_may_convert_to_a_class_that_none_has_converted_to() -> None:
    """msgspec by itself ends such a process with a segmentation fault, nearly always."""
    done = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
