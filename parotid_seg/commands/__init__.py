"""A module for each command: its options and help, the call, and its output. `cli.py` puts them together."""
