"""DICOM out: RT Structure Sets and segmentations, read back before they get their names."""
