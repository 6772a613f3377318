"""The tolerance for differences between two masks of one scan: measures and limits, for export and choice of an engine.

An export in another precision or on another engine counts as the same model only if it gives the same masks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from parotid_seg.metrics import Labels, Spacing, dice, hausdorff_mm


@dataclass(frozen=True, kw_only=True)
class MaskDifference:
    """The difference between two masks of a scan; figures of the worst structure.

    Attributes:
        changed: number of voxels whose label differs.
        changed_share, dsc, hd95_mm, volume_ml: see `Tolerance`.
    """

    changed: int
    changed_share: float
    dsc: float
    hd95_mm: float
    volume_ml: float

    def __str__(self) -> str:
        return (
            f"{self.changed} changed voxels ({self.changed_share:.2%}), DSC {self.dsc:.5f}, "
            f"HD95 {self.hd95_mm:.1f} mm, {self.volume_ml:.2f} ml"
        )


@dataclass(frozen=True)
class Tolerance:
    """Limits for the difference between a model's masks and the trained model's, on every scan and for each structure.

    Attributes:
        least_dsc: between the two masks.
        most_changed_share: changed voxels over voxels with a structure in either mask.
        most_hd95_mm: between the two masks.
        most_volume_ml: difference of the volumes.
        most_dsc_lost: loss of DSC with a contour, if there is one.
    """

    least_dsc: float
    most_changed_share: float
    most_hd95_mm: float
    most_volume_ml: float
    most_dsc_lost: float

    def admits(self, difference: MaskDifference) -> bool:
        """Whether two masks are within all limits that need no contour; numbers that are not finite exceed them."""
        return not self.exceeded(difference)

    def exceeded(self, difference: MaskDifference) -> tuple[str, ...]:
        """The exceeded limits, of those that need no contour, each with the number found."""
        limits = (
            (difference.dsc >= self.least_dsc, f"DSC {difference.dsc:.4f}, expected at least {self.least_dsc:g}"),
            (
                difference.changed_share <= self.most_changed_share,
                f"changed voxels {difference.changed_share:.2%}, expected at most {self.most_changed_share:.1%}",
            ),
            (
                difference.hd95_mm <= self.most_hd95_mm,
                f"HD95 {difference.hd95_mm:.1f} mm, expected at most {self.most_hd95_mm:g}",
            ),
            (
                difference.volume_ml <= self.most_volume_ml,
                f"{difference.volume_ml:.2f} ml, expected at most {self.most_volume_ml:g}",
            ),
        )
        return tuple(words for within, words in limits if not within)


SAME = Tolerance(least_dsc=0.998, most_changed_share=0.002, most_hd95_mm=1.0, most_volume_ml=0.1, most_dsc_lost=0.002)
"""Tolerance for rounding of sums only. Two readers of one scan agree with a DSC of about 0.87, a hundred times further
apart; 0.2 % of a 25 ml gland is 0.05 ml, a few voxels of its surface; an HD95 of 1 mm means that 5 % of the surface
moves by a voxel."""
QUANTISED = Tolerance(
    least_dsc=0.98, most_changed_share=0.03, most_hd95_mm=4.0, most_volume_ml=0.5, most_dsc_lost=0.005
)
"""Tolerance for eight bits, whose rounding is measurable but must not matter: a fifth of the difference between two
trainings of one recipe (DSC 0.91), one voxel of an ordinary planning CT (4 mm), half a point of DSC with contours, 2 %
of a gland."""
GATES = {"fp32": SAME, "fp16": SAME, "bf16": QUANTISED, "int8": QUANTISED}
"""Tolerances by the type that the network computes in. BF16 has eight significant bits, like INT8."""

INT8_SCANS = 5
"""Fewest scans for the verification of INT8. Its scales are calibrated on the same scans, and a model that passes on
one may fail on others: a checkpoint passed on the packaged example and failed on five further patients (2026-11-28)."""


def difference(expected: Labels, actual: Labels, spacing_mm: Spacing, count: int) -> MaskDifference:
    """Compare two masks of one scan.

    Args:
        expected, actual: labels (D, H, W).
        spacing_mm: of the scan, same axes.
        count: number of labels, background included.
    """
    changed = int(np.count_nonzero(expected != actual))
    either = int(np.count_nonzero((expected > 0) | (actual > 0)))
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    pairs = [(expected == value, actual == value) for value in range(1, count)]
    return MaskDifference(
        changed=changed,
        changed_share=changed / either if either else 0.0,
        dsc=min(dice(own, other) for own, other in pairs),
        hd95_mm=max(hausdorff_mm(own, other, spacing_mm, percentile=95.0) for own, other in pairs),
        volume_ml=max(abs(int(own.sum()) - int(other.sum())) * voxel_ml for own, other in pairs),
    )
