"""What a position scheme is: optional hooks, what it can do, and the context that attention hands to it.

B batch, T query tokens, S key tokens, H heads, G key/value heads, D head dim, M model dim, A position axes.
A leading 1 in place of B means "the same for every row". Biases are in logits: they are added after q.k * scale.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from x_positional.schemes.context import NO_TOKEN, AttentionContext, AttentionWindow, Bias, IndexFn, Span

__all__ = [
    "NO_TOKEN",
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


@dataclass(frozen=True, kw_only=True)
class Dims:
    """The sizes that a scheme may need when it is built. `max_seq_len` is None where nobody named a length."""

    dim: int
    heads: int
    kv_heads: int
    head_dim: int
    causal: bool
    embed_dim: int
    max_seq_len: int | None = None


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a scheme can do.

    kernel: "fused" (only q and k change), "bias" (a pointwise bias on scores), "rows" (needs whole rows of scores).
    kv_cacheable: a key written once stays right as the sequence grows.
    unbounded: defined for positions >= max_seq_len (a fact; quality there is a measurement).
    absolute: moving every position by a constant changes the logits.
    causal_only: blind to order, or undefined, without a causal mask.
    continuous: float positions are as good as integers.
    uses_positions: custom positions change the output (otherwise they are refused).
    prefix_consistent: in a decoder, the logits of a token do not depend on how many tokens follow it.
    reads_layer: it reads the keys and projections of self-attention (so cross-attention takes no positions).
    """

    kernel: Kernel
    kv_cacheable: bool
    unbounded: bool
    absolute: bool
    causal_only: bool
    continuous: bool
    uses_positions: bool
    prefix_consistent: bool = True
    reads_layer: bool = False


@dataclass(frozen=True, kw_only=True)
class LayerView:
    """What a layer of self-attention shows to `layer_bias`: its queries and keys, neither rotated, the factor of their
    products, and what its projections make of any vectors as wide as the model."""

    q: Tensor  # [B H T D]
    k: Tensor  # [B G S D]
    scale: float
    to_q: Callable[[Tensor], Tensor]  # [N M] -> [H N D]
    to_k: Callable[[Tensor], Tensor]  # [N M] -> [G N D]


class PositionScheme(nn.Module):
    """How a model knows position. Override the hooks the paper needs; the rest are the identity.

    Hold parameters or nothing: no buffers. Tables are recomputed from positions, in float32, once per forward pass.
    Set the class attributes below (or set them on self, where they depend on arguments) to say what holds; the public
    contract suite (`x_positional.testing.check_scheme`) proves each of them, both ways.
    """

    kv_cacheable: ClassVar[bool] = True
    absolute: ClassVar[bool] = False
    causal_only: ClassVar[bool] = False
    continuous: ClassVar[bool] = True
    prefix_consistent: ClassVar[bool] = True
    """False where all tokens of a text change once it is longer than some length (dynamic NTK, LongRoPE)."""
    takes_final_length: ClassVar[bool] = False
    """True where tables are chosen once, for the length that a text will have in the end: where a cache knows it,
    `length_tables` is asked in place of `tables`. Without one, `tables` says what holds for any length."""
    uses_positions: ClassVar[bool | None] = None
    """Whether custom positions change the output. None: where `embed`, `tables` or `bias` is defined. Say True where
    `content_bias`, `layer_bias` or `transform_scores` reads the positions of its context."""
    per_layer: ClassVar[bool] = False
    """Each layer gets parameters of its own (CoPE, forget gates); otherwise all layers share one instance."""
    max_axes: ClassVar[int] = 1
    """How many axes a position may have: 1 for text."""
    limit: int | None = None
    """Positions must be below it: the rows of a learned table. None where every position is defined."""
    half_limit: int | None = None
    """The same for float16, where its range ends earlier."""

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        """[B T M], [B|1 T] -> [B T M]. Once, on the token embeddings: learned, sinusoidal."""
        return x

    def tables(self, positions: Tensor) -> Any:
        """[B|1 T] or [B|1 T A] -> whatever `rotate_q` and `rotate_k` want. Once per forward pass, not once per layer."""
        return None

    def length_tables(self, positions: Tensor, lengths: Tensor) -> Any:
        """`tables`, given also how long each token's text is: [B|1 T|1], the last position + 1 of its row, or of its
        document in a packed row. Asked in place of `tables` where `prefix_consistent` is False; and, with how long each row
        will be, where `takes_final_length` is True and a cache knows it."""
        return self.tables(positions)

    def cache_key(self, length: int) -> Hashable:
        """Keys cached at one length of the text are right at another where their cache keys are equal; where they differ,
        generation reads the text again."""
        return None if self.capabilities().kv_cacheable else length

    def rotate_q(self, q: Tensor, tables: Any) -> Tensor:
        """[B H T D] -> [B H T D']. New queries of one layer: RoPE, xPos, PoPE."""
        return q

    def rotate_k(self, k: Tensor, tables: Any) -> Tensor:
        """[B G T D] -> [B G T D']. New keys of one layer, before they are cached."""
        return k

    def key_state(self, x: Tensor) -> Tensor | None:
        """[B T M] -> [B H T C]. What a key carries besides k and v, cached with them: forget gates."""
        return None

    def bias(self, ctx: AttentionContext) -> Bias | None:
        """A bias that depends on positions alone. Once per forward pass: ALiBi, T5, dynamic position bias."""
        return None

    def content_bias(self, q: Tensor, ctx: AttentionContext, state: Tensor | None) -> Bias | None:
        """A pointwise bias that may read the unrotated queries [B H T D] and the key state [B H S C] of a layer."""
        return None

    def layer_bias(self, view: LayerView, ctx: AttentionContext) -> Bias | None:
        """A pointwise bias that may read a layer's queries, keys and projections: DeBERTa. Not for cross-attention."""
        return None

    def transform_scores(self, scores: Tensor, visible: Tensor | None, q: Tensor, ctx: AttentionContext) -> Tensor:
        """[B H T S] -> [B H T S], seeing whole rows, so no fused kernel can run it: CoPE. q is unrotated [B H T D]."""
        return scores

    def capabilities(self) -> Capabilities:
        """What this instance can do. The kernel follows from the hooks that are overridden, so it cannot be wrong."""
        kernel: Kernel = "fused"
        if any(map(self.overrides, ("bias", "content_bias", "layer_bias"))):
            kernel = "bias"
        if self.overrides("transform_scores"):
            kernel = "rows"
        reads = any(map(self.overrides, ("embed", "tables", "bias")))
        return Capabilities(
            kernel=kernel,
            kv_cacheable=self.kv_cacheable,
            unbounded=self.limit is None,
            absolute=self.absolute,
            causal_only=self.causal_only,
            continuous=self.continuous,
            uses_positions=reads if self.uses_positions is None else self.uses_positions,
            prefix_consistent=self.prefix_consistent,
            reads_layer=self.overrides("layer_bias"),
        )

    def overrides(self, hook: str) -> bool:
        """Whether this scheme's class defines the hook itself."""
        return getattr(type(self), hook) is not getattr(PositionScheme, hook)
