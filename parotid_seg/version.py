"""The version, also available if the package is not installed, as in a checkout on PYTHONPATH."""

VERSION = "0.1.0"
"""Also read by pyproject.toml."""
