"""Random combinations of what a call takes: embeddings, masks of pairs, prefixes, padding, packing, positions, caches, maps.

Each is refused with an error of the package, or equals the reference: every document of every row alone, in one eager pass without
a cache, under a mask that is written out.
"""

import random
from collections import Counter
from functools import cache as remembered
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from tests.support.draws import draws
from tests.support.generation_models import NUM_TOKENS, perturbed
from x_positional import TransformerWrapper, XPositionalError

SHORT, LONG = draws((100, 6), (4000, 300))
BOUND = 1e-8
POSITIONS = ("rope", "alibi", "t5", "dynamic", "cope", "forgetting", "absolute", "polar", "deberta", "rope alibi")
BACKENDS = ("auto", "auto", "eager", "blockwise", "sdpa")
CACHES = (None, None, "growing", "growing", "static", "ring", "int8")
MODES = ("plain", "pairs", "causal pairs", "prefix")


@remembered
def model(position: str, kind: str, backend: str, window: int | None, softcap: float | None) -> TransformerWrapper:
    """Equal parameters for every backend and window."""
    torch.manual_seed(0)
    layers = {
        "kind": kind,
        "dim": 14,
        "depth": 2,
        "heads": 3,
        "kv_heads": 1,
        "head_dim": 8,
        "position": position.split(),
    }
    more = {"backend": backend, "window": window, "attn": {"softcap": softcap}, "ff": {"mult": 1.0}}
    config = {"num_tokens": NUM_TOKENS, "max_seq_len": 700, "layers": {**layers, **more}}
    return perturbed(TransformerWrapper.from_config(config), size=0.15)


