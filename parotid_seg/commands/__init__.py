"""A module for each command: its options and help, one call, what it prints. `cli.py` puts them together."""
