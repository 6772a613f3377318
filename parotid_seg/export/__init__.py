"""Checkpoint to a model file that is proven to be the same model."""
