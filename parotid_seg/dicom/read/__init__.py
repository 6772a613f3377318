"""Reads DICOM series as volumes, and RT Structure Sets as masks."""
