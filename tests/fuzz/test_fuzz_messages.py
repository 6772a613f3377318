"""What a worker that was taken over may write into its pipe: a valid answer, or an error of the protocol."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from parotid_seg.errors import ScanError
from parotid_seg.runtime.pipeline.journal import Entry
from parotid_seg.runtime.pipeline.protocol.answers import Question, next_answer
from parotid_seg.runtime.pipeline.protocol.framing import HEADER, MAGIC, ProtocolError, read_head
from parotid_seg.runtime.pipeline.protocol.messages import CaseResult, OutputFailure, PutOff, failed
from parotid_seg.runtime.segmentation.segment import prepare
from parotid_seg.scan.chunks import CroppedScan
from tests.fuzz.memory import little_memory
from tests.fuzz.mutate import EXTREMES, FLOATS, PIECES, feed
from tests.runtime.pipeline.test_answers import ASKED, CONTRACT, DONE, JOB, SCAN, sent

COVERED = sent(prepare(SCAN, CONTRACT).crop_to_grid())
SMALL = (
    sent(CaseResult("done", DONE)),
    sent(CaseResult("failed", failed(JOB.case, "damaged", "a" * 64))),
    sent(CaseResult("skipped", DONE)),
    sent(PutOff("too many open files")),
    sent(OutputFailure("no space left")),
)
KNOWN: tuple[Question, ...] = (ASKED, replace(ASKED, job=replace(JOB, known=DONE)), replace(ASKED, labelled=True))
VALUES: tuple[Any, ...] = (
    *EXTREMES[:-1],
    *FLOATS,
    *PIECES,
    None,
    True,
    [],
    {},
    [[]] * 9,
    "cropped",
    "done",
    b"s0",
    "a" * 64,
    [1, 2, 2, 2],
)


def read(content: bytes) -> None:
    """Take an answer as the main process does."""
    for asked in KNOWN:
        try:
            answer = next_answer(io.BytesIO(content), asked)
        except (ProtocolError, EOFError) as error:
            reason = str(error) or "the stream ends"
            continue
        if isinstance(answer, CaseResult):
            assert answer.entry.case == "s0"
            assert answer.entry.mask in ("", "s0.nii.gz")
            assert isinstance(answer.entry, Entry)
        if isinstance(answer, CroppedScan):
            assert answer.voxels.size <= ASKED.voxels
        return
    raise ScanError(reason)


@pytest.mark.parametrize(("seeds", "usual"), [(SMALL, 5000), ((COVERED,), 300)])
def test_changed_frames(inputs: Callable[[int], int], seeds: tuple[bytes, ...], usual: int) -> None:
    with little_memory():
        feed(read, seeds, inputs(usual))


def test_changed_values(inputs: Callable[[int], int]) -> None:
    """Heads of answers whose values are others, of any type."""
    heads = [msgspec.msgpack.decode(read_head(io.BytesIO(frame), 1 << 22)[0]) for frame in (*SMALL, COVERED)]

    def changed(number: bytes) -> None:
        chance = random.Random(number)
        head = dict(chance.choice(heads))
        for _ in range(chance.randint(1, 3)):
            head[chance.choice((*head, "more"))] = chance.choice(VALUES)
        content = msgspec.msgpack.encode(head)
        read(HEADER.pack(MAGIC, len(content), chance.choice((0, 0, 1, 1 << 62))) + content)

    with little_memory():
        feed(changed, [bytes(range(256))], inputs(5000))
