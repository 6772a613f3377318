"""A calibration of parotid glands, and an operating range, as a model file has them, for tests that need any."""

from parotid_seg.calibration import Calibration, Feature, FeatureRange, OperatingRange

BOTH = Calibration(
    structures=("parotid_left", "parotid_right"),
    features=(Feature("volume", 3.0, 0.5, 0.05), Feature("contrast", 0.0, 0.1, 0.02)),
    intercept=0.8,
    margin=0.1,
    review_below=0.75,
    patients=30,
    glands=60,
    mean_dsc=0.8,
    correlation=0.5,
    made="30 patients, the model's masks",
)
"""Larger glands, and brighter ones, are better."""

USUAL = OperatingRange(
    scan=(FeatureRange("sharpness", 0.0, 60.0), FeatureRange("turn_mm", 0.0, 15.0)),
    structures=(FeatureRange("intensity", 20.0, 90.0),),
    margin=0.5,
    patients=30,
    made="the model's masks",
)
"""Glands of soft tissue, both at the same height from front to back."""
