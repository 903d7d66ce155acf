"""What a position scheme is: optional hooks, its capabilities, and the context that attention passes to it.

B batch, T query tokens, S key tokens, H heads, G key/value heads, D head dim, M model dim, A position axes.
A leading 1 in place of B means that all rows are the same. Biases are in logits: they are added after q.k * scale.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from x_positional.schemes.context import NO_TOKEN, AttentionContext, AttentionWindow, Bias, IndexFn
from x_positional.schemes.spans import Span
from x_positional.schemes.terms import ScoreTerm

__all__ = [
    "NO_TOKEN",
    "ActsOn",
    "AttentionContext",
    "AttentionWindow",
    "Bias",
    "Capabilities",
    "Dims",
    "IndexFn",
    "Kernel",
    "LayerView",
    "PositionScheme",
    "Span",
]

Kernel = Literal["fused", "bias", "rows"]
"""What an attention kernel must support: nothing special, a pointwise bias on scores, or whole rows of scores."""

ActsOn = Literal["embeddings", "queries", "keys", "bias", "rows"]
"""Where position enters a model: token embeddings, queries, keys, a bias on scores, or whole rows of scores."""

HOOKS: dict[ActsOn, tuple[str, ...]] = {
    "embeddings": ("embed",),
    "queries": ("rotate_q",),
    "keys": ("rotate_k",),
    "bias": ("bias", "content_bias", "layer_bias"),
    "rows": ("transform_scores",),
}
"""The hooks through which a scheme acts on each."""


@dataclass(frozen=True, kw_only=True)
class Dims:
    """The sizes that a scheme is built with."""

    dim: int
    """M, the model dim."""
    heads: int
    """H, the query heads."""
    kv_heads: int
    """G, the key/value heads."""
    head_dim: int
    """D, the channels of a head."""
    causal: bool
    """Whether attention is causal: True in a decoder, False in an encoder."""
    embed_dim: int
    """The width of the token embeddings."""
    max_seq_len: int | None = None
    """The model's context length; None if it is not set."""


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a scheme, or several schemes together, can do."""

    acts_on: tuple[ActsOn, ...]
    """Where position enters; empty for no position at all."""
    kernel: Kernel
    """What the attention kernel must support."""
    kv_cacheable: bool
    """A cached key stays valid as the sequence grows."""
    unbounded: bool
    """Positions >= max_seq_len are defined. This is a fact; quality there is a measurement."""
    absolute: bool
    """Shifting every position by a constant changes the logits."""
    causal_only: bool
    """Without a causal mask the scheme is undefined, or cannot tell one order of tokens from another."""
    counts_keys: bool
    """The number of keys at or before a query is part of the formula."""
    continuous: bool
    """Float positions are supported."""
    uses_positions: bool
    """Custom positions change the output; otherwise they are rejected."""
    prefix_consistent: bool
    """In a decoder, the logits of a token do not depend on how many tokens follow it."""
    reads_layer: bool
    """Reads the keys and projections of self-attention, so cross-attention takes no positions."""

    @property
    def tells_order(self) -> bool:
        """Whether a query can tell one order of keys from another. A temperature acts on queries alone and cannot."""
        return any(place != "queries" for place in self.acts_on)

    @property
    def undefined_ahead(self) -> bool:
        """Whether scores of keys after the query are undefined, also beside a scheme that tells their order."""
        return self.causal_only and (self.tells_order or self.counts_keys)

    @classmethod
    def combined(cls, parts: Sequence["Capabilities"]) -> "Capabilities":
        """What schemes can do together, in one layer or in the layers of one stack."""
        acts_on: tuple[ActsOn, ...] = tuple(place for place in HOOKS if any(place in p.acts_on for p in parts))
        return cls(
            acts_on=acts_on,
            kernel=_kernel(acts_on),
            kv_cacheable=all(p.kv_cacheable for p in parts),
            unbounded=all(p.unbounded for p in parts),
            absolute=any(p.absolute for p in parts),
            causal_only=all(p.causal_only for p in parts) or any(p.undefined_ahead for p in parts),
            counts_keys=any(p.counts_keys for p in parts),
            continuous=all(p.continuous for p in [p for p in parts if p.uses_positions] or parts),
            uses_positions=any(p.uses_positions for p in parts),
            prefix_consistent=all(p.prefix_consistent for p in parts),
            reads_layer=any(p.reads_layer for p in parts),
        )


def _kernel(acts_on: Sequence[ActsOn]) -> Kernel:
    if "rows" in acts_on:
        return "rows"
    return "bias" if "bias" in acts_on else "fused"


@dataclass(frozen=True, kw_only=True)
class LayerView:
    """What a self-attention layer passes to `layer_bias`."""

    q: Tensor
    """[B H T D], not rotated."""
    k: Tensor
    """[B G S D], not rotated."""
    scale: float
    """The factor of q.k."""
    to_q: Callable[[Tensor], Tensor]
    """The layer's query projection, [N M] -> [H N D]."""
    to_k: Callable[[Tensor], Tensor]
    """The layer's key projection, [N M] -> [G N D]."""


