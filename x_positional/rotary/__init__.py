"""Drop-in for rotary-embedding-torch 0.9.1: the same names, arguments and float32 numbers, exact where 0.9.1 is not.

Change `from rotary_embedding_torch import ...` to `from x_positional.rotary import ...`; docs/rotary-embedding-torch.md
lists what differs and why.
"""

from x_positional.rotary.apply import apply_learned_rotations, apply_rotary_emb, broadcat
from x_positional.rotary.embedding import RotaryEmbedding

__all__ = ["RotaryEmbedding", "apply_learned_rotations", "apply_rotary_emb", "broadcat"]
