"""Attention by blocks where rows are padded or packed: equal to eager in float64, and linear in memory."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.block_models import (
    LENGTH,
    assert_linear_memory,
    by_small_blocks,
    model,
    same_as_eager,
    without_torch_kernel,
)
from tests.support.draws import draws
from x_positional import Alibi, Decoder, Encoder, TransformerWrapper
from x_positional.attention.backends import texts

BATCH = 3
CAUSAL: list[Any] = ["alibi", "t5", "dynamic", "forgetting", "cope", "polar", ["t5", "forgetting"], ["rope", "cope"]]
DEBERTA: list[Any] = [
    {"kind": "deberta", "num_buckets": 6, "max_distance": 12, "terms": t} for t in ("both", "c2p", "p2c")
]
ROUNDED: Any = {"kind": "alibi", "rounding": "bfloat16", "scale": 0.5}
BOTH_SIDES: list[Any] = ["t5", "dynamic", {"kind": "alibi", "learned": True, "variant": "asymmetric"}, *DEBERTA[:1]]


def inputs(length: int, case: str, batch: int = BATCH) -> dict[str, Any]:
    """What a model is called with besides tokens. Every row differs."""
    index, amount = (
        torch.arange(length).expand(batch, -1),
        torch.tensor([[0], [length // 5], [length // 2 + 1]])[-batch:],
    )
    documents = torch.stack([index[0] // (length // parts + 1) for parts in (1, 3, 4)])[-batch:]
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
EVERY = [(s, c, {}) for s in CAUSAL for c in CASES]
EVERY += [(s, c, {"kind": Encoder}) for s in BOTH_SIDES for c in (*CASES, "positions")]
EVERY += [(s, c, {}) for s in DEBERTA for c in ("none", "right", "packed")]
EVERY += [(ROUNDED, c, {}) for c in ("none", "right", "packed")]
EVERY += [(s, "positions", {}) for s in ("alibi", "t5", "dynamic")]
EVERY += [(s, c, {"window": 6}) for s in ("t5", "forgetting", "cope") for c in ("left", "packed")]
EVERY += [(s, "left", {"chunk": 7}) for s in ("t5", "cope")]


@pytest.mark.parametrize(("position", "case", "flags"), draws(EVERY[::7], EVERY))
def test_padded_and_packed_rows_are_those_of_eager(
    monkeypatch: pytest.MonkeyPatch, position: object, case: str, flags: dict[str, Any]
) -> None:
    by_small_blocks(monkeypatch)
    without_torch_kernel(monkeypatch)
    same_as_eager(position, BATCH, inputs(LENGTH, case), **flags)


def test_the_last_padding_before_a_row_sees_later_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The index of that query is -1, so its distances are those of the slots, and keys of later tiles are at negative ones."""
    by_small_blocks(monkeypatch)
    without_torch_kernel(monkeypatch)
    same_as_eager("t5", 2, {"mask": torch.arange(LENGTH) >= torch.tensor([[6], [16]])}, depth=1)


MASKS: list[dict[str, Any]] = [{}, {"window": 6}, {"chunk": 7}]
TEXTS = [("rope", c, {"kind": k, **m}) for c in CASES for k in (Decoder, Encoder) for m in MASKS]
TEXTS += [("none", c, {"kv_heads": 1, "heads": 4, **m}) for c in CASES for m in MASKS]


@pytest.mark.parametrize(("position", "case", "flags"), draws(TEXTS[::5], TEXTS))
def test_texts_of_padded_and_packed_rows_are_those_of_eager(
    monkeypatch: pytest.MonkeyPatch, position: object, case: str, flags: dict[str, Any]
) -> None:
    by_small_blocks(monkeypatch)
    monkeypatch.setattr(texts.AttentionContext, "visible_rows", None)  # no mask of all queries is made
    attend, runs = texts.Texts.attend, []
    monkeypatch.setattr(texts.Texts, "attend", lambda *a: runs.append(1) or attend(*a))
    net = model(position, **flags)
    net(torch.zeros(BATCH, LENGTH, dtype=torch.long), **inputs(LENGTH, case))
    assert len(runs) == 2
    monkeypatch.undo()
    by_small_blocks(monkeypatch)
    same_as_eager(position, BATCH, inputs(LENGTH, case), **flags)