class Call:
    """Rows of N places, what they mean, and the arguments of the calls that read them in chunks."""

    def __init__(self, seed: int, long: bool):
        self.random, self.torch = random.Random(seed), torch.Generator().manual_seed(seed)
        pick = self.random.choice
        self.batch, self.length = pick((1, 2)), pick((130, 515)) if long else self.random.randint(1, 11)
        kind, position = "encoder" if self.chance(0.15) else "decoder", pick(POSITIONS)
        if position in ("cope", "forgetting"):
            kind = "decoder"
        self.window = pick((3, 5, 120)) if self.chance(0.3) else None
        softcap = 3.0 if self.chance(0.15) else None
        backend = "auto" if softcap is not None or position == "cope" else pick(BACKENDS)
        self.net = model(position, kind, backend, self.window, softcap)
        self.alone = model(position, kind, "eager", None, softcap)
        self.cache = pick(CACHES) if kind == "decoder" else None
        self.mode = pick(MODES)
        self._draw_row(kind == "decoder")

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=self.torch)

    def _draw_row(self, causal: bool) -> None:
        shape, place = (self.batch, self.length), torch.arange(self.length)
        self.tokens, counts = self.integers(0, NUM_TOKENS, *shape), self.integers(1, self.length + 1, self.batch, 1)
        sides = (place < counts, place >= self.length - counts, self.integers(0, 4, *shape) > 0, counts == counts)
        self.present = self.random.choice(sides).expand(shape)
        self.documents = self.integers(0, 3, *shape).sort(1).values - 1 if self.chance(0.25) else None
        self.positions = self.integers(0, 20, *shape) if self.chance(0.2) else None
        cuts = [self.random.randint(0, self.length) for _ in range(2 if self.cache else 0)]
        self.chunks = list(pairwise(sorted({0, self.length, *cuts})))
        self.embeds = self.net.embed_tokens(self.tokens)
        self.prepended = [self.random.randint(0, b - a - 1) if self.chance(0.3) else 0 for a, b in self.chunks]
        for (start, _), count in zip(self.chunks, self.prepended, strict=True):
            self.embeds[:, start : start + count] += 0.5
        lower = (place <= place[:, None]).expand(self.batch, -1, -1)
        self.visible, self.prefix = lower if causal else torch.ones_like(lower), None
        if self.mode == "prefix":
            self.prefix = torch.minimum(self.integers(0, self.chunks[0][1] + 1, self.batch), self.present.sum(1))
            inside = self.present & (self.present.cumsum(1) <= self.prefix[:, None])
            self.visible = self.visible | (inside[:, None] & inside[:, :, None])
        elif self.mode != "plain":
            seen = torch.rand(self.batch, self.length, self.length, generator=self.torch) < 0.7
            stop = torch.cat([torch.full((b - a,), b) for a, b in self.chunks])
            self.visible = seen & lower if self.mode == "causal pairs" else seen & (place < stop[:, None])

    def arguments(self, number: int) -> dict[str, Any]:
        """Of one chunk, without the cache."""
        (start, stop), first = self.chunks[number], self.prepended[number]
        rows, own, given = slice(start, stop), slice(start + first, stop), dict[str, Any]()
        present = self.present[:, rows]
        given |= {"prepend_embeds": self.embeds[:, start : start + first]} if first else {}
        given |= {"tokens": self.tokens[:, own]} if self.chance(0.7) else {"inputs_embeds": self.embeds[:, own]}
        padding = "attention_mask" if "pairs" not in self.mode and self.chance(0.4) else "mask"
        given |= {} if present.all() else {padding: present}
        if "pairs" in self.mode:
            given["attention_mask"] = torch.cat([self._earlier(start, rows), self.visible[:, rows, rows]], -1)
        given |= {"prefix_len": self.prefix} if self.prefix is not None and not number else {}
        given |= {} if self.documents is None else {"document_ids": self.documents[:, rows]}
        return given if self.positions is None else {**given, "positions": self.positions[:, rows]}

    def _earlier(self, start: int, rows: slice) -> Tensor:
        """Columns of the cached tokens by index. Rows of different lengths are refused."""
        held = [self.visible[b, rows, :start][:, self.present[b, :start]] for b in range(self.batch)]
        most = max(x.shape[1] for x in held)
        return torch.stack([torch.nn.functional.pad(x, (0, most - x.shape[1])) for x in held])

    def run(self) -> tuple[Tensor, list[Tensor] | None]:
        """Logits [B N V], and without a cache the attention maps."""
        if self.cache is None:
            return self.net(**self.arguments(0), return_attention=True)
        options: dict[str, dict[str, Any]] = {
            "growing": {},
            "static": {"max_len": self.length},
            "ring": {"window": 4},
            "int8": {"dtype": torch.int8},
        }
        cache = self.net.new_cache(self.batch, **options[self.cache])
        outs = [self.net(**self.arguments(i), cache=cache) for i in range(len(self.chunks))]
        return torch.cat(outs, 1), None

    def check(self) -> str:
        """ "right" or "refused". Fails on anything else."""
        try:
            out, maps = self.run()
        except XPositionalError:
            return "refused"
        assert out.isfinite().all()
        for row in range(self.batch):
            places = self.present[row].nonzero().flatten()
            names = places * 0 if self.documents is None else self.documents[row, places]
            for name in names.unique():
                self._check_document(row, places[names == name], out, maps)
        return "right"

    def _check_document(self, row: int, places: Tensor, out: Tensor, maps: list[Tensor] | None) -> None:
        count = torch.arange(len(places))
        kept = min(self.window or self.length, 4 if self.cache == "ring" else self.length)
        visible = self.visible[row][places][:, places] & ((count[:, None] - count).abs() < kept)
        given: dict[str, Any] = {"inputs_embeds": self.embeds[row, places][None], "attention_mask": visible[None]}
        given |= {} if self.positions is None else {"positions": self.positions[row, places][None]}
        given |= {"cache": self.alone.new_cache(1, dtype=torch.int8)} if self.cache == "int8" else {}
        want, maps_alone = self.alone(**given, return_attention=True)
        torch.testing.assert_close(out[row, places], want[0], atol=BOUND, rtol=0)
        for got, alone in zip(maps or [], maps_alone, strict=False):
            torch.testing.assert_close(got[row][:, places][:, :, places], alone[0], atol=BOUND, rtol=0)


@torch.no_grad()
def test_every_combination_is_right_or_refused() -> None:
    outcomes: Counter[str] = Counter()
    for seed in range(SHORT + LONG):
        try:
            outcomes[Call(seed, long=seed >= SHORT).check()] += 1
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise
    assert min(outcomes["right"], 3 * outcomes["refused"]) > (SHORT + LONG) / 3, outcomes
