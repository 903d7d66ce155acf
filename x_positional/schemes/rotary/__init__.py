"""Rotary position embeddings and all that rotates."""
