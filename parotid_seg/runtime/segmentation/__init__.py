"""Segments one scan with the model: search for the structures, batches, and interpretation of the labels."""
