"""What one forward pass settles before the first layer runs, as each layer receives it.

B batch, S context tokens, C context dim.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from x_positional.attention.backends import Backend, Choice, Prepared
from x_positional.attention.cache import CachePass, KeyView
from x_positional.attention.streaming import KeptTokens
from x_positional.schemes.base import AttentionWindow, PositionScheme


@dataclass(frozen=True, kw_only=True)
class LayerKind:
    """What distinguishes the layers of a stack."""

    scheme: PositionScheme
    window: AttentionWindow
    choice: Choice
    """The backend, and why."""


class LayerPlan(NamedTuple):
    """One layer's self-attention."""

    layer: int
    """Its number in the cache."""
    prepared: Prepared
    backend: Backend
    tables: Any
    """What the scheme's `rotate_q` and `rotate_k` read."""
    view: KeyView | None = None
    cache: CachePass | None = None
    kept_tokens: KeptTokens | None = None
    whole_rows: bool = False
    """The scheme transforms whole rows of scores."""
    reads_layer: bool = False
    """The scheme's bias reads the layer's keys and projections."""


@dataclass(frozen=True, kw_only=True)
class CrossPlan:
    """One layer's cross-attention."""

    layer: int
    prepared: Prepared
    backend: Backend
    context: Tensor | None
    """[B S C]; None where the cache already holds the keys."""
    q_tables: Any = None
    k_tables: Any = None
    rotated: bool = False
    """Whether positions apply, because context positions were given."""
    reads: Tensor | None = None
    """[B 1 1 1] bool, False for rows whose context is empty: they get zeros. None where no row's is."""
    cache: CachePass | None = None


@dataclass(frozen=True, kw_only=True)
class PassPlan:
    """One forward pass: the plan of every layer."""

    layers: list[LayerPlan]
    cross: list[CrossPlan] | None
    """None in a stack without cross-attention."""
    cache: CachePass | None = None
    """What the pass adds to the cache, to be committed after the last step."""
