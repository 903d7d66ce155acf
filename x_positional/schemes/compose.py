"""Several schemes in one layer.

B batch, T query tokens, S key tokens, H heads, D head dim, M model dim.
"""

from collections.abc import Hashable, Sequence
from typing import Any

from torch import Tensor, nn

from x_positional.errors import ArgumentError
from x_positional.schemes.base import AttentionContext, Bias, Capabilities, LayerView, PositionScheme, lowest_limit
from x_positional.schemes.context import add
from x_positional.schemes.terms import ScoreTerm


class Chain(PositionScheme):
    """Applies the embeddings and rotations of its parts in order and adds their biases; as capable as its weakest part.

    At most one part may have key state, one may rotate keys, and one may transform scores. Raises ArgumentError otherwise, and
    for no parts.
    """

    def __init__(self, *parts: PositionScheme):
        super().__init__()
        if not parts:
            raise ArgumentError("Chain() needs at least one scheme; for no position scheme use NoPosition().")
        if found := chain_problems(parts):
            raise ArgumentError(" ".join(found))
        self.parts = nn.ModuleList(parts)
        self.per_layer = any(p.per_layer for p in parts)
        self.max_axes = min((p.max_axes for p in parts if p.capabilities().uses_positions), default=1)
        self.limit = lowest_limit(parts)
        self.half_limit = min((p.half_limit for p in parts if p.half_limit is not None), default=None)
        consistent = all(p.capabilities().prefix_consistent for p in parts)
        self.takes_final_length = consistent and any(p.takes_final_length for p in parts)

    def _all(self) -> list[PositionScheme]:
        return [p for p in self.parts if isinstance(p, PositionScheme)]

    def capabilities(self) -> Capabilities:
        return Capabilities.combined([p.capabilities() for p in self._all()])

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        for part in self._all():
            x = part.embed(x, positions)
        return x

    def tables(self, positions: Tensor) -> list[Any]:
        return [part.tables(positions) for part in self._all()]

    def length_tables(self, positions: Tensor, lengths: Tensor) -> list[Any]:
        final = self.takes_final_length
        asked = [p.takes_final_length if final else not p.capabilities().prefix_consistent for p in self._all()]
        return [
            part.length_tables(positions, lengths) if ask else part.tables(positions)
            for part, ask in zip(self._all(), asked, strict=True)
        ]

    def token_tables(self, tables: list[Any], i: int) -> list[Any]:
        return [part.token_tables(table, i) for part, table in zip(self._all(), tables, strict=True)]

    @property
    def splits_tables(self) -> bool:
        return all(part.splits_tables for part in self._all())

    def cache_key(self, length: int) -> Hashable:
        return tuple(part.cache_key(length) for part in self._all())

    def rotate_q(self, q: Tensor, tables: list[Any]) -> Tensor:
        pairs = list(zip(self._all(), tables, strict=True))
        for part, table in sorted(pairs, key=lambda pair: _only_scales(pair[0])):
            q = part.rotate_q(q, table)  # a temperature comes last
        return q

    def rotate_k(self, k: Tensor, tables: list[Any]) -> Tensor:
        for part, table in zip(self._all(), tables, strict=True):
            k = part.rotate_k(k, table)
        return k

    def key_state(self, x: Tensor) -> Tensor | None:
        states = [part.key_state(x) for part in self._all()]
        return next((state for state in states if state is not None), None)

    def query_state(self, x: Tensor) -> list[Any]:
        return [part.query_state(x) for part in self._all()]

    def bias(self, ctx: AttentionContext) -> Bias | None:
        return add([part.bias(ctx) for part in self._all()])

    def content_bias(
        self, q: Tensor, ctx: AttentionContext, state: Tensor | None, query_state: list[Any]
    ) -> Bias | None:
        parts = zip(self._all(), query_state, strict=True)
        return add([part.content_bias(q, ctx, state, mine) for part, mine in parts])

    def layer_bias(self, view: LayerView, ctx: AttentionContext) -> Bias | None:
        return add([part.layer_bias(view, ctx) for part in self._all()])

    def transform_scores(self, scores: Tensor, visible: Tensor | None, q: Tensor, ctx: AttentionContext) -> Tensor:
        for part in self._all():
            scores = part.transform_scores(scores, visible, q, ctx)
        return scores

    def row_term(self, q: Tensor, ctx: AttentionContext) -> ScoreTerm | None:
        transforming = [part for part in self._all() if part.overrides("transform_scores")]
        return transforming[0].row_term(q, ctx) if transforming else None


def _only_scales(part: PositionScheme) -> bool:
    """Whether a scheme that changes queries is a temperature: it neither rotates keys nor adds to queries and scores."""
    return not (part.overrides("rotate_k") or part.overrides("layer_bias"))


def chain_problems(parts: Sequence[PositionScheme]) -> list[str]:
    """Why these schemes cannot be combined; [] if they can."""
    names = ", ".join(type(p).__name__ for p in parts)
    found = []
    if sum(p.overrides("key_state") for p in parts) > 1:
        found.append(f"of {names}, more than one has key state, and a cache holds one per key. Choose one.")
    if sum(p.overrides("transform_scores") for p in parts) > 1:
        found.append(
            f"of {names}, more than one transforms whole rows of scores, so one would read the other's result. Choose one."
        )
    rotating = [type(p).__name__ for p in parts if p.overrides("rotate_k")]
    reading = [type(p).__name__ for p in parts if p.overrides("layer_bias")]
    if rotating and reading:
        found.append(f"{', '.join(reading)} reads unrotated keys, and {', '.join(rotating)} rotates them. Choose one.")
    if len(rotating) > 1:
        found.append(f"of {names}, more than one rotates queries and keys; their angles would add up. Choose one.")
    return found


def leaves(scheme: PositionScheme) -> list[PositionScheme]:
    """The schemes of a Chain, or the scheme itself."""
    if not isinstance(scheme, Chain):
        return [scheme]
    return [leaf for part in scheme.parts if isinstance(part, PositionScheme) for leaf in leaves(part)]
