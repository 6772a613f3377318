"""One scan through the model: where the structures are, batches, and what the labels mean."""
