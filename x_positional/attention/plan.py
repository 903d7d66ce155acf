"""What one forward pass settles before the first layer runs, as each layer receives it.

B batch, S context tokens, C context dim.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor

from x_positional.attention.backends import Backend, Choice, Prepared, ScoreOps
from x_positional.attention.cache import CachePass, KeyView
from x_positional.attention.maps import MapCollector, attention_map, by_token
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
    maps: MapCollector | None = None
    """Where the layer puts its attention map; None where none was requested."""

    def collect(self, q: Tensor, k: Tensor, ops: ScoreOps) -> None:
        """Put the map of the layer's queries and keys, as its backend takes them, into `maps`."""
        if self.maps is not None:
            found = attention_map(q, k, self.prepared, ops)
            self.maps.of_self[self.layer] = found if self.cache is None else by_token(found, self.prepared.ctx)


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
    maps: MapCollector | None = None
    """As in `LayerPlan`."""

    def collect(self, q: Tensor, k: Tensor, ops: ScoreOps) -> None:
        """As in `LayerPlan`. Rows whose context is empty get zeros."""
        if self.maps is not None and self.maps.of_cross is not None:
            found = attention_map(q, k, self.prepared, ops)
            self.maps.of_cross[self.layer] = found if self.reads is None else found * self.reads


@dataclass(frozen=True, kw_only=True)
class PassPlan:
    """One forward pass: the plan of every layer."""

    layers: list[LayerPlan]
    cross: list[CrossPlan] | None
    """None in a stack without cross-attention."""
    cache: CachePass | None = None
    """What the pass adds to the cache, to be committed after the last step."""

    def collecting(self, maps: MapCollector) -> "PassPlan":
        """The same plan, whose layers put their attention maps there."""
        cross = self.cross
        return replace(
            self,
            layers=[layer._replace(maps=maps) for layer in self.layers],
            cross=None if cross is None else [replace(layer, maps=maps) for layer in cross],
        )
