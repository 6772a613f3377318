"""A DICOM node: series come in by C-STORE, are segmented, and the results go out by C-STORE. Needs pynetdicom.

    reception (association threads) -> inbox (slices on disk) -> work (one series at a time) -> outbox (sender thread)

The ledger on disk has the state of each series, so that a killed node continues where it stopped.
"""
