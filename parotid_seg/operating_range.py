"""What a model file knows of the scans it was made for: for features of a scan and its structures, the range in which
they lie in patients that the model was not trained on.

A scan outside is flagged, as nothing is known of the masks of such scans. The features are those of
`runtime.segmentation.range_features`; the range is made by `runtime.fit_calibration`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from parotid_seg.errors import InputError

OUTSIDE = 0.1
"""Share of new patients, like those that the range is made from, that may lie outside."""


@dataclass(frozen=True)
class FeatureRange:
    """The range of a feature.

    Attributes:
        name: see `runtime.segmentation.range_features`.
        low, high: its ends; values beyond are outside.
    """

    name: str
    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise InputError(f"feature {self.name}: found the range {self.low} to {self.high}, expected a rising one")

    def __str__(self) -> str:
        return f"{self.name.replace('_', ' ')}, expected {self.low:.3g} to {self.high:.3g}"


@dataclass(frozen=True)
class OperatingRange:
    """The operating range of a model.

    Attributes:
        scan: ranges of features of a scan.
        structures: ranges of features of each structure.
        margin: how far the ranges extend beyond the 5th and 95th percentiles of the patients, as a share of the
            distance between these.
        patients: how many the ranges are made from.
        made: how, in words: the data, and whose masks.
    """

    scan: tuple[FeatureRange, ...]
    structures: tuple[FeatureRange, ...]
    margin: float
    patients: int
    made: str

    def __post_init__(self) -> None:
        for part in ("scan", "structures"):
            object.__setattr__(self, part, tuple(getattr(self, part)))
            names = [each.name for each in getattr(self, part)]
            if len(set(names)) < len(names):
                raise InputError(f"operating range: found {', '.join(names)}, expected each feature once")
        if not math.isfinite(self.margin):
            raise InputError(f"operating range: found the margin {self.margin}, expected a finite number")

    @property
    def origin(self) -> str:
        """What it is made from, in words."""
        return (
            f"{self.patients} patients, 5th to 95th percentile and {self.margin:.2f} of their distance more at each "
            f"end, so that at most {OUTSIDE:.0%} of such patients lie outside; {self.made}"
        )

    def outside_of(
        self, scan: Mapping[str, float], structures: Mapping[str, Mapping[str, float]]
    ) -> Iterator[tuple[str, FeatureRange, float]]:
        """The features outside: structure (empty for the scan), range and value.

        Args:
            scan: features of the scan by name; a feature that is missing is not compared.
            structures: features of each structure.
        """
        for structure, ranges, values in (
            ("", self.scan, scan),
            *((structure, self.structures, values) for structure, values in structures.items()),
        ):
            for each in ranges:
                if each.name in values and not each.low <= values[each.name] <= each.high:
                    yield structure, each, values[each.name]
