"""Image files and patient geometry: reads scans, writes masks, and resamples to the model's grid."""
