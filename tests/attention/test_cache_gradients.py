"""Gradients through cached chunks are those of one pass, and caches go from one autograd mode to another."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.attention.test_cache_failures import CACHEABLE, KINDS
from tests.support.rounding import rounding
from tests.support.small_models import decoder, ids
from x_positional import TransformerWrapper

Gradients = dict[str, Tensor]
MODES = {"grad": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}


def gradients(model: TransformerWrapper, loss: Tensor) -> Gradients:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def check_same(got: Gradients, want: Gradients) -> None:
    assert got.keys() == want.keys()
    for name, grad in want.items():
        bound = max(rounding(grad, 8192), 1e-12)
        torch.testing.assert_close(got[name], grad, atol=bound, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


def weighted(logits: Tensor) -> Tensor:
    """A loss to which every logit contributes differently."""
    generator = torch.Generator().manual_seed(0)
    return (logits * torch.randn(logits.shape, generator=generator, dtype=logits.dtype)).sum()


def check_chunks(model: TransformerWrapper, make: Callable[[TransformerWrapper], Any], padded: bool) -> None:
    """Chunks of several sizes, one token among them, and a loss over all of them."""
    tokens, mask = ids(3, 12), None
    if padded:
        mask = torch.ones(3, 12, dtype=torch.bool)
        mask[0, 0], mask[2, 4:6] = False, False
    cache, parts, at = make(model), [], 0
    for chunk in (4, 1, 3, 1, 3):
        cut = slice(at, at + chunk)
        parts.append(model(tokens[:, cut], mask=None if mask is None else mask[:, cut], cache=cache))
        at += chunk
    keep = torch.ones(3, 12, dtype=torch.bool) if mask is None else mask
    got = gradients(model, weighted(torch.cat(parts, 1) * keep[..., None]))
    check_same(got, gradients(model, weighted(model(tokens, mask=mask) * keep[..., None])))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("scheme", CACHEABLE)
def test_every_scheme(scheme: str, padded: bool) -> None:
    check_chunks(decoder(scheme).double(), lambda m: m.new_cache(3), padded)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "sliding"])
def test_every_kind_of_cache(kind: str, padded: bool) -> None:
    flags, make = KINDS[kind]
    check_chunks(decoder(**{"position": "rope", **flags}).double(), make, padded)


@pytest.mark.parametrize("backend", ["eager", "blockwise", "sdpa"])
def test_every_backend(backend: str) -> None:
    check_chunks(decoder("alibi", backend=backend).double(), lambda m: m.new_cache(3), False)


def test_a_prefix_of_embeddings_can_be_tuned() -> None:
    """Prefix tuning: the layers read learned embeddings into the cache, the model reads tokens after it."""
    model, tokens = decoder("rope").double(), ids(2, 7)
    model.requires_grad_(False)
    prefix = torch.randn(2, 3, 24, dtype=torch.float64, requires_grad=True)
    cache = model.new_cache(2)
    model.attn_layers(prefix, cache=cache)
    logits = torch.cat([model(tokens[:, :4], cache=cache), model(tokens[:, 4:], cache=cache)], 1)
    whole = model.attn_layers(torch.cat([prefix, model.token_emb(tokens)], 1))
    want = model.logits(whole[:, 3:])
    (expected,) = torch.autograd.grad(weighted(want), prefix)
    (got,) = torch.autograd.grad(weighted(logits), prefix)
    assert expected.abs().min() > 0
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-9)


def test_gradients_of_a_context() -> None:
    model, tokens = decoder(cross_attend=True).double(), ids(2, 6)
    context = torch.randn(2, 5, 24, dtype=torch.float64, requires_grad=True)
    cache = model.new_cache(2)
    parts = [model(tokens[:, :2], context=context, cache=cache), model(tokens[:, 2:], cache=cache)]
    (got,) = torch.autograd.grad(weighted(torch.cat(parts, 1)), context)
    (want,) = torch.autograd.grad(weighted(model(tokens, context=context)), context)
    torch.testing.assert_close(got, want, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("window", [None, 5])
def test_segments_with_a_detached_cache(window: int | None) -> None:
    """Each segment's gradient is that of a pass in which the keys of earlier segments are constants."""
    model, tokens = decoder("rope", window=window).double(), ids(2, 12)
    cache, got = model.new_cache(2), []
    for part in tokens.split(4, 1):
        got.append(gradients(model, weighted(model(part, cache=cache))))
        assert cache.detach() is cache
    with torch.no_grad():
        prefix = model.new_cache(2)
        model(tokens[:, :8], cache=prefix)
    check_same(got[2], gradients(model, weighted(model(tokens[:, 8:], cache=prefix))))
    check_same(got[0], gradients(model, weighted(model(tokens[:, :4]))))
    with torch.no_grad():
        torch.testing.assert_close(
            model(tokens[:, :1], cache=cache), model(torch.cat([tokens, tokens[:, :1]], 1))[:, -1:]
        )


@pytest.mark.parametrize("padded", [False, True])
def test_going_on_without_gradients_leaves_the_graph_intact(padded: bool) -> None:
    """Backward comes after later chunks were written, and after the cache was detached or reordered."""
    model, tokens = decoder("rope", window=5).double(), ids(2, 12)
    mask = None
    if padded:
        mask = torch.ones(2, 7, dtype=torch.bool)
        mask[0, 0] = False
    want = gradients(model, weighted(model(tokens[:, :7], mask=mask)[:, 1:]))
    cache = model.new_cache(2)
    first = model(tokens[:, :7], mask=mask, cache=cache)
    cache.detach()
    with torch.no_grad():
        for part in tokens[:, 7:11].split(1, 1):
            model(part, cache=cache)
        cache.reorder([1, 0])
        model(tokens[:, 11:], cache=cache)
    check_same(gradients(model, weighted(first[:, 1:])), want)


@pytest.mark.parametrize("kind", ["growing", "ring", "keep_first", "latent ring"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    "order", [("inference", "no_grad"), ("no_grad", "inference"), ("inference", "grad"), ("grad", "inference")]
)
def test_modes_alternate(kind: str, padded: bool, order: tuple[str, str]) -> None:
    flags, make = KINDS[kind]
    model, tokens = decoder(**{"position": "rope", **flags}), ids(3, 12)
    mask = torch.ones(3, 12, dtype=torch.bool)
    mask[1, 0] = not padded
    with torch.no_grad():
        full = model(tokens, mask=mask)
    cache, at = make(model), 0
    for turn, chunk in enumerate((5, 1, 1, 3, 2)):
        with MODES[order[turn % 2]]():
            part = slice(at, at + chunk)
            got = model(tokens[:, part], mask=mask[:, part], cache=cache)
        keep = mask[:, part]
        assert (got - full[:, part])[keep].abs().max().item() < rounding(full)
        at += chunk


def test_a_context_read_in_inference_mode() -> None:
    model, tokens, context = decoder(cross_attend=True), ids(2, 6), torch.randn(2, 4, 24)
    with torch.inference_mode():
        cache = model.new_cache(2)
        model(tokens[:, :2], context=context, cache=cache)
    loss = weighted(model(tokens[:, 2:], cache=cache))
    assert torch.isfinite(gradients(model, loss)["attn_layers.blocks.0.attn.to_qkv.weight"]).all()
