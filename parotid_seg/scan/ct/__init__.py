"""Whether a CT is what it says: its intensities in HU, its slices whole and in their order."""
