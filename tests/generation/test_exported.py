"""export_step: the decoding step as a program of torch.export, and through ONNX Runtime, equals the eager step."""

import copy
import io
import re

import pytest
import torch
from torch.utils import _pytree as pytree

from tests.support.doc_pages import ROOT
from tests.support.doors import onnx_session
from tests.support.draws import draws
from tests.support.generation_models import SCHEMES, equal, ids, language_model
from tests.support.length_scalings import dynamic
from x_positional import ExportedStep, export_step
from x_positional.attention.cache import KVCache
from x_positional.errors import CacheError, InputError
from x_positional.testing.expect import rounding_bound

MAX_LEN = 16
PADDED = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])


def same_steps(step: ExportedStep, net, cache: KVCache, count: int = 4) -> None:
    """The program and the eager step go on from a cache, token by token; then the cache goes on with several tokens."""
    run, state, eager = step.program.module(), step.state(cache), cache.copy()
    for token in ids(cache.batch_size, count, seed=5).split(1, 1):
        logits, state = run(token[:, 0], state)
        equal(logits, net(token, cache=eager)[:, 0])
    more = ids(cache.batch_size, 2, seed=6)
    equal(net(more, cache=step.cache(state)), net(more, cache=eager))


@pytest.mark.parametrize("scheme", draws(["forgetting"], SCHEMES))
@torch.no_grad()
def test_a_program_equals_the_eager_step_at_every_length(scheme: str) -> None:
    net = language_model(scheme, depth=1)
    step, tokens = export_step(net, net.new_cache(2, max_len=MAX_LEN)), ids(2, MAX_LEN)
    run, state, want = step.program.module(), step.state(net.new_cache(2, max_len=MAX_LEN)), net(tokens)
    for i in range(MAX_LEN):
        before = {name: t.clone() for name, t in state.items()}
        logits, after = run(tokens[:, i], state)
        equal(logits, want[:, i])
        assert all(torch.equal(state[name], t) for name, t in before.items())
        state = after
    for _ in range(2):  # both rows are full, and stay so
        logits, state = run(tokens[:, 0], state)
        assert logits.isnan().all()
    prefix = net.new_cache(2, max_len=MAX_LEN)
    net(tokens[:, :5], mask=PADDED, cache=prefix)
    same_steps(step, net, prefix)


KINDS = {
    "window": ({"window": 4}, {}),
    "int8": ({}, {"dtype": torch.int8}),
    "keep_first": ({"window": 4, "keep_first": 2}, {"dtype": torch.int8}),
    "chunk": ({"chunk": 4}, {}),
    "pattern": ({"pattern": [{"window": 4}, {}], "depth": 2}, {}),
    "eager": ({"backend": "eager"}, {}),
}


@pytest.mark.parametrize("kind", draws(["keep_first"], KINDS))
@torch.no_grad()
def test_every_kind_of_cache_is_exported(kind: str) -> None:
    flags, options = KINDS[kind]
    net = language_model(**{"depth": 1, **flags})
    cache = net.new_cache(2, max_len=MAX_LEN, **options)
    net(ids(2, 5), mask=PADDED, cache=cache)
    same_steps(export_step(net, cache), net, cache, 8)


@torch.no_grad()
def test_contexts_and_positions_are_part_of_the_state() -> None:
    net = language_model(depth=1, cross_attend=True)
    context = torch.randn(2, 5, 26, generator=torch.Generator().manual_seed(0)).double()
    cache = net.new_cache(2, max_len=MAX_LEN)
    with pytest.raises(InputError, match="the cache has not read its context yet"):
        export_step(net, cache)
    given = {"context_mask": PADDED, "context_positions": torch.arange(5), "positions": 3 * torch.arange(4)}
    net(ids(2, 4), context=context, cache=cache, **given)
    step = export_step(net, cache)
    assert {"following", "positions_0", "context_keys_0", "context_mask"} <= set(step.state(cache))
    same_steps(step, net, cache)


@torch.no_grad()
def test_a_program_is_saved_and_its_rows_are_selected() -> None:
    net, tokens = language_model(depth=1), ids(3, 8)
    cache = net.new_cache(3, max_len=MAX_LEN)
    net(tokens[:, :6], cache=cache)
    step, file = export_step(net, cache), io.BytesIO()
    torch.export.save(step.program, file)
    file.seek(0)
    run, rows = torch.export.load(file).module(), [2, 0, 0]
    state = pytree.tree_map(lambda t: t[rows], step.state(cache))
    equal(run(tokens[rows, 6], state)[0], net(tokens[rows, :7])[:, -1])


