"""Small models whose parameters are all random, and decoding written out naively: one full pass per token."""

from typing import TypeVar

import torch
from torch import Tensor

from x_positional import Decoder, TransformerWrapper
from x_positional.schemes.registry import REGISTRY

SCHEMES = sorted(n for n, c in REGISTRY.items() if c.__module__.startswith("x_positional.") and n != "custom")
TABLES = ["absolute"]
"""Schemes that end at max_seq_len."""
UNLIMITED = [name for name in SCHEMES if name not in TABLES]
PAIRS_OF_AXES = ["axial", "mixed"]
"""Schemes that want a pair of channels for each of two axes."""
NUM_TOKENS = 29
M = TypeVar("M", bound=torch.nn.Module)
GREEDY = {"temperature": 0.0}


def perturbed(module: M, seed: int = 0, size: float = 0.1) -> M:
    """Every parameter moved off its initial value, float64 (so that no tie of logits depends on rounding)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * size)
    return module.double().eval()


def language_model(position="rope", *, seed: int = 0, max_seq_len: int = 48, **flags) -> TransformerWrapper:
    """Two layers, three query heads on one key head, no size a power of two."""
    torch.manual_seed(seed)
    sizes = {"dim": 26, "depth": 2, "heads": 3, "attn_kv_heads": 1, "attn_dim_head": 10}
    wide = {"attn_dim_head": 12} if position in PAIRS_OF_AXES else {}
    layers = Decoder(**{**sizes, **wide, **flags}, position=position)
    return perturbed(TransformerWrapper(num_tokens=NUM_TOKENS, max_seq_len=max_seq_len, attn_layers=layers), seed)


def ids(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(0, NUM_TOKENS, shape, generator=torch.Generator().manual_seed(seed))


def ragged(*lengths: int, seed: int = 2) -> list[Tensor]:
    return [ids(length, seed=seed + i) for i, length in enumerate(lengths)]


class Script:
    """A logits filter that forces the tokens [B N] to come, and keeps the logits that it saw."""

    def __init__(self, tokens: Tensor):
        self.tokens, self.seen = tokens, []

    def __call__(self, logits: Tensor) -> Tensor:
        forced = torch.full_like(logits, float("-inf"))
        forced.scatter_(1, self.tokens[:, len(self.seen), None], 0.0)
        self.seen.append(logits)
        return forced

    @property
    def logits(self) -> Tensor:
        """[B N V]"""
        return torch.stack(self.seen, 1)


@torch.no_grad()
def full_pass(net: TransformerWrapper, *parts: Tensor, window: int | None = None) -> Tensor:
    """The logits [N V] that predict the last part [N] of a row, from one pass over all parts.

    window: how many tokens each one sees, in every layer, as in a model that was built with that window.
    """
    if window is not None:
        layers = net.config.layers.model_copy(update={"window": window})
        twin = TransformerWrapper.from_config(net.config.model_copy(update={"layers": layers}))
        twin.load_state_dict(net.state_dict())
        net = twin.double().eval()
    tokens = torch.cat(parts)
    return net(tokens[None])[0, -len(parts[-1]) - 1 : -1]


def equal(got: Tensor, expected: Tensor, bound: float = 1e-9) -> None:
    """Fails where float64 results differ by more than rounding."""
    torch.testing.assert_close(got, expected, atol=bound, rtol=0)


@torch.no_grad()
def naive(net: TransformerWrapper, prompt: Tensor, steps: int, penalty: float = 1.0) -> Tensor:
    """[T] -> [N] greedily, nothing kept between steps."""
    tokens = prompt
    for _ in range(steps):
        logits = net(tokens[None])[0, -1]
        if penalty != 1.0:
            seen = torch.zeros_like(logits, dtype=torch.bool)
            seen[tokens] = True
            logits = torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
        tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)])
    return tokens[len(prompt) :]


def until_end(row: Tensor, eos: tuple[int, ...]) -> Tensor:
    """A free-running row [N] up to its first eos, that one included."""
    ends = [i for i, token in enumerate(row.tolist()) if token in eos]
    return row[: ends[0] + 1] if ends else row
