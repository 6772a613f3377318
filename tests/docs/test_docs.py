"""Commands in README, docs and benchmarks/README.md are understood as they stand there."""

import argparse
import re
import runpy
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from parotid_seg.cli import app
from parotid_seg.commands.shared import UsageError

pytestmark = pytest.mark.slow


ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += [ROOT / "benchmarks" / "README.md", ROOT / "benchmarks" / "peers" / "README.md"]
OURS = re.compile(r"(^ *|`)((?:parotid-seg|python -m parotid_seg|python benchmarks/[\w/]+\.py) [^`#\n]+)", re.MULTILINE)
"""At the start of a line: a whole command. In back quotes: it may leave arguments out."""
COMMANDS = ("infer", "inspect", "evaluate", "commission", "listen", "dataset", "train", "export", "bench", "version")


def commands_in(page: Path) -> dict[str, tuple[list[str], bool]]:
    """Each command on a page by its place and text: its words, and whether it is whole."""
    text = page.read_text().replace("\\\n", " ")
    found = [(shlex.split(line.split(";")[0]), before != "`") for before, line in OURS.findall(text)]
    return {
        f"{page.relative_to(ROOT)}: {shlex.join(words)}": (words, whole)
        for words, whole in found
        if "..." not in words and (words[0] == "python" or words[1] in COMMANDS)  # else it is a sentence
    }


FOUND = {name: command for page in PAGES for name, command in commands_in(page).items()}


OF_THE_PACKAGE = [name for name, (words, _) in FOUND.items() if "benchmarks/" not in words[1]]
OF_BENCHMARKS = [name for name, (words, whole) in FOUND.items() if "benchmarks/" in words[1] and whole]


def test_the_reference_has_every_command_and_option() -> None:
    hooks = runpy.run_path(str(ROOT / "docs" / "reference" / "commands.py"))
    page = hooks["on_page_markdown"](hooks["MARK"], SimpleNamespace(file=SimpleNamespace(src_uri=hooks["PAGE"])))
    assert [line[3:] for line in page.splitlines() if line.startswith("## ")] == [
        *("infer", "inspect", "evaluate", "commission", "listen", "dataset", "train", "export", "version"),
        *("bench", "bench compare"),
    ]
    assert "| `--search auto\\|full` |" in page
    assert "parotid-seg infer [OPTIONS] {SCAN}..." in page


PASSES_ON = ("benchmarks/peers/nnunet.py",)
"""Scripts that hand options they do not know to another one."""


class _ParsedError(Exception):
    """The script has read its command line; holds the words that it does not know."""


def test_pages_have_commands() -> None:
    assert len(FOUND) > 40


@pytest.mark.parametrize("command", OF_THE_PACKAGE)
def test_a_command_of_ours_is_understood(command: str) -> None:
    words, whole = FOUND[command]
    words = [word.removesuffix("...") for word in words]
    arguments = words[words.index("parotid_seg") + 1 :] if "parotid_seg" in words else words[1:]
    group = typer.main.get_command(app)
    try:
        for _ in range(2):  # bench compare is a command of a command
            context = group.make_context("parotid-seg", list(arguments), resilient_parsing=False)
            if arguments[0] == "--help" or not hasattr(group, "get_command"):
                return
            found = group.get_command(context, arguments[0])
            assert found is not None, f"no such command: {arguments[0]}"
            group, arguments = found, arguments[1:]
            if not (hasattr(group, "get_command") and arguments and arguments[0] in group.list_commands(context)):
                group.make_context("parotid-seg", list(arguments), resilient_parsing=False)
                return
    except UsageError as error:
        if whole or type(error).__name__ != "MissingParameter":
            pytest.fail(f"{command}: {error.format_message()}")


@pytest.mark.parametrize("command", OF_BENCHMARKS)
def test_a_benchmark_s_command_line_is_understood(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (_, script, *arguments), _ = FOUND[command]
    parse = argparse.ArgumentParser.parse_known_args

    def parse_and_stop(parser: argparse.ArgumentParser, given: Any = None, namespace: Any = None) -> None:
        _, unknown = parse(parser, given, namespace)
        raise _ParsedError(unknown)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse_and_stop)  # parse_args calls it, too
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    monkeypatch.syspath_prepend(str((ROOT / script).parent))
    with pytest.raises(_ParsedError) as parsed:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    assert script in PASSES_ON or not parsed.value.args[0]