def other_keys(of: Callable[..., Any]) -> Callable[..., Any]:
    """Padding sees the keys of the first text alone."""

    def texts_of_row(*arguments: Any) -> list[texts.Text]:
        found = of(*arguments)
        alone = texts.Span(0, 1)
        return [t if t.number is not None else texts.Text(1, [texts.Part(t.parts[0].rows, alone)]) for t in found]

    return texts_of_row


def test_a_text_that_reads_other_keys_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    by_small_blocks(monkeypatch)
    monkeypatch.setattr(texts, "_texts", other_keys(texts._texts))
    with pytest.raises(AssertionError):
        same_as_eager("rope", BATCH, inputs(LENGTH, "left"))


def test_a_padded_prompt_continues_from_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first chunk runs as texts; the next ones see cached keys through a mask."""
    by_small_blocks(monkeypatch)
    net, tokens = model("rope").double().eval(), torch.arange(BATCH * LENGTH).reshape(BATCH, LENGTH) % 11
    mask = inputs(LENGTH, "left")["mask"]
    whole, cache = net(tokens, mask=mask), net.new_cache(BATCH)
    found = [net(part, mask=own, cache=cache) for part, own in zip(tokens.split(12, 1), mask.split(12, 1), strict=True)]
    torch.testing.assert_close(torch.cat(found, 1)[mask], whole[mask], rtol=1e-10, atol=1e-10)


MEMORY = [(s, c) for s in ("rope", *CAUSAL) for c in ("left", "right", "packed")]


@pytest.mark.parametrize(("position", "case"), draws(MEMORY[::6], MEMORY))
def test_memory_of_padded_and_packed_rows_is_linear(
    monkeypatch: pytest.MonkeyPatch, position: object, case: str
) -> None:
    def step(length: int) -> Callable[[], Tensor]:
        net: TransformerWrapper = model(position, length=length, depth=1, ff_mult=1)
        call, tokens = inputs(length, case, 2), torch.zeros(2, length, dtype=torch.long)
        return lambda: net(tokens, **call).square().mean()

    assert_linear_memory(monkeypatch, step)


FLOATS = torch.arange(37).double().sqrt() * 7
APART = torch.arange(37).square() * 50
SLOPES: list[Any] = [Alibi(learned=True), Alibi(), "t5"]


@pytest.mark.parametrize("position", SLOPES)
@pytest.mark.parametrize("positions", [FLOATS, APART], ids=["floats", "far apart"])
def test_biases_at_given_positions_are_those_of_eager(
    monkeypatch: pytest.MonkeyPatch, position: Any, positions: Tensor
) -> None:
    if position == "t5" and positions is FLOATS:
        pytest.skip("t5 takes whole positions")
    by_small_blocks(monkeypatch)
    without_torch_kernel(monkeypatch)
    call = {"positions": positions, "mask": torch.arange(37) >= torch.tensor([[0], [6]])}
    same_as_eager(position, 2, call, twice=position != "t5", depth=1)


@pytest.mark.parametrize("kind", [Decoder, Encoder])
def test_memory_at_float_positions_is_linear(monkeypatch: pytest.MonkeyPatch, kind: type) -> None:
    def step(length: int) -> Callable[[], Tensor]:
        variant = "causal" if kind is Decoder else "asymmetric"
        net = model(Alibi(learned=True, variant=variant), kind=kind, length=length, depth=1, ff_mult=1)
        positions = torch.arange(length).double().sqrt()
        return lambda: net(torch.zeros(1, length, dtype=torch.long), positions=positions).square().mean()

    assert_linear_memory(monkeypatch, step)
