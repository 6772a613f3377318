"""`parotid-seg inspect`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from parotid_seg.commands.shared import one_line_errors

LONGEST_LABEL = 40
"""Values are aligned behind labels of up to so many characters; paths of scans may be longer."""


def inspect(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="A model (.onnx), an engine (.engine), a scan, or a folder of scans and DICOM files."
        ),
    ],
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            metavar="FILE",
            help="Model file (.onnx) or engine that scans are for. Default: packaged, the CT model of this package.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON; for a model or an engine with its whole contract.")
    ] = False,
) -> None:
    """Describe a model, an engine or a scan, and what 'parotid-seg infer' would do with it."""
    with one_line_errors():
        from parotid_seg.files import visible
        from parotid_seg.runtime.inspection import contract_of
        from parotid_seg.runtime.inspection import inspect as run

        facts = run(file, model)
        if as_json:
            contract = contract_of(file)
            typer.echo(json.dumps(facts if contract is None else {**facts, "contract": contract}, indent=1))
            return
        width = max(len(label) for label in facts if len(label) <= LONGEST_LABEL) + 1
        for label, value in facts.items():
            typer.echo(visible(f"{label + ':':<{width}} {value}"))
