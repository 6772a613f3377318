"""DICOM studies with contours become a data set to train on."""
