"""`python -m parotid_seg` is `parotid-seg`."""

from parotid_seg.cli import main

main()
