"""Which queries and keys form a tile, and which of its keys are hidden."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from x_positional.attention.backends.base import SeededDropout, blocks_of
from x_positional.schemes.base import AttentionContext, Span
from x_positional.schemes.terms import ScoreBlock, SumTerm

QUERIES, KEYS = 128, 512
"""The most queries and keys of a tile. Other modules read them as `geometry.QUERIES`, so that tests can change them."""
SCORES_PER_THREAD, SCORES_OF_ROWS = 2**18, 2**21
"""As many heads are computed at a time as make this many scores. The second is for a transform of whole rows."""


def blocks_for(ctx: AttentionContext) -> list[tuple[Span, Span]]:
    """Blocks of queries, each with the range of keys visible to them."""
    return blocks_of(ctx, QUERIES)


class Tile(NamedTuple):
    """Some queries and a range of keys visible to them."""

    number: int
    """The index of the block of queries."""
    queries: Span
    """R queries."""
    keys: Span
    """W keys."""
    earlier: int
    """How many of these keys, from the first on, are known to precede every query."""


class Hidden(NamedTuple):
    """Where some of a tile's keys are hidden from some of its queries."""

    keys: slice
    """A range of the tile's keys."""
    visible: Tensor
    """[R keys] bool."""
    mask: Tensor
    """[R keys], -inf where hidden, 0 elsewhere."""


@dataclass(frozen=True)
class TilePlan:
    """What the forward and backward passes share besides tensors with a gradient: geometry, masks, terms, dropout."""

    ctx: AttentionContext
    blocks: list[tuple[Span, Span]]
    scale: float
    terms: SumTerm
    dropout: SeededDropout | None = None
    """Of the probabilities."""
    known: dict[tuple[int, ...], list[Hidden]] = field(default_factory=dict)
    """Results of `hidden`, cached where they depend only on the offset of the keys from the queries."""
    counts: dict[tuple[int, ...], int] = field(default_factory=dict)
    """Visible pairs of a query and a key in part of a row of the batch, cached where the mask is known only as a tensor."""

    @property
    def width(self) -> int:
        """Keys in a tile, at most."""
        return self.ctx.S if self.terms.whole_rows else KEYS

    def tiles(self, index: int) -> list[Tile]:
        """The tiles of a block of queries. Their inner edges are multiples of `width`."""
        (queries, keys), width = self.blocks[index], self.width
        starts = range(keys.start // width * width, keys.stop, width)
        spans = [Span(max(start, keys.start), min(start + width, keys.stop)) for start in starts]
        return [Tile(index, queries, span, self.ctx.earlier_than(queries, span)) for span in spans]

    def by_keys(self) -> list[tuple[Span, list[Tile]]]:
        """Ranges of `width` keys, each with its tiles."""
        width = self.width
        found = [(Span(start, min(start + width, self.ctx.S)), list[Tile]()) for start in range(0, self.ctx.S, width)]
        for index in range(len(self.blocks)):
            for tile in self.tiles(index):
                found[tile.keys.start // width][1].append(tile)
        return found

    def parts(self, batch: int) -> list[tuple[int, Span]]:
        """(row of the batch, range of heads) of each part of the work. Parts are computed one after the other."""
        heads = self.ctx.heads
        scores = SCORES_OF_ROWS if self.terms.whole_rows else SCORES_PER_THREAD * torch.get_num_threads()
        count = -(-heads // max(1, scores // self.largest))
        size = -(-heads // count)
        spans = [Span(start, min(start + size, heads)) for start in range(0, heads, size)]
        return [(row, span) for row in range(batch) for span in spans]

    @property
    def largest(self) -> int:
        """Scores of the largest tile, for one head."""
        return max((rows.stop - rows.start) * min(self.width, keys.stop - keys.start) for rows, keys in self.blocks)

    def buffer(self, like: Tensor) -> Tensor:
        """Memory for the scores of any tile, uninitialized, in the dtype of `like`."""
        return like.new_empty(self.largest * max(heads.stop - heads.start for _, heads in self.parts(1)))

    def hidden(self, row: int, queries: Span, keys: Span) -> list[Hidden]:
        """Where some of these keys are hidden in a row of the batch."""
        if not self.ctx.simple_mask:
            return self._hidden(row, queries, keys)
        place = keys.start - queries.start, keys.stop - queries.start, queries.stop - queries.start
        if place not in self.known:
            self.known[place] = self._hidden(row, queries, keys)
        return self.known[place]

    def _hidden(self, row: int, queries: Span, keys: Span) -> list[Hidden]:
        found = []
        for span in self.ctx.edges_of(queries, keys):
            size = (queries.stop - queries.start) * (span.stop - span.start)
            if not self.ctx.simple_mask and self._count(row, queries, span) == size:
                continue
            seen = self.ctx.visible_in_row(row, queries, span)
            cut = slice(span.start - keys.start, span.stop - keys.start)
            mask = torch.zeros_like(seen, dtype=torch.float32).masked_fill_(~seen, float("-inf"))
            found.append(Hidden(cut, seen, mask))
        return found

    def _count(self, row: int, queries: Span, keys: Span) -> int:
        """How many pairs of these queries and keys are visible."""
        place = row % self.ctx.mask_batch, *queries, *keys
        if place not in self.counts:
            self.counts[place] = int(self.ctx.visible_in_row(row, queries, keys).sum())
        return self.counts[place]

    def seen(self, row: int, tiles: Sequence[Tile]) -> Sequence[Tile]:
        """The tiles in which some key is visible in a row of the batch; at least one."""
        if self.ctx.simple_mask:
            return tiles
        return [tile for tile in tiles if self._count(row, tile.queries, tile.keys)] or tiles[:1]

    def kept(self, row: int, heads: Span, tile: Tile) -> Tensor | None:
        """[G R W] bool, which probabilities of a tile dropout keeps: seeded by the tile's place, so the same in every pass."""
        if self.dropout is None:
            return None
        rows, width = tile.queries.stop - tile.queries.start, tile.keys.stop - tile.keys.start
        ctx, own = self.ctx, range(row * self.ctx.heads + heads.start, row * self.ctx.heads + heads.stop)
        places = [(head * ctx.T + tile.queries.start) * ctx.S + tile.keys.start for head in own]
        return self.dropout.kept(places, rows * width).view(len(places), rows, width)

    def each_block(self, batch: int) -> Iterator[ScoreBlock]:
        """Every block of every row of the batch, with all heads and keys."""
        every_head = Span(0, self.ctx.heads)
        for queries, keys in self.blocks:
            for row in range(batch):
                yield ScoreBlock(row, every_head, queries, keys, self.ctx.earlier_than(queries, keys))
