"""The layout of the new tokens of one forward pass: where they are, and in which document.

B batch, T new tokens, A position axes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class TokenLayout:
    """Where the new tokens of one forward pass are."""

    index: Tensor
    """[B|1 T] place in the row, -1 where there is no token."""
    positions: Tensor
    """[B|1 T] or [B|1 T A] what schemes see; the same tensor as `index` unless custom."""
    documents: Tensor | None
    """[B T] document ids of packed rows."""
    start: int | None
    """The first index, where all rows are alike and unpadded; None otherwise."""
    span: int
    """Every index, the cached ones included, is below it. Known on the host."""
    in_document: Tensor | None = None
    """[B T] place in the document; None where a row is a single text."""
    following: Tensor | None = None
    """[B|1] or [B|1 A] the position after these tokens, once positions were given."""
    last_document: tuple[Tensor, Tensor] | None = None
    """After these tokens: the id of the last document [B], and its first token's index [B]."""
    pairs: Tensor | None = None
    """[B T S] bool, which tokens of its row, by index, each new one may see; None where the model's own rule decides."""
    prefix: Tensor | None = None
    """[B|1] int64, how many first tokens of a row see each other; None where attention is causal throughout."""
    ahead: int = 0
    """In a decoder, every token that an earlier one sees has an index below it; 0 where none does. Known on the host."""

    @property
    def length(self) -> int:
        """T."""
        return self.index.shape[1]

    @property
    def offset_in_document(self) -> Tensor:
        """[B|1 T] place in the text that the token belongs to: its document in a packed row, otherwise its row."""
        return self.index if self.in_document is None else self.in_document

    @property
    def custom_positions(self) -> bool:
        """Positions were given, or restart per document, so they are not the index."""
        return self.positions is not self.index

    @property
    def within_span(self) -> bool:
        """Positions are the index, or the place in a document, so they are below `span`."""
        return self.positions is self.index or self.positions is self.in_document


def following_positions(positions: Tensor, before: Tensor | None = None) -> Tensor:
    """[B|1 T] or [B|1 T A] positions -> [B|1] or [B|1 A] the position after them: the largest of any axis + 1, on every axis
    (Qwen2-VL: Wang et al. 2024, arXiv:2409.12191, section 2.1). Floats stay floats: they have no next."""
    after = positions.flatten(1).amax(dim=1) + 1
    if positions.ndim == 3:
        after = after[:, None].expand(-1, positions.shape[-1])
    if before is None:
        return after
    before = before[:, None] if before.ndim < after.ndim else before
    after = after[:, None] if after.ndim < before.ndim else after
    return torch.maximum(*torch.broadcast_tensors(before, after))
