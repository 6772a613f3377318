"""Measurements on a machine with an NVIDIA GPU that is at hand for minutes: see README.md in this folder."""
