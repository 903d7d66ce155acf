"""Layers that take numbers and tensors, never a config."""
