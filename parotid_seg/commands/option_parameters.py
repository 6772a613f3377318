"""Groups of options as parameters of a command."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING
from types import GenericAlias
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from parotid_seg.commands.shared import UsageError
from parotid_seg.errors import InputError
from parotid_seg.options import Declared, OptionGroup, declared

Command = Callable[..., None]


def with_options(command: Command) -> Command:
    """A Typer command from a function that takes options in groups.

    A parameter whose type is an `OptionGroup` becomes one command-line option for each field of the group. Values that
    the group rejects are reported as a wrong command line.

    Args:
        command: a function; its type hints are evaluated.
    """
    hints = get_type_hints(command, include_extras=True)
    groups = {name: hint for name, hint in hints.items() if isinstance(hint, type) and issubclass(hint, OptionGroup)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name in groups:
            parameters += map(_parameter, declared(groups[name]))
        else:
            parameters.append(parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(command)
    def flat(**values_by_name: Any) -> None:
        for name, group in groups.items():
            values = {option: values_by_name.pop(option.name) for option in declared(group)}
            try:
                values_by_name[name] = group(
                    **{each.name: _value(each, value) for each, value in values.items() if value != []}
                )
            except InputError as error:
                raise UsageError(str(error)) from error
        command(**values_by_name)

    del flat.__wrapped__  # its parameters differ from `flat`'s
    flat.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    flat.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return flat


def _parameter(item: Declared) -> inspect.Parameter:
    """An option as Typer needs it. With several values it is a list, empty by default. The group checks bounds."""
    option, kind, default, metavar = item.option, item.type, item.default, item.option.metavar
    if get_origin(kind) is Literal:
        kind, metavar = str, "|".join(get_args(kind))
    elif option.parse is not None:
        kind, default = str, ",".join(default) if isinstance(default, tuple) else default
    elif number := item.number:
        metavar = metavar or {int: "INTEGER", float: "FLOAT"}[number]
        kind, default = str, default if default is None or default is MISSING else str(default)
    several = get_origin(kind) is tuple
    if several:
        kind, default = GenericAlias(list, get_args(kind)[:1]), []
    declaration = typer.Option(
        *option.spellings,
        help=option.help,
        metavar=metavar or None,
        show_default=not several,
        rich_help_panel=item.panel,
    )
    return inspect.Parameter(
        item.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if default is MISSING else default,
        annotation=Annotated[kind, declaration],
    )


def _value(item: Declared, value: Any) -> Any:
    """The value of a field, from what Typer has read."""
    if isinstance(value, list):
        return tuple(value)
    if value is None or (item.option.parse is None and not item.number):
        return value
    return item.option.parse(value) if item.option.parse else item.parse_number(value)
