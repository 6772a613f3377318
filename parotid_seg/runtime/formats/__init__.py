"""Output formats of masks: a module each, listed in `registry`."""
