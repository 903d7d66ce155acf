"""Attention backends behind one signature: eager, blockwise, sdpa, flex, varlen."""

from x_positional.attention.backends.base import Backend, Prepared, ScoreOps
from x_positional.attention.backends.choose import BACKENDS, BackendName, Choice, choose, obstacles

__all__ = ["BACKENDS", "Backend", "BackendName", "Choice", "Prepared", "ScoreOps", "choose", "obstacles"]
