"""The files that `evaluate` writes: JSON records with a schema, and tables in CSV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal

import msgspec

from parotid_seg.errors import RecordError
from parotid_seg.files import open_input, write_text
from parotid_seg.metrics import LabelScores
from parotid_seg.records import Record, convert, finite_or_none, read_record, record_text
from parotid_seg.runtime.compare import ComparisonRecord
from parotid_seg.runtime.evaluation import Evaluation, Mean
from parotid_seg.tables import write_csv

SCHEMA_VERSION = 1
JSON, CSV = ".json", ".csv"
"""Endings of files that get a record, and a table."""
HEAD_BYTES = 64


class LabelRecord(Record, frozen=True, kw_only=True):
    """A compared label.

    Attributes:
        prediction, reference: its numbers.
        name_in_references: its name there.
    """

    prediction: int
    reference: int
    name_in_references: str


def _nullable(kind: type) -> type[msgspec.Struct]:
    """A record with the fields of a dataclass of figures; each is null where it is not a finite number."""
    types = [(each.name, int if each.type == "int" else float | None) for each in fields(kind)]
    return msgspec.defstruct(
        f"{kind.__name__}Record", types, namespace={"__doc__": kind.__doc__}, frozen=True, forbid_unknown_fields=True
    )


StructureFigures: Any = _nullable(LabelScores)
MeanFigures: Any = _nullable(Mean)


class CaseFigures(Record, frozen=True, kw_only=True):
    """The figures of a case, see `CaseScores`."""

    mpa: float
    macc: float
    miou: float
    labels: dict[str, StructureFigures]
    ignored_ml: float


class EvaluationRecord(Record, frozen=True, kw_only=True):
    """The record of an evaluation.

    Attributes:
        schema_version: of this record's fields.
        labels: by name in the predictions.
        notes: remarks, one line each.
        cases: figures by case.
        means: by structure and figure, such as "parotid_left dsc", "glands dsc" (a case's mean over its glands), or
            "mpa".
    """

    schema_version: Literal[1]
    labels: dict[str, LabelRecord]
    notes: list[str]
    cases: dict[str, CaseFigures]
    means: dict[str, MeanFigures]


def record_of(result: Evaluation) -> EvaluationRecord:
    """The record of an evaluation; figures that are not finite become null."""
    found, expected = (side.labels.values for side in (result.labels.predictions, result.labels.references))
    content = {
        "schema_version": SCHEMA_VERSION,
        "labels": {
            name: {"prediction": found[name], "reference": expected[other], "name_in_references": other}
            for name, other in result.labels.pairs.items()
        },
        "notes": result.notes,
        "cases": {name: asdict(scores) for name, scores in result.cases.items()},
        "means": {name: asdict(mean) for name, mean in result.means.items()},
    }
    return convert(finite_or_none(content), EvaluationRecord)


def rows_of(result: Evaluation) -> Iterator[Sequence[object]]:
    """The figures of an evaluation as a table: its head, then a row per case and structure."""
    figures = [each.name for each in fields(LabelScores)]
    yield "case", "structure", *figures
    for case, scores in result.cases.items():
        for name, label in scores.labels.items():
            yield case, name, *(finite_or_none(getattr(label, figure)) for figure in figures)


def is_evaluation(path: Path) -> bool:
    """Whether a regular file is a record or table that `write` has made."""
    if path.suffix.lower() == CSV:
        with open_input(path) as file:
            return file.read(HEAD_BYTES).startswith((b'"case","structure",', b'"structure","figure",'))
    try:
        names = read_record(path, dict[str, Any]).keys()
    except RecordError:
        return False
    return any({*kind.__struct_fields__} <= names for kind in (EvaluationRecord, ComparisonRecord))


def write(record: Record, rows: Iterator[Sequence[object]], path: Path) -> None:
    """Write a record as JSON, or its rows if the file ends in .csv.

    Raises:
        OutputError: if that fails.
    """
    if path.suffix.lower() == CSV:
        write_csv(rows, path)
    else:
        write_text(record_text(record), path)
