"""Formats that masks are written in: a module each, listed in `registry`."""
