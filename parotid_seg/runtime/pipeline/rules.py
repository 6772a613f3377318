"""The version of the rules that determine a mask besides the scan, the model and the options."""

RULES_VERSION = 5
"""Version of reading, locating, resampling and clean-up. It is part of the journal's key, so that cases are run again
after an upgrade that can change a mask, its geometry or its flags.

Raise it with every such change, and add the new version's results with `python -m tests.golden`.
`tests/golden/test_golden.py` fails if results change and this does not.
"""
