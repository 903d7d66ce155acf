"""Plots of what position schemes do, measured by calling their hooks."""

from x_positional.plotting.gallery import Gallery, draw

__all__ = ["Gallery", "draw"]
