"""A run's settings: a preset, overridden by a TOML file, overridden by arguments; and their conversion to TOML."""

from __future__ import annotations

import dataclasses
import json
import math
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from parotid_seg.contract import Grid
from parotid_seg.errors import InputError, OptionError, RecordError
from parotid_seg.models import PACKAGED
from parotid_seg.records import convert, read_toml, shown
from parotid_seg.train.config import (
    FIRST_VIEW,
    IMAGENET,
    SCRATCH,
    SECOND_VIEW,
    ContrastConfig,
    NetworkConfig,
    SegmentConfig,
    TrainConfig,
)

C = TypeVar("C")

PAPER = TrainConfig(
    preset="paper",
    init="imagenet",
    grid=Grid(size=224, spacing_mm=1.0, kernel_mm=2.0, offsets_mm=(0.0,)),
    network=NetworkConfig(embed_dim=96, depths=(2, 2, 2, 2), heads=(3, 6, 12, 24), window=7, drop_path=0.2),
    contrast=ContrastConfig(
        epochs=300,
        images_per_epoch=6500,
        batch_size=80,
        learning_rate=1e-3 * 80 / 256,
        weight_decay=1e-6,
        warmup_epochs=30.0,
        temperature=1.0,
        hidden=4096,
        features=256,
        first=dataclasses.replace(FIRST_VIEW, rotation_deg=10.0, crop=0.08**0.5),
        second=dataclasses.replace(SECOND_VIEW, rotation_deg=10.0, crop=0.08**0.5),
    ),
    segment=SegmentConfig(epochs=150, images_per_epoch=5400, learning_rate=2e-4, validate_every=10, calm_epochs=0),
)
"""Sizes and schedule of arXiv 2208.12413's follow-up (Swin MoCo, doi 10.1002/mp.17128), one slice with all channels.

Different from the paper are: the intensity augmentation of the views (greyscale and solarisation are meaningless for CT
and MR), the convolutional stem and head of the Swin-Unet, the moving average of the weights, and an epoch's length (the
published one depends on the data)."""
FEW = TrainConfig(
    preset="few",
    stages=("segment",),
    segment=SegmentConfig(epochs=6, learning_rate=4e-3, validate_every=2, calm_epochs=2),
)
"""The network of "compact", from scratch on 18,000 slices: the longer fine-tuning of the study (docs/study.md), with
the learning rate that it chose for 10 labelled patients."""
FEW_FROM_A_MODEL = dataclasses.replace(
    FEW,
    segment=SegmentConfig(
        epochs=3,
        images_per_patient=150,
        learning_rate=3e-4,
        warmup_epochs=0.3,
        average_decay=0.99,
        initial_share=0.25,
        validate_every=1,
        calm_epochs=1,
    ),
)
"""The preset "few" with initial weights: short, at a low learning rate, and with a quarter of the initial weights in
the saved ones (benchmarks/training/ten_patients.py)."""
PRESETS = {"compact": TrainConfig(), "few": FEW, "paper": PAPER}
FEW_PATIENTS = 20
"""Most training patients for which a run of the preset "compact" recommends "few"."""


def length_note(config: TrainConfig, patients: int) -> str:
    """A remark on a long training on few patients; empty if there is nothing to say.

    Args:
        config: of the run.
        patients: training patients of the stage "segment".
    """
    if config.preset != "compact" or "segment" not in config.stages or patients > FEW_PATIENTS:
        return ""
    slices = config.segment.epochs * config.segment.images_per_epoch
    fewer = FEW.segment.epochs * FEW.segment.images_per_epoch
    if slices <= fewer:
        return ""
    return (
        f"{patients} patients and {slices:,} slices: --preset few trains on {fewer:,}, without pre-training; with "
        "--init packaged, on fewer and from the packaged model"
    )


def check_init(source: str) -> None:
    """Check that there are such initial weights, before anything is read.

    Raises:
        OptionError: if not, with names that are alike.
    """
    names = (SCRATCH, PACKAGED, IMAGENET)
    path = Path(source)
    if source in names or path.is_file():
        return
    beside = [str(each) for each in path.parent.glob("*") if each.is_file()]
    alike = get_close_matches(source, [*names, *beside])
    meant = f"; did you mean {' or '.join(alike)}?" if alike else ""
    raise OptionError(f"--init: found {source!r}, expected {', '.join(names)} or a file{meant}")


def load_config(preset: str, file: Path | None = None, **overrides: Any) -> TrainConfig:
    """A preset, overridden by a TOML file's values and by keyword arguments for top-level values.

    A preset that the file names is taken in place of the default one. The preset "few" has another schedule for initial
    weights than from scratch.

    Raises:
        InputError: for an unknown key, a value of the wrong type, or a file that is missing or not TOML.
        OptionError: for an unknown preset, or one that is neither the default nor the file's.
    """
    if preset not in PRESETS:
        raise OptionError(f"--preset: found {preset!r}, expected one of: {', '.join(PRESETS)}")
    values = {} if file is None else read_toml(file, "--config")
    if "preset" in values:
        given, preset = preset, values["preset"]
        if preset not in list(PRESETS):
            raise InputError(f"--config: {file}: preset: found {shown(preset)}, expected one of: {', '.join(PRESETS)}")
        if given not in (preset, TrainConfig.preset):
            raise OptionError(f"--preset: found {given}, but --config {file} has the preset {preset}: give one of them")
    init = overrides.get("init", values.get("init", SCRATCH))
    start = FEW_FROM_A_MODEL if preset == "few" and init != SCRATCH else PRESETS[preset]
    config = merge(start, values, where=f"--config: {file}: ")
    try:
        return merge(config, overrides)
    except InputError as error:
        raise OptionError(f"--{error.reason}") from error


