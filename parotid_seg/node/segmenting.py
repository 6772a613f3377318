"""Segments a received series: `parotid-seg infer` on its folder, with a model that is loaded once."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path

from parotid_seg.errors import InputError, MachineError
from parotid_seg.flags import Flag
from parotid_seg.node.work import Segment, Segmented
from parotid_seg.runtime.engines.base import Backend
from parotid_seg.runtime.formats.mask_formats import FORMATS, RTSTRUCT
from parotid_seg.runtime.pipeline.infer_options import InferOptions
from parotid_seg.runtime.pipeline.run import Outcome, infer
from parotid_seg.runtime.report.flag_text import sentence
from parotid_seg.runtime.segmentation.segmentation_options import DEFAULTS, SegmentationOptions, determined_by


def segment_with(backend: Backend, segmentation: SegmentationOptions = DEFAULTS) -> Segment:
    """A `Segment` that makes an RTSTRUCT of each volume of a series.

    Args:
        backend: the loaded model.
        segmentation: options of the segmentation.
    """
    options = InferOptions(**asdict(segmentation), workers=1, pictures=False, report=False, formats=(RTSTRUCT,))

    def segment(series: Path, out: Path) -> Segmented:
        failures: list[str] = []
        flags: list[Flag] = []

        def note(outcome: Outcome) -> None:
            if outcome.machine:
                raise MachineError(outcome.entry.reason)
            if outcome.status == "failed":
                failures.append(outcome.entry.failure)
            flags.extend(outcome.entry.flags)

        try:
            infer([series], out, lambda: backend, options, progress=note)
        except InputError as error:
            return Segmented(reason="; ".join(failures) or str(error))
        files = tuple(sorted(out.glob(f"*{FORMATS[RTSTRUCT].ending}")))
        failed = "; ".join(failures)
        return Segmented(
            files,
            reason="" if files else failed,
            note="; ".join(map(sentence, flags)),
            failed=failed if files else "",
        )

    return segment


def settings_of(backend: Backend, segmentation: SegmentationOptions = DEFAULTS) -> str:
    """Hash of what a result depends on besides the slices: model, precision, options, and the version of the rules."""
    texts = determined_by(backend.model_sha256, backend.ran.precision, segmentation)
    return hashlib.sha256(" ".join(texts).encode()).hexdigest()
