"""How long functions and files are, and how full folders."""

import ast
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = [path for place in ("parotid_seg", "benchmarks", "tests") for path in (ROOT / place).rglob("*.py")]
MOST_LINES_OF_A_FUNCTION, MOST_LINES, MOST_FILES = 60, 400, 20


def test_no_function_is_longer_than_a_screen() -> None:
    functions = (
        (path, node)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    lengths = {f"{path}:{node.name}": (node.end_lineno or 0) - node.lineno + 1 for path, node in functions}
    assert len(lengths) > 1000
    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES_OF_A_FUNCTION} == {}


def test_no_file_is_too_long_and_no_folder_too_full() -> None:
    lengths = {path: len(path.read_text("utf-8").splitlines()) for path in FILES}
    assert {path: lines for path, lines in lengths.items() if lines > MOST_LINES} == {}
    folders = Counter(path.parent for path in FILES)
    assert {folder: files for folder, files in folders.items() if files > MOST_FILES} == {}


def test_no_module_name_occurs_twice_in_the_package() -> None:
    paths = [path for path in (ROOT / "parotid_seg").rglob("*.py") if not path.stem.startswith("__")]
    names = [path.stem for path in paths]
    packages = [path.parent.name for path in (ROOT / "parotid_seg").rglob("*/__init__.py")]
    # A module of commands has its command's name, which may be a package's, too.
    others = [path.stem for path in paths if path.parent.name != "commands"]
    assert [name for name, times in Counter(names).items() if times > 1] == []
    assert [name for name, times in Counter([*others, *packages]).items() if times > 1] == []
