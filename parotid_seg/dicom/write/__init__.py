"""Writes RT Structure Sets and DICOM segmentations; each is read back and compared before it gets its final name."""
