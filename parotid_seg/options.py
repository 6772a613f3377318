"""Options, declared once as fields of frozen dataclasses with their command-line names, help texts and bounds.

A command takes such a dataclass as a parameter (see `commands.option_parameters`), Python code creates one directly,
and the same object is passed on to the code that reads its fields.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, Literal, NamedTuple, get_args, get_origin, get_type_hints

from parotid_seg.errors import OptionError

LARGEST = 2**32 - 1
"""Largest number of an option that has a smallest one; waiting for more seconds fails."""


@dataclass(frozen=True)
class Option:
    """How a field is given on the command line.

    Attributes:
        names: all accepted spellings, such as "--workers", or "--report/--no-report" for a switch.
        help: one or two sentences.
        metavar: placeholder of the value in the help; empty for the type's own.
        least: the smallest allowed number; None for any.
        parse: makes the value from text; raises OptionError if it cannot. None if the type itself parses text. With
            it a tuple is one option with a list of words between commas, without it an option that can be repeated.
    """

    names: str | tuple[str, ...]
    help: str
    metavar: str = ""
    least: int | None = None
    parse: Callable[[str], Any] | None = None

    @property
    def spellings(self) -> tuple[str, ...]:
        """The names, as a tuple."""
        return (self.names,) if isinstance(self.names, str) else self.names


class Declared(NamedTuple):
    """A field that is an option.

    Attributes:
        name, type: of the field.
        default: its value if none is given; `dataclasses.MISSING` if one is required.
        option: how it is given on the command line.
        panel: heading in the help of the class that declares it.
    """

    name: str
    type: Any
    default: Any
    option: Option
    panel: str

    @property
    def number(self) -> type[int] | type[float] | None:
        """The type of an option that takes one number; None of any other."""
        return next((kind for kind in (int, float) if self.type in (kind, kind | None)), None)

    def parse_number(self, text: str) -> float:
        """The number of a text.

        Raises:
            OptionError: if it is none, or not a whole one where that is expected.
        """
        try:
            return int(text) if self.number is int else float(text)
        except ValueError:
            expected = "a whole number" if self.number is int else "a number"
            least = "" if self.option.least is None else f" of at least {self.option.least:g}"
            raise OptionError(f"{self.option.spellings[0]}: found {text!r}, expected {expected}{least}") from None


class OptionGroup:
    """Base of the dataclasses whose fields are options; `panel` is their heading in the help."""

    panel: ClassVar[str]

    def __init_subclass__(cls, *, panel: str) -> None:
        cls.panel = panel

    def __post_init__(self) -> None:
        """Check the values against the declarations.

        Raises:
            OptionError: for a number below the smallest or above `LARGEST`, an unexpected word, or a switch that is
                neither True nor False.
        """
        for name, kind, _, option, _ in declared(type(self)):
            value, spelling = getattr(self, name), option.spellings[0]
            if option.least is not None and value is not None and not option.least <= value <= LARGEST:
                expected = f"at most {LARGEST}" if value > LARGEST else f"at least {option.least:g}"
                raise OptionError(f"{spelling}: found {value}, expected {expected}")
            if kind is bool and value not in (True, False):  # a text from a settings file, "no" too, would count as on
                raise OptionError(f"{spelling}: found {value!r}, expected True or False")
            if get_origin(kind) is Literal and value not in get_args(kind):
                raise OptionError(f"{spelling}: found {value!r}, expected one of: {', '.join(get_args(kind))}")


def comma_separated(text: str) -> tuple[str, ...]:
    """The words between commas, for `Option.parse`."""
    return tuple(word.strip() for word in text.split(","))


def declared(group: type[OptionGroup]) -> Iterator[Declared]:
    """The options of a group, in their order."""
    hints = get_type_hints(group, include_extras=True)
    owners = [each for each in reversed(group.__mro__) if issubclass(each, OptionGroup) and each is not OptionGroup]
    panels = {name: owner.panel for owner in owners for name in owner.__annotations__}
    for field in fields(group):  # type: ignore[arg-type]  # every group is a dataclass
        kind, *notes = get_args(hints[field.name]) or (hints[field.name],)
        for option in (note for note in notes if isinstance(note, Option)):
            default = field.default_factory() if field.default_factory is not MISSING else field.default
            yield Declared(field.name, kind, default, option, panels[field.name])
