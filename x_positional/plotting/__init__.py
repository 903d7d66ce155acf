"""Plots of what position schemes do, measured by calling their hooks."""

from x_positional.plotting.gallery import Gallery, draw
from x_positional.plotting.schemes import Stage

__all__ = ["Gallery", "Stage", "draw"]