def merge(config: C, values: dict[str, Any], *, where: str = "", table: str = "") -> C:
    """A copy of a config dataclass with some values replaced, nested tables included.

    Args:
        config: the dataclass.
        values: by key.
        where: beginning of error messages.
        table: path of the config's table in the file, with a point behind it; empty for the whole file.

    Raises:
        InputError: for an unknown key, a value of another type than the field, or one that is out of its bounds.
    """
    current = {item.name: getattr(config, item.name) for item in dataclasses.fields(config)}  # type: ignore[arg-type]
    hints = get_type_hints(type(config))
    changes: dict[str, Any] = {}
    for key, value in values.items():
        if key not in current:
            raise InputError(f"{where}{table}{shown(key)[1:-1]}: unknown key, expected one of: {', '.join(current)}")
        default = current[key]
        if dataclasses.is_dataclass(default):
            if not isinstance(value, dict):
                raise InputError(f"{where}{table}{key}: found {shown(value)}, expected a table")
            changes[key] = merge(default, value, where=where, table=f"{table}{key}.")
        else:
            try:
                changes[key] = convert(value, hints[key])
            except RecordError as error:
                expected = _in_words(hints[key])
                raise InputError(f"{where}{table}{key}: found {shown(value)}, expected {expected}") from error
            if not _is_finite(changes[key]):
                raise InputError(f"{where}{table}{key}: found {shown(value)}, expected finite numbers")
    try:
        return dataclasses.replace(config, **changes)  # type: ignore[type-var]
    except InputError as error:
        raise InputError(f"{where}{table}{error.reason}") from error


def _in_words(hint: Any) -> str:
    """A type of a config's field in words."""
    if get_origin(hint) is not tuple:
        return {int: "a whole number", float: "a number", str: "a text in quotes"}[hint]
    kind, *others = get_args(hint)
    number = "" if others == [...] else f"{1 + len(others)} "
    return f"a list of {number}" + {int: "whole numbers", float: "numbers", str: "texts"}[kind]


def _is_finite(value: object) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def to_toml(config: Any, table: str = "") -> str:
    """A config dataclass as TOML text that `load_config` reads back."""
    lines, tables = [], []
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        name = f"{table}.{item.name}" if table else item.name
        if dataclasses.is_dataclass(value):
            tables.append(f"\n[{name}]\n{to_toml(value, name)}")
        elif isinstance(value, tuple):
            lines.append(f"{item.name} = [{', '.join(map(_toml_value, value))}]")
        else:
            lines.append(f"{item.name} = {_toml_value(value)}")
    return "\n".join(lines) + "\n" + "".join(tables)


def _toml_value(value: Any) -> str:
    return json.dumps(value) if isinstance(value, str) else repr(value)


def duration(seconds: float) -> str:
    """A duration as text, in a suitable unit."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}" if seconds < 10 * size else f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def check_same(saved: tuple[Any, ...], current: tuple[Any, ...], last: Path) -> None:
    """Check that a run is resumed with its own settings, labels, channels and number of training patients.

    Args:
        saved, current: these four, in this order.
        last: the checkpoint that has the saved ones.

    Raises:
        InputError: with those that differ.
    """
    if saved != current:
        raise InputError(
            f"--resume: {last} was made with other settings: {_differences(saved, current)}; give the same again "
            f"(settings are in {last.with_name('config.toml')}), or, for more epochs or other settings, start a new "
            f"run from it (--init {last} with another --out)"
        )


def _differences(saved: tuple[Any, ...], current: tuple[Any, ...]) -> str:
    """The settings that differ, with both values."""
    names = ("settings", "labels", "channels", "train patients")
    saved_values, current_values = (dict(zip(names, each, strict=True)) for each in (saved, current))
    for values in (saved_values, current_values):
        config = values.pop("settings")
        values |= {
            f"{group.name}.{name}" if dataclasses.is_dataclass(getattr(config, group.name)) else group.name: value
            for group in dataclasses.fields(config)
            for name, value in _values_of(getattr(config, group.name))
        }
    differing = [name for name in saved_values if saved_values[name] != current_values.get(name)]
    return ", ".join(f"{name} (it has {saved_values[name]}, now {current_values.get(name)})" for name in differing)


def _values_of(value: Any) -> list[tuple[str, Any]]:
    return [*dataclasses.asdict(value).items()] if dataclasses.is_dataclass(value) else [("", value)]  # type: ignore[arg-type]