class PositionScheme(nn.Module):
    """How a model knows position. Override the hooks that your paper needs; the others are the identity.

    Hold parameters or nothing: no buffers. Compute tables from positions, in float32 or wider, once per forward pass.
    The attributes below are defaults: a subclass overrides them, or an instance sets its own in `__init__` if they depend
    on arguments. The contract suite (`x_positional.testing.check_scheme`) verifies each of them in both directions: what
    is declared must work, and what is not declared must fail.
    """

    kv_cacheable: bool = True
    """A cached key stays valid as the sequence grows."""
    absolute: bool = False
    """Shifting every position by a constant changes the logits."""
    causal_only: bool = False
    """Without a causal mask the scheme is undefined, or cannot tell one order of tokens from another."""
    counts_keys: bool = False
    """The number of keys at or before a query is part of the formula. With `causal_only`, a query that sees later keys is refused
    beside any other scheme too."""
    continuous: bool = True
    """Float positions are supported."""
    prefix_consistent: bool = True
    """False if all tokens of a sequence change once it exceeds some length (dynamic NTK, LongRoPE)."""
    takes_final_length: bool = False
    """True if tables are computed once, for the length that a sequence will have in the end. If the cache knows that
    length, `length_tables` is called in place of `tables`; otherwise `tables` must hold for any length."""
    uses_positions: bool | None = None
    """Whether custom positions change the output. None derives it: True if `embed`, `tables` or `bias` is overridden.
    Set it to True if `content_bias`, `layer_bias` or `transform_scores` reads the positions of its context."""
    per_layer: bool = False
    """Each layer has its own parameters (CoPE, forget gates); otherwise all layers share one instance."""
    max_axes: int = 1
    """How many axes a position may have; 1 for text."""
    limit: int | None = None
    """Positions must be below it (the rows of a learned table); None if every position is defined."""
    half_limit: int | None = None
    """The same for float16, if it overflows earlier."""

    _acts_on: ClassVar[tuple[ActsOn, ...]] = ()
    _reads_positions: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls._acts_on = tuple(place for place, hooks in HOOKS.items() if any(map(cls.overrides, hooks)))
        cls._reads_positions = any(map(cls.overrides, ("embed", "tables", "bias")))

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        """[B T M], [B|1 T] -> [B T M]. Once, on the token embeddings: learned, sinusoidal."""
        return x

    def tables(self, positions: Tensor) -> Any:
        """[B|1 T] or [B|1 T A] -> the tables for `rotate_q` and `rotate_k`. Once per forward pass, shared by all layers."""
        return None

    def length_tables(self, positions: Tensor, lengths: Tensor) -> Any:
        """`tables`, given the sequence lengths as well. Called in place of `tables` if `prefix_consistent` is False, and if
        `takes_final_length` is True and the cache knows the final lengths.

        Args:
            positions: [B|1 T] or [B|1 T A].
            lengths: [B|1 T|1], the length of each token's sequence: the last position + 1 of its row, or of its document
                in a packed row; or the final length of its row.
        """
        return self.tables(positions)

    def token_tables(self, tables: Any, i: int) -> Any:
        """Token i of `tables`, as `tables` returns it for this token alone. Where it is defined, decoding computes the tables of
        many tokens at once and takes those of each step from them."""
        return tables

    @property
    def splits_tables(self) -> bool:
        """Whether `token_tables` holds: it is defined, or there are no tables."""
        return self.overrides("token_tables") or not self.overrides("tables")

    def cache_key(self, length: int) -> Hashable:
        """Keys cached at one sequence length are valid at another if both have the same cache key; otherwise generation
        recomputes the prefix."""
        return None if self.capabilities().kv_cacheable else length

    def rotate_q(self, q: Tensor, tables: Any) -> Tensor:
        """[B H T D] -> [B H T D']. New queries of one layer: RoPE, xPos, PoPE."""
        return q

    def rotate_k(self, k: Tensor, tables: Any) -> Tensor:
        """[B G T D] -> [B G T D']. New keys of one layer, before they are cached."""
        return k

    def key_state(self, x: Tensor) -> Tensor | None:
        """[B T M] -> [B H T C]. Extra state of each key, cached with k and v: forget gates."""
        return None

    def query_state(self, x: Tensor) -> Any:
        """[B T M] -> [B H T C]. Extra state of each new query, from the input of the query projection; never cached, since no
        later token reads it: relative logits, gates of T5's bias."""
        return None

    def bias(self, ctx: AttentionContext) -> Bias | None:
        """A bias that depends on positions alone. Once per forward pass: ALiBi, T5, dynamic position bias."""
        return None

    def content_bias(self, q: Tensor, ctx: AttentionContext, state: Tensor | None, query_state: Any) -> Bias | None:
        """A pointwise bias that may read a layer's unrotated queries [B H T D], key state [B H S C] and query state [B H T C]."""
        return None

    def layer_bias(self, view: LayerView, ctx: AttentionContext) -> Bias | None:
        """A pointwise bias that may read a layer's queries, keys and projections: DeBERTa. Not for cross-attention."""
        return None

    def transform_scores(self, scores: Tensor, visible: Tensor | None, q: Tensor, ctx: AttentionContext) -> Tensor:
        """[B H T S] -> [B H T S], on whole rows, so no fused kernel can run it: CoPE. q is unrotated, [B H T D]."""
        return scores

    def row_term(self, q: Tensor, ctx: AttentionContext) -> ScoreTerm | None:
        """The same as `transform_scores`, in place and without autograd; None if there is no such form. A subclass that
        overrides `transform_scores` overrides this too, or is computed without it."""
        return None

    def capabilities(self) -> Capabilities:
        """What this instance can do. `acts_on` and `kernel` follow from the overridden hooks."""
        acts_on = self._acts_on
        return Capabilities(
            acts_on=acts_on,
            kernel=_kernel(acts_on),
            kv_cacheable=self.kv_cacheable,
            unbounded=self.limit is None,
            absolute=self.absolute,
            causal_only=self.causal_only,
            counts_keys=self.counts_keys,
            continuous=self.continuous,
            uses_positions=self._reads_positions if self.uses_positions is None else self.uses_positions,
            prefix_consistent=self.prefix_consistent,
            reads_layer=self.overrides("layer_bias"),
        )

    @classmethod
    def overrides(cls, hook: str) -> bool:
        """Whether this class of schemes defines the hook itself."""
        return getattr(cls, hook) is not getattr(PositionScheme, hook)


def lowest_limit(schemes: Iterable[PositionScheme]) -> int | None:
    """Positions that every scheme defines are below it; None if all positions are defined."""
    return min((scheme.limit for scheme in schemes if scheme.limit is not None), default=None)
