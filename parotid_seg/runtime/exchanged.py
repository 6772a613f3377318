"""Recognises masks whose left and right are exchanged against other masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from parotid_seg.metrics import dice
from parotid_seg.scan.labels import mirrored_labels
from parotid_seg.scan.volume import Mask

EXCHANGED_GAIN = 0.3
"""Least gain of a case's DSC by exchanging the sides."""


def dsc_of_sides(mask: Mask, other: Mask, names: Sequence[str]) -> tuple[float, float] | None:
    """Mean DSC over the structures with a side, as it is and with the sides exchanged; None without such structures.

    Args:
        mask, other: label maps of one shape.
        names: of the labels of both by value, background first.
    """
    partners = mirrored_labels(names)
    sided = [value for value, partner in enumerate(partners) if value != partner]
    if not sided:
        return None
    return (
        float(np.mean([dice(mask == value, other == value) for value in sided])),
        float(np.mean([dice(mask == partners[value], other == value) for value in sided])),
    )


def exchanged_in(dsc: Mapping[str, tuple[float, float]], what: str, others: str) -> tuple[str, list[str]]:
    """What there is to say of masks whose sides seem exchanged, and their cases; empty if there are none.

    Args:
        dsc: from `dsc_of_sides` by case.
        what, others: what was compared with what, in the plural: "masks", "references".
    """
    cases = [name for name, (now, then) in dsc.items() if then - now >= EXCHANGED_GAIN]
    if not cases:
        return "", []
    now, then = np.mean([dsc[name] for name in cases], axis=0)
    text = f"left and right seem exchanged between {what} and {others}, DSC {now:.2f}, {then:.2f} when exchanged"
    return text, cases
