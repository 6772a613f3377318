"""MR: chooses the series of a study for a model's channels, and resamples them to one grid."""
