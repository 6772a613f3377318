"""Exports a checkpoint to a model file that is verified against the trained model."""
