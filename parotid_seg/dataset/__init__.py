"""Turns DICOM studies with contours into a data set for training."""
