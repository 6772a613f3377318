"""Scans from files to masks: discovery, workers, journal, and output files."""