@torch.no_grad()
def test_what_cannot_be_exported_is_refused() -> None:
    net = language_model(backend="flex").train()
    with pytest.raises(InputError) as refused:
        export_step(net, net.new_cache(2))
    for reason in ("in training mode", "a growing cache has no size", "backend 'flex'"):
        assert reason in str(refused.value)
    table = language_model("absolute", depth=1)
    with pytest.raises(InputError, match="max_len=60 exceeds the 48 positions of the model"):
        export_step(table, table.new_cache(1, max_len=60))
    net = language_model(depth=1)
    packed = net.new_cache(1, max_len=MAX_LEN)
    net(ids(1, 4), document_ids=torch.tensor([[0, 0, 1, 1]]), cache=packed)
    with pytest.raises(InputError, match="packed documents"):
        export_step(net, packed)
    step = export_step(net, net.new_cache(2, max_len=MAX_LEN))
    with pytest.raises(
        CacheError, match=r"keys_0 is int8 \[2, 1, 17, 10\] here, and float64 \[2, 1, 17, 10\] in the program"
    ):
        step.state(net.new_cache(2, max_len=MAX_LEN, dtype=torch.int8))
    with pytest.raises(CacheError, match="batch_size=3, but the input has 2 rows"):
        step.state(net.new_cache(3, max_len=MAX_LEN))
    with pytest.raises(CacheError, match="made for another model"):
        step.state(table.new_cache(2, max_len=MAX_LEN))


NOT_IN_ONNX = {"cable": "aten.sort", "cope": "aten.sort", "forgetting": "aten.sort"}
"""Schemes whose step has an operator that the converter of torch.onnx lacks, and which."""


def terms(length: int) -> int:
    """Additions that a logit goes through, as `testing.Subject.terms` counts them: projections, scores, values, feedforward."""
    return 26 + 10 + length + 3 * 12 + 26 + 4 * 26 + 26


@pytest.mark.slow
@pytest.mark.parametrize("scheme", draws(["rope"], SCHEMES))
@torch.no_grad()
def test_onnx_runtime_gives_the_logits_of_the_eager_step(scheme: str) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed, so exported steps are not run through ONNX")
    exact = language_model(scheme, depth=1)
    net = copy.deepcopy(exact).float()
    cache = net.new_cache(2, max_len=MAX_LEN)
    net(ids(2, 5), mask=PADDED, cache=cache)
    step = export_step(net, cache)
    feed = {name: t.numpy() for name, t in step.state(cache).items()}
    if scheme in NOT_IN_ONNX:
        with pytest.raises(Exception, match=NOT_IN_ONNX[scheme]):
            onnx_session(step, list(feed))
        return
    session, tokens = onnx_session(step, list(feed)), ids(2, 11, seed=5)
    narrow, mask = [], PADDED
    for token in tokens.split(1, 1):
        logits, *new = session.run(None, {"token": token[:, 0].numpy(), **feed})
        feed = dict(zip(feed, new, strict=True))
        narrow.append(torch.from_numpy(logits))
        mask = torch.cat([mask, torch.ones(2, 1, dtype=torch.bool)], 1)
    whole = torch.cat([ids(2, 5), tokens], 1)
    want, eager = exact(whole, mask=mask)[:, 5:], net(whole, mask=mask)[:, 5:]
    bound = rounding_bound(eager, want, terms(MAX_LEN))
    equal(torch.stack(narrow, 1), eager, bound)


def test_the_page_lists_what_goes_through_onnx() -> None:
    page = (ROOT / "docs/how-to/export-a-decoding-step.md").read_text(encoding="utf-8")
    rows = [row.split("|")[1:-1] for row in re.findall(r"^\|.*\|$", page, re.MULTILINE)[2:]]
    found = {name: cells[1].strip() for cells in rows for name in re.findall(r"`(\w+)`", cells[0])}
    assert found.keys() == set(SCHEMES)
    assert {name for name, verdict in found.items() if verdict != "yes"} == NOT_IN_ONNX.keys()


@torch.no_grad()
def test_every_tensor_of_the_state_has_the_rows_of_the_cache() -> None:
    net = language_model({"kind": "rope", "scaling": dynamic()}, depth=1)
    cache = net.new_cache(2, max_len=MAX_LEN, final_lengths=torch.tensor([60]))
    step = export_step(net, cache)
    assert {len(t) for t in step.state(cache).values()} == {2}
    same_steps(step, net, cache)
