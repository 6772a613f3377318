"""What determines a mask besides the scan: model, precision and options, and the version of the rules."""

from parotid_seg.runtime.segmentation.segmentation_options import SegmentationOptions

RULES_VERSION = 6
"""Version of reading, locating, resampling and clean-up. It is part of the journal's key, so that cases are run again
after an upgrade that can change a mask, its geometry or its flags.

Raise it with every such change, and add the new version's results with `python -m tests.golden`.
`tests/golden/test_golden.py` fails if results change and this does not.
"""


def determined_by(model_sha256: str, precision: str, options: SegmentationOptions) -> tuple[str, ...]:
    """Texts on which masks depend: those of equal texts and scans are equal."""
    return (f"rules {RULES_VERSION}", model_sha256, precision, *options.fingerprint)
