"""TensorRT and TensorRT-RTX through PyCUDA."""
