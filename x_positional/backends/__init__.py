"""Attention backends behind one signature: eager, blockwise, sdpa, flex, varlen."""

from x_positional.backends.base import Backend, BackendError, Planned, ScoreOps
from x_positional.backends.choose import BACKENDS, BackendName, Choice, choose, obstacles

__all__ = ["BACKENDS", "Backend", "BackendError", "BackendName", "Choice", "Planned", "ScoreOps", "choose", "obstacles"]
