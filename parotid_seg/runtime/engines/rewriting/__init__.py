"""Rewrites of a model's graph. These modules need the package onnx, which a plain installation lacks: they are imported
only where a graph is rewritten.
"""
