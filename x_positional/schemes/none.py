"""No position scheme: order comes from the causal mask alone."""

from typing import ClassVar, Literal

from x_positional.schemes.base import Dims, PositionScheme
from x_positional.schemes.registry import SchemeConfig


class NoPosition(PositionScheme):
    """No position information is added (Haviv et al. 2022, arXiv:2203.16634; Kazemnejad et al. 2023, arXiv:2305.19466)."""

    causal_only = True


class NoPE(SchemeConfig):
    """`position="none"`."""

    kind: Literal["none"] = "none"
    summary: ClassVar[str] = "no position at all; the causal mask gives the order"
    paper: ClassVar[str] = "Kazemnejad et al. 2023, arXiv:2305.19466"

    def build(self, dims: Dims) -> NoPosition:
        return NoPosition()
