"""A DICOM node: series come in by C-STORE, are segmented, and the results go out by C-STORE. Needs pynetdicom.

    reception (association threads) -> inbox (slices on disk) -> work (one series at a time) -> outbox (sender thread)

What is known of each series is in the ledger, on disk, so that a killed node goes on where it was.
"""
