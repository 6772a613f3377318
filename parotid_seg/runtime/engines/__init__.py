"""Engines that run a model file: one interface, and a module or package for each engine."""
