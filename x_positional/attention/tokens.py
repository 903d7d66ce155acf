"""The layout of the new tokens of one forward pass: where they are, and in which document.

B batch, T new tokens, A position axes.
"""

from dataclasses import dataclass

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
