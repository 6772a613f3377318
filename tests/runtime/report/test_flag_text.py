"""Flags in words: every code has its sentence, every producer gives what the sentence names, and no other code says or
reads it."""

import ast
import re
import string
from collections.abc import Iterator
from pathlib import Path

import pytest

import parotid_seg
from parotid_seg.flags import Flag, FlagCode
from parotid_seg.runtime.report.flag_text import TEXTS, sentence, sentences, severity_of

PACKAGE = Path(parotid_seg.__file__).parent
MODULES = {path: ast.parse(path.read_text("utf-8")) for path in PACKAGE.rglob("*.py")}
FIELDS = ("code", "structure", "value", "detail")
FRAGMENT = 12
"""Characters between two figures of a sentence that are long enough to know it by."""


def fields_of(code: FlagCode) -> set[str]:
    """What a code's sentence names."""
    return {name for _, name, _, _ in string.Formatter().parse(TEXTS[code].sentence) if name}


def flags_made() -> Iterator[tuple[FlagCode, set[str], str]]:
    """Each place in the package that makes a flag: its code, what it gives, and where it is."""
    for path, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Flag" and node.args:
                code = node.args[0]
                if not (isinstance(code, ast.Attribute) and getattr(code.value, "id", "") == "FlagCode"):
                    continue  # one of several, or read from a file or a message
                given = {*FIELDS[: len(node.args)], *(each.arg for each in node.keywords if each.arg)}
                yield FlagCode[code.attr], given, f"{path}:{node.lineno}"


def test_every_code_has_a_sentence_and_no_sentence_lacks_a_code() -> None:
    assert set(TEXTS) == set(FlagCode)
    assert len({text.sentence for text in TEXTS.values()}) == len(FlagCode)
    assert all(1 <= severity_of(code) <= 16 for code in FlagCode)


def test_every_code_is_raised_somewhere() -> None:
    own = (PACKAGE / "flags.py", PACKAGE / "runtime" / "report" / "flag_text.py")
    named = {
        node.attr
        for path, tree in MODULES.items()
        if path not in own
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "FlagCode"
    }
    assert set(FlagCode.__members__) <= named


def test_producers_give_what_the_sentences_name() -> None:
    for code, given, where in flags_made():
        later = (
            {"structure"} if "/dicom/read/rt_" in where or "/dataset/" in where else set()
        )  # `dataset` knows the label
        assert fields_of(code) <= given | later, where


@pytest.mark.parametrize("code", FlagCode)
def test_sentences_can_be_formatted(code: FlagCode) -> None:
    fields = fields_of(code)
    assert fields <= set(FIELDS)
    for value in (0.0, -3.25, 1e9, 0.0625):
        flag = Flag(code, "parotid_left", value, "some {detail} %s")
        told = sentence(flag)
        assert told.isprintable()
        assert ("left parotid" in told) == ("structure" in fields)
        assert ("some {detail} %s" in told) == ("detail" in fields)
    assert sentences([flag, flag]) == f"{told}; {told}"


def test_a_flag_as_text_is_data_and_no_sentence() -> None:
    flag = Flag(FlagCode.UNUSUAL_VOLUME, "parotid_left", 70.5)
    assert str(flag) == repr(flag)
    assert "Flag(" in str(flag)


def test_no_other_module_holds_the_sentences() -> None:
    """The report's and the terminal's sentences on flags are made of codes, all of them."""
    fragments = {
        text.strip(" ;,.()")
        for each in TEXTS.values()
        for text, _, _, _ in string.Formatter().parse(each.sentence)
        if len(text.strip(" ;,.()")) >= FRAGMENT
    }
    assert len(fragments) >= len(TEXTS) / 2
    for path, tree in MODULES.items():
        if path == PACKAGE / "runtime" / "report" / "flag_text.py":
            continue
        docstrings = {
            id(node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                held = [fragment for fragment in fragments if fragment in node.value]
                assert not held, f"{path}:{node.lineno}"


READS = {
    "startswith",
    "endswith",
    "removeprefix",
    "removesuffix",
    "partition",
    "rpartition",
    "find",
    "index",
    "replace",
}
MATCHES = {"search", "match", "fullmatch", "sub", "findall", "finditer"}
OTHERS_ERRORS = {
    "runtime/engines/onnxruntime/cuda.py",
    "runtime/engines/onnxruntime/io_binding.py",
    "train/exit_status.py",
}
"""Modules that read the errors of libraries which give them no kind; our own have path and reason."""


def is_text_of_error(node: ast.AST) -> bool:
    """`str(error)`, `error.reason` or `each.reason`."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "str":
        return bool(node.args) and isinstance(node.args[0], ast.Name) and node.args[0].id in {"error", "exception"}
    return isinstance(node, ast.Attribute) and node.attr in {"reason", "failure"}


def test_no_decision_reads_an_error_s_text() -> None:
    found = []
    for path, tree in MODULES.items():
        if str(path.relative_to(PACKAGE)) in OTHERS_ERRORS:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Compare):
                read = [node.left, *node.comparators]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in READS:
                read = [node.func.value]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MATCHES:
                read = list(node.args)
            else:
                continue
            found += [f"{path}:{node.lineno}" for each in read if is_text_of_error(each)]
    assert not found


def test_the_documentation_has_every_severity() -> None:
    page = (Path(__file__).parents[3] / "docs" / "results.md").read_text()
    rows = re.findall(r"^\| (\d+) \| [^|]+ \| (.+) \|$", page, re.MULTILINE)
    stated = {code: int(severity) for severity, codes in rows for code in re.findall(r"`(\w+)`", codes)}
    assert stated == {code.value: severity_of(code) for code in FlagCode}
