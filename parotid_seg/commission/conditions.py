"""What masks depend on besides the scans: model, window, options, engine, libraries and machine, as names and texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from parotid_seg.commission.record import ConditionChange
from parotid_seg.contract import Contract
from parotid_seg.runtime.engines.gpu import driver_version, find_gpus
from parotid_seg.runtime.report.results import Results
from parotid_seg.runtime.segmentation.segmentation_options import RULES_VERSION, SegmentationOptions
from parotid_seg.system import cpu_name

LABELS = "labels"
"""Name of the condition that says what the numbers of a mask mean."""
PACKAGE = "package "
"""Beginning of the names of packages."""


def conditions_of(results: Results) -> dict[str, str]:
    """The conditions of a run of `infer` on this machine, in the order in which they usually matter.

    Args:
        results: of its output folder.
    """
    run = results.run
    options = {field.name: run.options[field.name] for field in dataclasses.fields(SegmentationOptions)}
    ran = dict.fromkeys(each.engine for each in results.cases if each.engine)
    engines = {
        "engine": dict.fromkeys(each.backend for each in ran),
        "device": dict.fromkeys(each.device for each in ran),
        "precision": dict.fromkeys(each.precision for each in ran),
    }
    gpus = find_gpus()
    return {
        "model file": run.model.sha256,
        **determining(run.model.contract),
        "rules of parotid-seg": str(RULES_VERSION),
        **{f"option {name}": str(value) for name, value in options.items()},
        **{name: "; ".join(values) for name, values in engines.items()},
        "GPUs": "; ".join(map(str, gpus)),
        "GPU driver": driver_version() if gpus else "",
        "CUDA of the driver": gpus[0].cuda if gpus else "",
        **{f"{PACKAGE}{name}": version for name, version in run.versions.items()},
        "Python": str(run.machine.get("python", "")),
        "system": str(run.machine.get("system", "")),
        "processor": cpu_name(),
        "cores": str(run.machine.get("cores", "")),
    }


def determining(contract: Contract) -> dict[str, str]:
    """The contract's parts that determine a mask."""
    windows = zip(contract.channels, contract.windows, strict=True)
    shown = [f"{name} {'of the scan' if each is None else f'{each[0]:g} to {each[1]:g}'}" for name, each in windows]
    grid = contract.grid
    return {
        "window": ", ".join(shown),
        LABELS: ", ".join(contract.labels[1:]),
        "grid": f"{grid.size} x {grid.size} pixels of {grid.spacing_mm:g} mm, slices every {grid.slice_step_mm:g} mm",
        "weights": contract.weights,
    }


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[ConditionChange]:
    """The conditions that are different, in the order of the later ones."""
    names = [*now, *(name for name in before if name not in now)]
    return [
        ConditionChange(name=name, before=before.get(name, ""), now=now.get(name, ""))
        for name in names
        if before.get(name, "") != now.get(name, "")
    ]


def in_words(change: ConditionChange) -> str:
    """A change in words; hashes are shortened."""
    before, now = (_short(text) or "none" for text in (change.before, change.now))
    return f"{change.name.removeprefix(PACKAGE)} {before} -> {now}"


def _short(text: str) -> str:
    return text[:12] if len(text) == 64 and set(text) <= set("0123456789abcdef") else text
