"""Loss by length and by position against a plain loop in float64, and every reason for which a length has no loss."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from x_positional import Decoder, Encoder, TransformerWrapper
from x_positional.errors import ArgumentError, UserError
from x_positional.evidence.comparison.cell import reason_of
from x_positional.evidence.evaluation import lengths as lengths_module
from x_positional.evidence.evaluation.lengths import LengthSettings, loss_by_length
from x_positional.evidence.evaluation.measure import EvalSettings, evaluate_model, summary_of_data
from x_positional.evidence.evaluation.positions import bin_edges, loss_by_position
from x_positional.evidence.evaluation.results import Evaluation
from x_positional.evidence.evaluation.scoring import out_of_memory, reasons

TOKENS = np.random.default_rng(0).integers(0, 37, 611).astype(np.uint8)


def toy(position: str = "alibi", dtype: torch.dtype = torch.float64) -> TransformerWrapper:
    torch.manual_seed(1)
    layers = Decoder(dim=18, depth=2, heads=3, attn_dim_head=6, position=position, attn_dropout=0.3)
    model = TransformerWrapper(num_tokens=37, max_seq_len=29, attn_layers=layers)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3)
    return model.to(dtype)


def plain_losses(model: TransformerWrapper, window: np.ndarray) -> torch.Tensor:
    """The loss of every token of one window but the first."""
    ids = torch.from_numpy(window.astype(np.int64))
    with torch.no_grad():
        logits = model.eval()(ids[None, :-1])[0]
    return -F.log_softmax(logits, -1)[torch.arange(len(ids) - 1), ids[1:]]


@pytest.mark.parametrize("at_once", [1, 130, 8192])
@pytest.mark.parametrize("start", [None, 5])
@pytest.mark.parametrize("stride", [None, 11])
def test_lengths_are_those_of_a_plain_loop(
    monkeypatch: pytest.MonkeyPatch, at_once: int, start: int | None, stride: int | None
):
    monkeypatch.setattr(lengths_module, "TOKENS_AT_ONCE", at_once)
    model, scored = toy(), stride or 7
    settings = LengthSettings((65, 13, 29, 13), targets=7, windows=5, stride=stride, start_token=start)
    found = loss_by_length(model, TOKENS, settings)
    assert [entry.length for entry in found] == [13, 29, 65]
    ends = [65 + scored * i for i in range(5)] if stride else [65 + (611 - 65) * i // 4 for i in range(5)]
    for entry in found:
        windows = []
        for end in ends:
            window = TOKENS[end - entry.length : end].copy()
            if start is not None:
                window[0] = start
            windows.append(plain_losses(model, window)[-scored:].mean().item())
        assert entry.windows == pytest.approx(windows, abs=1e-12)
        assert entry.loss == pytest.approx(sum(windows) / 5, abs=1e-12)
        assert (entry.targets, entry.reason) == (5 * scored, None)


def test_all_windows_of_sliding_evaluation_score_each_token_once():
    settings = LengthSettings((40,), windows=None, stride=13)
    ends = settings.ends(611)
    assert np.diff(ends).tolist() == [13] * (len(ends) - 1)
    assert (ends[0], 611 - 13 < ends[-1] <= 611) == (40, True)
    assert settings.protocol(611) == (
        f"sliding: {13 * len(ends):,} consecutive tokens, stride 13, same targets at every length"
    )


def test_windows_never_score_a_token_twice():
    settings = LengthSettings((40, 20), targets=8, windows=1000)
    ends = settings.ends(100)
    assert len(ends) == 1 + 60 // 8
    assert np.diff(ends).min() >= 8
    assert settings.protocol(100) == "final 8 tokens of 8 windows, same targets at every length"
    assert LengthSettings((40,), targets=1, windows=1).protocol(40) == (
        "final 1 token of 1 window, same targets at every length"
    )


def test_positions_are_those_of_a_plain_loop():
    model = toy()
    found = loss_by_position(model, TOKENS, 67, windows=3, bins=6)
    assert found.edges == (1, 2, 4, 8, 12, 24, 36, 48, 60, 67)
    ends = LengthSettings((67,), targets=66, windows=3).ends(611)
    loss = torch.stack([plain_losses(model, TOKENS[end - 67 : end]) for end in ends]).mean(0)
    expected = [loss[a - 1 : b - 1].mean().item() for a, b in pairwise(found.edges)]
    assert found.loss == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("length", [2, 3, 17, 64, 1000])
@pytest.mark.parametrize("bins", [1, 2, 32])
def test_bins_cover_every_position_once(length: int, bins: int):
    edges = bin_edges(length, bins)
    assert (edges[0], edges[-1]) == (1, length)
    assert list(edges) == sorted(set(edges))


def evaluated(model: TransformerWrapper, *lengths: int) -> Evaluation:
    settings = EvalSettings(LengthSettings(lengths, targets=5, windows=4), position_windows=2)
    data = summary_of_data("random", TOKENS, None)
    return evaluate_model(model, TOKENS, settings, name="toy", trained_length=29, data=data)


def test_a_length_that_the_model_refuses_has_the_reason():
    found = evaluated(toy("absolute"), 29, 30, 31, 60)
    assert [entry.loss is None for entry in found.lengths] == [False, False, True, True]
    assert "LearnedAbsolute has 29 rows" in (found.lengths[2].reason or "")
    assert found.lengths[2].windows == ()
    assert (found.usable and found.usable.length, found.positions and found.positions.length) == (30, 30)


def test_a_loss_that_is_not_finite_has_the_reason():
    model = toy()
    assert model.to_logits is not None
    model.to_logits.weight.data[0, 0] = math.nan
    found = evaluated(model, 29, 60)
    assert [entry.loss for entry in found.lengths] == [None, None]
    assert found.lengths[0].reason == "the loss is not finite in 4 of 4 windows"
    assert (found.usable, found.positions) == (None, None)
    assert Evaluation.model_validate_json(found.model_dump_json()) == found


def test_memory_that_does_not_suffice_is_a_reason(monkeypatch: pytest.MonkeyPatch):
    model, forward = toy(), TransformerWrapper.forward

    def small(self: TransformerWrapper, ids: torch.Tensor, **options: bool):
        if ids.shape[1] > 40:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return forward(self, ids, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(TransformerWrapper, "forward", small)
    assert [entry.reason for entry in evaluated(model, 29, 60).lengths] == [None, "out of memory"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory on the GPU"),
        (RuntimeError("not enough memory: you tried to allocate 1 bytes"), "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory"),
        (RuntimeError("shapes differ"), None),
        (LookupError("not enough memory"), None),
    ],
)
def test_what_is_out_of_memory_in_every_command(error: Exception, reason: str | None):
    assert out_of_memory(error) == reason
    assert reason_of(error) == (reason or f"{type(error).__name__}: {error.args[0]}")
    with pytest.raises(UserError if reason else type(error), match=reason), reasons():
        raise error


def test_a_text_that_is_too_short_is_found_before_the_first_pass(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(TransformerWrapper, "forward", None)
    with pytest.raises(UserError, match=r"the text has 611 tokens; a window of the longest length needs 4,096\. Give"):
        evaluated(toy(), 29, 4096)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lengths": ()}, "lengths is empty"),
        ({"lengths": (8, 64)}, "length 8 does not exceed the 64 scored tokens"),
        ({"lengths": (128,), "windows": 0}, "windows=0 must be at least 1"),
        ({"lengths": (128,), "stride": 0}, "stride=0 must be at least 1"),
    ],
)
def test_settings_that_score_nothing_are_refused(given: dict[str, Any], message: str):
    with pytest.raises(ArgumentError, match=message):
        LengthSettings(**given)


def test_a_model_without_a_next_token_is_refused():
    layers = Encoder(dim=16, depth=1, heads=2, attn_dim_head=8)
    model = TransformerWrapper(num_tokens=37, max_seq_len=29, attn_layers=layers)
    with pytest.raises(ArgumentError, match="does not predict the next token"):
        evaluated(model, 29)


@pytest.mark.parametrize("position", ["rope", "alibi", "t5"])
def test_the_model_trains_on_as_if_it_had_not_been_evaluated(position: str):
    ids = torch.from_numpy(TOKENS[None, :50].astype(np.int64))
    gradients = []
    for evaluate_first in (False, True):
        model = toy(position, torch.float32).train()
        if evaluate_first:
            evaluated(model, 29, 60)
        assert all(part.training for part in model.modules())
        torch.manual_seed(3)
        model(ids).square().sum().backward()
        gradients.append(model.token_emb.weight.grad)
    assert torch.equal(*gradients)  # type: ignore[arg-type]


def test_logits_are_computed_for_the_scored_tokens_alone(monkeypatch: pytest.MonkeyPatch):
    shapes, losses = [], TransformerWrapper.token_losses

    def counted(self: TransformerWrapper, x: torch.Tensor, *others: Any) -> torch.Tensor:
        shapes.append(tuple(x.shape[:2]))
        return losses(self, x, *others)

    monkeypatch.setattr(TransformerWrapper, "token_losses", counted)
    loss_by_length(toy(), TOKENS, LengthSettings((20, 60), targets=5, windows=4))
    assert shapes == [(4, 5), (4, 5)]
