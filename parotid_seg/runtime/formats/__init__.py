"""Output formats of masks: a module each, listed in `mask_formats`."""
