"""The version of the rules that decide a mask beside the scan, the model and the options."""

RULES_VERSION = 3
"""Of reading, locating, resampling and clean-up. Part of the journal's key, so that an upgrade which can change a mask,
where it lies or its flags does the cases again.

Raise it with every such change, and add the new version's results with `python -m tests.golden`.
`tests/test_golden.py` fails if results change and this does not.
"""
