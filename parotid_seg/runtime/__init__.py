"""Scans to masks with a model file; no torch."""
