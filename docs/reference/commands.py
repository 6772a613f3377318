"""Hooks of MkDocs: the reference of the commands, made from the code, and links that lead out of docs/."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer

from parotid_seg.cli import app

PAGE = "reference/commands.md"
MARK = "<!-- commands -->"
BAR = r"\|"
OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./((?!\.\.)[^)]+)\)")
"""A link from a page in docs/ to a file of the repository that is no page."""


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Called by MkDocs with each page before it is rendered."""
    if page.file.src_uri == PAGE:
        return markdown.replace(MARK, "\n".join(_reference()))
    return OUTSIDE.sub(r"\1 (`\2`)", markdown) if "/" not in page.file.src_uri else markdown


def _reference() -> Iterator[str]:
    for name, command in _commands(typer.main.get_command(app), ""):
        with command.context_class(command, info_name=f"parotid-seg {name}") as context:
            yield f"\n## {name}\n"
            yield f"```\n{context.command_path} {' '.join(command.collect_usage_pieces(context))}\n```\n"
            yield from (" ".join(paragraph.split()) + "\n" for paragraph in (command.help or "").split("\n\n"))
            yield "| | |\n|---|---|"
            for parameter in command.params:
                names, explained = parameter.get_help_record(context) or ("", "")
                yield f"| `{names.replace('|', BAR)}` | {' '.join(explained.split()).replace('|', BAR)} |"
            if command.epilog:
                yield f"\n{command.epilog.replace('Example: ', 'Example: `')}`\n"


def _commands(group: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        yield f"{prefix}{name}", command
        if hasattr(command, "commands"):
            yield from _commands(command, f"{prefix}{name} ")
