"""Files and patient geometry: scans in, masks out, the model's grid."""
