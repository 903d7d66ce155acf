"""Random sequences of reads and cache operations: every row has the logits that it has alone."""

import contextlib
import random

import pytest
import torch
from torch import Tensor

from tests.support.draws import draws
from tests.support.generation_models import NUM_TOKENS, equal, language_model
from x_positional import TransformerWrapper
from x_positional.attention.cache import KVCache
from x_positional.errors import CacheError

SCHEMES = ["rope", "t5", "cope", "forgetting", "absolute"]
STACKS = [{}, {"window": 7}, {"window": 5, "keep_first": 2}, {"chunk": 6}]
ROUNDS = 5


class Twin:
    """A cache, and the tokens that each of its rows has read."""

    def __init__(self, net: TransformerWrapper, cache: KVCache, seed: int, bound: float):
        self.net, self.cache, self.random, self.bound = net, cache, random.Random(seed), bound
        self.rows: list[list[int]] = [[] for _ in range(cache.batch_size)]

    def tokens(self) -> Tensor:
        return torch.tensor([[self.random.randrange(NUM_TOKENS) for _ in range(4)] for _ in self.rows])

    def read(self) -> None:
        tokens, keep = self.tokens(), torch.tensor([[self.random.random() < 0.7 for _ in range(4)] for _ in self.rows])
        keep = keep if keep.any() and self.random.random() < 0.5 else torch.ones_like(keep)
        got = self.net(tokens, mask=keep, cache=self.cache)
        for row, new, logits, kept in zip(self.rows, tokens, got, keep, strict=True):
            row += new[kept].tolist()
            if kept.any():
                equal(logits[kept], self.net(torch.tensor([row]))[0, -int(kept.sum()) :], self.bound)

    def crop(self) -> None:
        held, drop = [len(row) for row in self.rows], self.random.randint(1, 3)
        most = self.random.randint(0, max(held))
        each = [self.random.randint(0, n) for n in held]
        how = [(most, [min(most, n) for n in held]), (each, each), (-drop, [n - drop for n in held])]
        length, left = self.random.choice(how[: 2 + (drop <= min(held))])
        with contextlib.suppress(CacheError):  # a ring that has overwritten tokens
            self.cache.crop(length)
            self.rows = [row[:n] for row, n in zip(self.rows, left, strict=True)]

    def reorder(self) -> None:
        picked = [self.random.randrange(len(self.rows)) for _ in range(self.random.randint(1, 3))]
        self.cache.reorder(picked)
        self.rows = [list(self.rows[row]) for row in picked]

    def repeat(self) -> None:
        if len(self.rows) < 4:
            self.cache.repeat(2)
            self.rows = [list(row) for row in self.rows for _ in range(2)]

    def copy(self) -> None:
        before, self.cache = self.cache, self.cache.copy()
        self.net(self.tokens(), cache=before)

    def fail(self) -> None:
        broken = self.net.attn_layers.blocks[1].register_forward_hook(lambda *_: torch.tensor(1 / 0))
        with pytest.raises(ZeroDivisionError):
            self.net(self.tokens()[:, : self.random.randint(1, 4)], cache=self.cache)
        broken.remove()


@pytest.mark.parametrize("scheme", SCHEMES)
@torch.no_grad()
def test_rows_are_as_if_read_alone_after_any_operations(scheme: str) -> None:
    stacks = [flags for flags in STACKS if "keep_first" not in flags or scheme in ("rope", "t5", "cope")]
    nets = [language_model(scheme, max_seq_len=99, **flags) for flags in stacks]
    first = SCHEMES.index(scheme)
    for seed in range(first, first + draws(2, 40)):
        flags, net = stacks[seed % len(nets)], nets[seed % len(nets)]
        bound = 1e-6 if "keep_first" in flags else 1e-9  # what moves the first tokens is computed in float32
        twin = Twin(net, net.new_cache(1 + seed % 3, max_len=(None, 99)[seed % 2]), seed, bound)
        for _ in range(ROUNDS):
            operations = twin.crop, twin.crop, twin.reorder, twin.repeat, twin.copy, twin.fail
            for change in (twin.read, twin.random.choice(operations)):
                change()
