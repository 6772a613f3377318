"""Groups of options: declared once, given on the command line or in Python, checked in one place."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import typer
from typer.testing import CliRunner

from parotid_seg.commands.option_parameters import with_options
from parotid_seg.commands.shared import UsageError
from parotid_seg.errors import InputError
from parotid_seg.options import Option, OptionGroup, comma_separated, declared
from parotid_seg.runtime.engines.model_options import ModelOptions
from parotid_seg.runtime.pipeline.infer_options import InferOptions
from parotid_seg.runtime.segmentation.segmentation_options import SegmentationOptions


def parsed(text: str) -> tuple[int, ...]:
    if "x" not in text:
        raise InputError(f"--size: found {text!r}, expected ROWSxCOLUMNS")
    return tuple(map(int, text.split("x")))


@dataclass(frozen=True)
class Base(OptionGroup, panel="Base"):
    """Options that others have, too."""

    count: Annotated[int | None, Option("--count", "How many.", metavar="N", least=1)] = None
    kind: Annotated[Literal["thick", "thin"], Option(("--kind", "--old-name"), "Which.")] = "thin"


@dataclass(frozen=True)
class Options(Base, panel="More"):
    """More options."""

    names: Annotated[tuple[str, ...], Option("--name", "Names.")] = ("one",)
    size: Annotated[tuple[int, ...] | None, Option("--size", "Size.", parse=parsed)] = None
    words: Annotated[tuple[str, ...], Option("--words", "Words.", parse=comma_separated)] = ("a", "b")
    fast: Annotated[bool, Option("--fast/--slow", "Speed.")] = True
    not_an_option: int = 3


def run(*arguments: str) -> tuple[list[Options], int, str]:
    seen: list[Options] = []
    app = typer.Typer()

    @app.command()
    @with_options
    def command(place: Path, options: Options) -> None:
        """Do it."""
        assert place == Path("here")
        seen.append(options)

    done = CliRunner().invoke(app, ["here", *arguments], standalone_mode=True)
    return seen, done.exit_code, done.output


def test_without_options_a_group_is_as_python_makes_it() -> None:
    assert run()[0] == [Options()]


def test_every_option_reaches_its_field() -> None:
    arguments = (
        "--count",
        "2",
        "--old-name",
        "thick",
        "--name",
        "a",
        "--name",
        "b",
        "--size",
        "3x4",
        "--words",
        "c, d",
        "--slow",
    )
    assert run(*arguments)[0] == [Options(2, "thick", ("a", "b"), (3, 4), ("c", "d"), False)]


@pytest.mark.parametrize(
    "arguments", [("--count", "0"), ("--count", "two"), ("--kind", "fat"), ("--size", "3"), ("--not-an-option", "1")]
)
def test_a_wrong_value_is_a_wrong_command_line(arguments: tuple[str, str]) -> None:
    seen, status, _ = run(*arguments)
    assert (seen, status) == ([], 2)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"count": 0}, "--count: found 0, expected at least 1"),
        ({"count": float("nan")}, "--count: found nan, expected at least 1"),
        ({"count": 2**32}, "--count: found 4294967296, expected at most 4294967295"),
        ({"kind": "fat"}, "--kind: found 'fat', expected one of: thick, thin"),
        ({"fast": "no"}, "--fast/--slow: found 'no', expected True or False"),
    ],
)
def test_python_is_held_to_the_same_bounds(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Options(**wrong)


def test_help_has_the_groups_headings() -> None:
    output = run("--help")[2]
    assert output.index("Base") < output.index("--count") < output.index("More") < output.index("--name")


def test_help_shows_a_default_list_as_it_is_given() -> None:
    assert "[default: a,b]" in run("--help")[2]


def test_what_a_group_refuses_is_a_usage_error() -> None:
    @with_options
    def command(options: ModelOptions) -> None:
        raise AssertionError(options)

    given = {option.name: option.default for option in declared(ModelOptions)}
    with pytest.raises(UsageError, match="--backend: found 'magic'"):
        command(**(given | {"backend": "magic"}))


def test_options_that_decide_a_mask_are_its_fingerprint() -> None:
    assert InferOptions().fingerprint == SegmentationOptions().fingerprint == ("True", "False", "auto")
    assert InferOptions(batch_size=3, workers=1, overwrite=True).fingerprint == InferOptions().fingerprint
    others = [InferOptions(tta=True), InferOptions(search="full"), InferOptions(clean_up=False)]
    assert len({each.fingerprint for each in (*others, InferOptions())}) == 4
