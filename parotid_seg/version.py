"""The version, which also holds where the package is not installed, as in a checkout on PYTHONPATH."""

VERSION = "0.1.0"
"""What pyproject.toml reads, too."""
