"""Tensors of published checkpoints to parameters of ours, and back."""
