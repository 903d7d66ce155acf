"""Attention by blocks where rows are padded or packed: equal to eager in float64, and linear in memory."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.draws import draws
from tests.support.largest import largest_and_saved
from x_positional import Decoder, Encoder, TransformerWrapper
from x_positional.attention.backends.tiles import attend, geometry
from x_positional.schemes.cope import CountTerm

BATCH, LENGTH = 3, 37
CAUSAL: list[Any] = ["alibi", "t5", "dynamic", "forgetting", "cope", "polar", ["t5", "forgetting"], ["rope", "cope"]]
DEBERTA: list[Any] = [
    {"kind": "deberta", "num_buckets": 6, "max_distance": 12, "terms": t} for t in ("both", "c2p", "p2c")
]
ROUNDED: Any = {"kind": "alibi", "rounding": "bfloat16", "scale": 0.5}
BOTH_SIDES: list[Any] = ["t5", "dynamic", {"kind": "alibi", "learned": True, "variant": "asymmetric"}, *DEBERTA[:1]]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of five queries for any length, and counts over three keys at a time."""
    for fewest in ("FEWEST", "FEWEST_TRAINING", "FEWEST_INFERENCE"):
        monkeypatch.setattr(attend, fewest, 1)
    monkeypatch.setattr(geometry, "QUERIES", 5)
    monkeypatch.setattr(geometry, "KEYS", 7)
    monkeypatch.setattr(CountTerm, "width", 3)


def model(position: object, *, kind: type = Decoder, length: int = LENGTH, **flags: Any) -> TransformerWrapper:
    """Small, with every parameter perturbed."""
    torch.manual_seed(0)
    layers = kind(**{"dim": 8, "depth": 2, "heads": 2, "attn_dim_head": 4, "position": position, **flags})
    net = TransformerWrapper(num_tokens=11, max_seq_len=length, attn_layers=layers)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += torch.randn_like(parameter) / 4
    return net


def inputs(length: int, case: str) -> dict[str, Any]:
    """What a model is called with besides tokens. Every row differs."""
    index, amount = torch.arange(length).expand(BATCH, -1), torch.tensor([[0], [length // 5], [length // 2 + 1]])
    documents = torch.stack([index[0] // (length // parts + 1) for parts in (1, 3, 4)])
    return {
        "none": {},
        "left": {"mask": index >= amount},
        "right": {"mask": index < length - amount},
        "holes": {"mask": (index % 7 != 3) | (amount == 0)},
        "packed": {"document_ids": documents},
        "packed, padded": {"document_ids": documents, "mask": index >= amount // 2},
        "alternating documents": {"document_ids": index // 4 % 2},
        "positions": {"positions": (index * 3) // 2 + amount},
    }[case]


CASES = ("left", "right", "holes", "packed", "packed, padded", "alternating documents")


def gradients(net: TransformerWrapper, call: dict[str, Any], length: int = LENGTH) -> list[Tensor]:
    """Logits, and the gradient of a projection of them for every parameter."""
    tokens = torch.arange(BATCH * length).reshape(BATCH, length) % 11
    logits = net(tokens, **call)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    parameters = [p for p in net.parameters() if p.requires_grad]
    found = torch.autograd.grad((logits * weights.to(logits)).sum(), parameters, allow_unused=True)
    return [logits, *(g for g in found if g is not None)]


def same_as_eager(position: object, call: dict[str, Any], **flags: Any) -> None:
    got, want = (gradients(model(position, backend=name, **flags).double(), call) for name in ("auto", "eager"))
    for found, expected in zip(got, want, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


EVERY = [(s, c, {}) for s in CAUSAL for c in CASES]
EVERY += [(s, c, {"kind": Encoder}) for s in BOTH_SIDES for c in (*CASES, "positions")]
EVERY += [(s, c, {}) for s in DEBERTA for c in ("none", "right", "packed")]
EVERY += [(ROUNDED, c, {}) for c in ("none", "right", "packed")]
EVERY += [(s, "positions", {}) for s in ("alibi", "t5", "dynamic")]
EVERY += [(s, c, {"window": 6}) for s in ("t5", "forgetting", "cope") for c in ("left", "packed")]
EVERY += [(s, "left", {"chunk": 7}) for s in ("t5", "cope")]


@pytest.mark.parametrize(("position", "case", "flags"), draws(EVERY[::4], EVERY))
def test_padded_and_packed_rows_are_those_of_eager(
    small_blocks: None, monkeypatch: pytest.MonkeyPatch, position: object, case: str, flags: dict[str, Any]
) -> None:
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", None)  # every layer runs by blocks
    same_as_eager(position, inputs(LENGTH, case), **flags)


MEMORY = [(s, c) for s in CAUSAL for c in ("left", "right", "packed")]


@pytest.mark.parametrize(("position", "case"), draws(MEMORY[::5], MEMORY))
def test_memory_of_padded_and_packed_rows_is_linear(
    monkeypatch: pytest.MonkeyPatch, position: object, case: str
) -> None:
    monkeypatch.setattr(attend, "FEWEST_TRAINING", 256)
    monkeypatch.setattr(geometry, "QUERIES", 16)
    monkeypatch.setattr(geometry, "KEYS", 64)
    (short, saved), (long, saved_long) = (_step(position, case, length) for length in (256, 512))
    assert short < 256**2 / 2
    assert long <= 2.2 * short
    assert saved_long <= 2.2 * saved


def _step(position: object, case: str, length: int) -> tuple[int, int]:
    net, call = model(position, length=length), inputs(length, case)
    tokens = torch.zeros(BATCH, length, dtype=torch.long)
    return largest_and_saved(lambda: net(tokens, **call).square().mean())
