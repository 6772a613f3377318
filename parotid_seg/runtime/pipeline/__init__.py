"""Scans from files to masks: discovery, workers, journal, and the files that are written."""
