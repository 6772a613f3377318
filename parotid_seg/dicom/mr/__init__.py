"""MR: which series of a study a model takes, and how they come onto one grid."""
