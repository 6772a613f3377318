"""Segments scans with a model file, without torch."""
