"""Rotary position embeddings: RoPE, xPos, PoPE, axial and mixed rotations, and the scalings of their frequencies."""
