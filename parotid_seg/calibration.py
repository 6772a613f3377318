"""What a model file knows of its errors and of the scans it was made for, from patients that it was not trained on.

The expected DSC of a structure is linear in features of mask and scan (`runtime.segmentation.features`). The margin of
its floor is a conformal quantile of the errors of predictions for patients left out, so that the floor holds for
`COVERAGE` of such glands. The operating range is, for other features, the range in which they lie in these patients; a
scan outside is flagged, as nothing is known of the masks of such scans. `runtime.fit_calibration` makes both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from parotid_seg.errors import InputError

COVERAGE = 0.9
"""Share of structures whose DSC is at least the floor."""
FARTHEST = 3.0
"""Standard deviations from the mean at which a feature is clipped: the line is not trusted any further."""
OUTSIDE = 0.1
"""Share of new patients, like those that the range is made from, that may lie outside."""


class Estimate(NamedTuple):
    """The expected quality of a structure.

    Attributes:
        expected_dsc: expected DSC with a contour drawn by a person, 0 to 1.
        floor_dsc: DSC that `COVERAGE` of such structures reach.
        low: whether the expected DSC is so low that the structure is flagged.
    """

    expected_dsc: float
    floor_dsc: float
    low: bool


@dataclass(frozen=True)
class Feature:
    """A feature and its coefficient.

    Attributes:
        name: see `runtime.segmentation.features`.
        mean, deviation: over the structures of the calibration.
        weight: change of the expected DSC with one standard deviation.
    """

    name: str
    mean: float
    deviation: float
    weight: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and math.isfinite(self.weight) and 0 < self.deviation < math.inf):
            raise InputError(
                f"feature {self.name}: found mean {self.mean}, deviation {self.deviation} and weight {self.weight}, "
                "expected finite numbers and a positive deviation"
            )


@dataclass(frozen=True)
class Calibration:
    """The calibration of structures that only differ in their side.

    Attributes:
        structures: their labels.
        features: what the expected DSC depends on.
        intercept: the expected DSC of a structure whose features are all at their means.
        margin: the floor is so far below the expected DSC.
        review_below: a structure with a lower expected DSC is flagged.
        patients, glands: how many the calibration is made from.
        mean_dsc: of these glands.
        correlation: Spearman's rank correlation of expected and achieved DSC, of patients left out.
        made: how, in words: the data, and whose masks.
    """

    structures: tuple[str, ...]
    features: tuple[Feature, ...]
    intercept: float
    margin: float
    review_below: float
    patients: int
    glands: int
    mean_dsc: float
    correlation: float
    made: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "structures", tuple(self.structures))
        object.__setattr__(self, "features", tuple(self.features))
        numbers = (self.intercept, self.margin, self.review_below, self.mean_dsc, self.correlation)
        if not all(map(math.isfinite, numbers)):
            raise InputError(f"calibration of {', '.join(self.structures)}: found a number that is not finite")
        names = [each.name for each in self.features]
        if not self.structures or len(set(names)) < len(names):
            raise InputError("calibration: expected at least one structure, and each feature once")

    def __str__(self) -> str:
        return (
            f"{self.intercept:.3f} at the mean of all features, floor {self.margin:.3f} lower, flagged below "
            f"{self.review_below:.3f}"
        )

    @property
    def weights(self) -> str:
        """The features, with the change of the expected DSC with one standard deviation of each."""
        return ", ".join(f"{each.name} {each.weight:+.3f}" for each in self.features)

    @property
    def origin(self) -> str:
        """What it is made from, in words."""
        return (
            f"{self.glands} structures of {self.patients} patients, mean DSC {self.mean_dsc:.3f}, rank correlation of "
            f"expected and achieved DSC {self.correlation:.2f}; {self.made}"
        )

    def estimate(self, values: Mapping[str, float]) -> Estimate:
        """The quality of a structure.

        Args:
            values: its features by name, with all of `features`.
        """
        expected = self.intercept
        for feature in self.features:
            off = (values[feature.name] - feature.mean) / feature.deviation
            expected += feature.weight * min(max(off, -FARTHEST), FARTHEST)
        expected = min(max(expected, 0.0), 1.0)
        return Estimate(expected, max(expected - self.margin, 0.0), expected < self.review_below)


def calibration_of(label: str, calibrations: Sequence[Calibration]) -> Calibration | None:
    """The calibration of a label; None if it has none."""
    return next((each for each in calibrations if label in each.structures), None)


def quality_text(expected_dsc: float | None, floor_dsc: float | None) -> str:
    """The quality of a structure in one sentence, for DICOM objects."""
    if expected_dsc is None or floor_dsc is None:
        return "Expected DSC not calibrated"
    return f"Expected DSC {expected_dsc:.2f}, floor for {COVERAGE:.0%} of structures {floor_dsc:.2f}"


@dataclass(frozen=True)
class FeatureRange:
    """The range of a feature.

    Attributes:
        name: see `runtime.segmentation.features`.
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

    @property
    def in_short(self) -> str:
        """Name and limits."""
        return f"{self.name.replace('_', ' ')} {self.low:.3g} to {self.high:.3g}"


@dataclass(frozen=True)
class OperatingRange:
    """The operating range of a model.

    Attributes:
        scan: ranges of features of a scan.
        structures: ranges of features of each structure.
        margin: how far at least the ranges extend beyond the 5th and 95th percentiles of the patients, as a share of
            the distance between these.
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
            f"{self.patients} patients, 5th to 95th percentile and at least {self.margin:.2f} of their distance more "
            f"at each end, so that at most {OUTSIDE:.0%} of such patients lie outside; {self.made}"
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
