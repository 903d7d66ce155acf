"""Several schemes at once.

B batch, T query tokens, S key tokens, H heads, D head dim, M model dim.
"""

from collections.abc import Hashable, Sequence
from typing import Any

from torch import Tensor, nn

from x_positional.schemes.base import AttentionContext, Bias, Capabilities, Kernel, LayerView, PositionScheme
from x_positional.schemes.context import add

_WEAKEST: tuple[Kernel, ...] = ("rows", "bias", "fused")


class Chain(PositionScheme):
    """Embeds and rotates in turn, adds the biases; as capable as its weakest part.

    At most one part may carry key state, and at most one may transform scores: two would each see the other's result.
    """

    def __init__(self, *parts: PositionScheme):
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.per_layer = any(p.per_layer for p in parts)  # type: ignore[misc]
        axes = [p.max_axes for p in parts if p.capabilities().uses_positions]
        self.max_axes = min(axes, default=1)  # type: ignore[misc]
        limits = [p.limit for p in parts if p.limit is not None]
        self.limit = min(limits) if limits else None
        consistent = all(p.capabilities().prefix_consistent for p in parts)
        self.takes_final_length = consistent and any(p.takes_final_length for p in parts)  # type: ignore[misc]
        halves = [p.half_limit for p in parts if p.half_limit is not None]
        self.half_limit = min(halves) if halves else None
        if found := chain_problems(parts):
            raise ValueError(" ".join(found))

    def _all(self) -> list[PositionScheme]:
        return [p for p in self.parts if isinstance(p, PositionScheme)]

    def capabilities(self) -> Capabilities:
        caps = [p.capabilities() for p in self._all()]
        orders = any(not c.causal_only for c in caps)
        kernels = [c.kernel for c in caps]
        return Capabilities(
            kernel=next(kernel for kernel in _WEAKEST if kernel in kernels),
            kv_cacheable=all(c.kv_cacheable for c in caps),
            unbounded=self.limit is None,
            absolute=any(c.absolute for c in caps),
            causal_only=not orders or any(part.causal_only and tells_order(part) for part in self._all()),
            continuous=all(c.continuous for c in caps if c.uses_positions),
            uses_positions=any(c.uses_positions for c in caps),
            prefix_consistent=all(c.prefix_consistent for c in caps),
            reads_layer=any(c.reads_layer for c in caps),
        )

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

    def cache_key(self, length: int) -> Hashable:
        return tuple(part.cache_key(length) for part in self._all())

    def rotate_q(self, q: Tensor, tables: list[Any]) -> Tensor:
        pairs = list(zip(self._all(), tables, strict=True))
        for part, table in sorted(pairs, key=lambda pair: not pair[0].overrides("rotate_k")):
            q = part.rotate_q(q, table)  # what changes queries alone (a temperature) comes last, after what keys follow
        return q

    def rotate_k(self, k: Tensor, tables: list[Any]) -> Tensor:
        for part, table in zip(self._all(), tables, strict=True):
            k = part.rotate_k(k, table)
        return k

    def key_state(self, x: Tensor) -> Tensor | None:
        states = [part.key_state(x) for part in self._all()]
        return next((state for state in states if state is not None), None)

    def bias(self, ctx: AttentionContext) -> Bias | None:
        return add([part.bias(ctx) for part in self._all()])

    def content_bias(self, q: Tensor, ctx: AttentionContext, state: Tensor | None) -> Bias | None:
        return add([part.content_bias(q, ctx, state) for part in self._all()])

    def layer_bias(self, view: LayerView, ctx: AttentionContext) -> Bias | None:
        return add([part.layer_bias(view, ctx) for part in self._all()])

    def transform_scores(self, scores: Tensor, visible: Tensor | None, q: Tensor, ctx: AttentionContext) -> Tensor:
        for part in self._all():
            scores = part.transform_scores(scores, visible, q, ctx)
        return scores


def tells_order(scheme: PositionScheme) -> bool:
    """Whether it lets a query tell one order of keys from another; no position at all and temperatures do not."""
    hooks = ("embed", "rotate_k", "key_state", "bias", "content_bias", "layer_bias", "transform_scores")
    return any(map(scheme.overrides, hooks))


def chain_problems(parts: Sequence[PositionScheme]) -> list[str]:
    """Why these schemes cannot be combined; [] if they can."""
    names = ", ".join(type(p).__name__ for p in parts)
    found = []
    if sum(p.overrides("key_state") for p in parts) > 1:
        found.append(f"of {names}, more than one carries key state; a cache keeps one. Choose one of them.")
    if sum(p.overrides("transform_scores") for p in parts) > 1:
        found.append(
            f"of {names}, more than one transforms whole rows of scores, each seeing the other's result. Choose one."
        )
    turned = [type(p).__name__ for p in parts if p.overrides("rotate_k")]
    reading = [type(p).__name__ for p in parts if p.overrides("layer_bias")]
    if turned and reading:
        found.append(
            f"{', '.join(reading)} reads keys as they are projected, and {', '.join(turned)} turns them. Choose one."
        )
    if sum(p.overrides("rotate_k") for p in parts) > 1:
        found.append(
            f"of {names}, more than one rotates queries and keys, each undoing what the other means. Choose one."
        )
    return found
