"""onnxruntime on the CPU and on CUDA."""
