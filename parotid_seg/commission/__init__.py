"""Is a model good enough for a hospital's own labelled patients? Scans -> masks, figures, limits, faults, drift."""
