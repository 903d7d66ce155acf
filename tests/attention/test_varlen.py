"""The varlen backend: packing and unpacking against eager attention, with a float64 stand-in for torch's CUDA kernel; on
CUDA, where there is one, the kernel itself against sdpa; and all that is refused, before a kernel runs."""

import functools
import itertools

import pytest
import torch
from torch import Tensor

from tests.support.draws import in_turns
from tests.support.generation_models import GREEDY, ids, perturbed, ragged
from x_positional import (
    AutoregressiveWrapper,
    ContinuousTransformerWrapper,
    CrossAttender,
    Decoder,
    Encoder,
    TransformerWrapper,
    check,
)
from x_positional.attention.backends import BACKENDS, ScoreOps, choose
from x_positional.attention.backends.varlen import Packed, Varlen, pack, torch_kernel, varlen_problems
from x_positional.errors import BackendError, IncompatibleConfig
from x_positional.schemes.base import AttentionContext, AttentionWindow, Bias

pytestmark = pytest.mark.skipif(torch_kernel() is None, reason="this torch has no varlen_attn, so no model is built")
on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="runs torch's kernel, which needs a CUDA device")
SIZES = {"dim": 26, "depth": 2, "heads": 6, "head_dim": 8}
CALLS: list[dict[str, object]] = []


def stand_in(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    return_aux: object = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Tensor:
    """torch 2.13's varlen_attn by its documentation, one text at a time: [P H D], [P G D], [P G D] -> [P H D]."""
    (left, right), ends, out = window_size, cu_seq_q.tolist(), []
    assert cu_seq_q.dtype == torch.int32
    assert ends == cu_seq_k.tolist()
    assert (ends[0], ends[-1]) == (0, len(query)) == (0, len(key))
    sizes = [stop - start for start, stop in itertools.pairwise(ends)]
    assert max(sizes) == max_q == max_k
    assert min(sizes) > 0
    assert enable_gqa or query.shape[1] == key.shape[1]
    CALLS.append({"texts": sizes, "window": window_size, "kv_heads": key.shape[1]})
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    for start, stop in itertools.pairwise(ends):
        q, k, v = (x[start:stop].transpose(0, 1) for x in (query, key, value))
        distance = torch.arange(stop - start)[:, None] - torch.arange(stop - start)
        hidden = (distance > left if left >= 0 else distance > stop) | (
            -distance > right if right >= 0 else distance > stop
        )
        scores = (q @ k.mT * scale).masked_fill(hidden, float("-inf"))
        out.append((scores.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(out)


def older(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    return_aux: object = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    """The same from before it knew of shared key heads."""
    return stand_in(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window_size=window_size)


@pytest.fixture(params=[stand_in, older])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BACKENDS["varlen"], "kernel", request.param)
    CALLS.clear()


def model(backend: str, kind: type = Decoder, **flags: object) -> TransformerWrapper:
    torch.manual_seed(0)
    layers = kind(**{**SIZES, "position": "rope", "backend": backend, **flags})
    return perturbed(TransformerWrapper(num_tokens=29, max_seq_len=48, attn_layers=layers))


def both(flags: dict[str, object], call: dict[str, Tensor]) -> tuple[Tensor, Tensor, list[dict[str, object]]]:
    """Logits of eager and of varlen; and what the kernel was given."""
    want = model("eager", **flags)(**call)
    CALLS.clear()
    return want, model("varlen", **flags)(**call), list(CALLS)


DOCUMENTS = torch.tensor([[4] * 3 + [9] * 7 + [-1] * 3, [0] * 13, [0] + [1] * 11 + [2]])
PADDED = torch.arange(13) < torch.tensor([[13], [9], [12]])


@torch.no_grad()
@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("call", [{}, {"mask": PADDED}, {"document_ids": DOCUMENTS}])
def test_attention_maps_are_those_of_eager(call: dict[str, Tensor]):
    tokens = ids(3, 13)
    out, maps = model("varlen", kv_heads=2, window=6)(tokens, return_attention=True, **call)
    want, same = model("eager", kv_heads=2, window=6)(tokens, return_attention=True, **call)
    torch.testing.assert_close(torch.stack(maps), torch.stack(same), atol=1e-12, rtol=0)
    real = call.get("mask", torch.ones_like(tokens, dtype=torch.bool))
    torch.testing.assert_close(out[real], want[real], atol=1e-11, rtol=0)


LEFT = torch.arange(13) >= torch.tensor([[0], [12], [5]])
HOLES = torch.tensor([[True] * 13, [True, False, True] * 4 + [False], [False] * 6 + [True] * 7])
CASES: dict[str, tuple[dict[str, Tensor], list[int]]] = {
    "plain": ({}, [13, 13, 13]),
    "documents": ({"document_ids": DOCUMENTS}, [3, 7, 3, 13, 1, 11, 1]),
    "padding": ({"mask": PADDED}, [13, 9, 12]),
    "left padding": ({"mask": LEFT}, [13, 1, 8]),
    "documents and padding": ({"document_ids": DOCUMENTS, "mask": PADDED}, [3, 7, 3, 9, 1, 11]),
    "documents and holes": ({"document_ids": DOCUMENTS, "mask": HOLES}, [3, 7, 3, 8, 6, 1]),
    "a row of padding": ({"mask": PADDED & torch.tensor([[True], [False], [True]])}, [13, 12]),
    "positions": ({"positions": torch.arange(13).flip(0) * 2 + 1}, [13, 13, 13]),
}


@pytest.mark.parametrize(
    ("case", "window", "kind", "kv_heads"), in_turns([*CASES], [None, 1, 4, 13], [Decoder, Encoder], [6, 2, 1])
)
@torch.no_grad()
def test_as_eager_attention(kernel: None, case: str, window: int | None, kind: type, kv_heads: int) -> None:
    call, texts = CASES[case]
    want, got, calls = both({"window": window, "kind": kind, "kv_heads": kv_heads}, {"tokens": ids(3, 13), **call})
    keep = call.get("mask", torch.ones(3, 13, dtype=torch.bool))
    torch.testing.assert_close(got[keep], want[keep], atol=1e-12, rtol=0)
    assert got.isfinite().all()
    assert [c["texts"] for c in calls] == [texts] * SIZES["depth"]
    side = -1 if window is None else window - 1
    assert {c["window"] for c in calls} == {(side, 0 if kind is Decoder else side)}
    told = BACKENDS["varlen"].kernel is stand_in
    assert {c["kv_heads"] for c in calls} == {kv_heads if told else SIZES["heads"]}


@pytest.mark.parametrize("call", [c for c, _ in CASES.values()], ids=CASES)
def test_gradients(kernel: None, call: dict[str, Tensor]) -> None:
    """Of every parameter, through the way into one line and back."""
    weights = torch.randn(3, 13, 29, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    weights = weights * call.get("mask", torch.ones(3, 13, dtype=torch.bool))[..., None]
    found = []
    for backend in ("eager", "varlen"):
        net = model(backend, kv_heads=2, window=5)
        (net(ids(3, 13), **call) * weights).sum().backward()
        found.append({name: p.grad for name, p in net.named_parameters()})
    assert CALLS
    for name, want in found[0].items():
        torch.testing.assert_close(found[1][name], want, atol=1e-10, rtol=0, msg=name)


@torch.no_grad()
def test_padding_alone(kernel: None) -> None:
    got = model("varlen")(ids(2, 5), mask=torch.zeros(2, 5, dtype=torch.bool), checked=True)
    assert got.isfinite().all()
    assert not CALLS


@torch.no_grad()
def test_a_document_that_comes_back_is_one_document(kernel: None) -> None:
    """The kernel knows one stretch a text, so sdpa runs it."""
    back = torch.tensor([[0, 0, 1, 1, 0, 0, 2]])
    want, got, calls = both({}, {"tokens": ids(1, 7), "document_ids": back})
    torch.testing.assert_close(got, want, atol=1e-12, rtol=0)
    assert not calls
    want, got, calls = both({}, {"tokens": ids(2, 7), "document_ids": torch.tensor([[0] * 7, [1] * 3 + [0] * 4])})
    torch.testing.assert_close(got, want, atol=1e-12, rtol=0)
    assert calls[0]["texts"] == [7, 3, 4]  # a name may come again in another row


@torch.no_grad()
def test_decoding_with_a_cache(kernel: None) -> None:
    """A cache holds more keys than there are queries: sdpa runs it, and the numbers are those of whole passes."""
    net, tokens = model("varlen", kv_heads=2, window=6), ids(2, 15)
    want, cache = net(tokens), net.new_cache(2)
    calls = len(CALLS)
    assert calls == SIZES["depth"]
    got = torch.cat([net(part, cache=cache) for part in tokens.split([5, 1, 7, 2], 1)], 1)
    torch.testing.assert_close(got, want, atol=1e-12, rtol=0)
    assert len(CALLS) == calls
    prompts = ragged(3, 9, 5)
    found = AutoregressiveWrapper(net).generate(prompts, 6, **GREEDY)
    assert len(CALLS) == calls
    assert torch.equal(found, AutoregressiveWrapper(net).generate(prompts, 6, cache_kv=False, **GREEDY))
    assert len(CALLS) > calls
    assert torch.equal(
        found, AutoregressiveWrapper(model("eager", kv_heads=2, window=6)).generate(prompts, 6, **GREEDY)
    )
    streaming = net.new_cache(2, window=5, keep_first=2)
    assert torch.cat([net(part, cache=streaming) for part in tokens.split(4, 1)], 1).isfinite().all()


@torch.no_grad()
def test_cross_attention_and_continuous_inputs(kernel: None) -> None:
    context = torch.randn(2, 7, 26, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(7) < torch.tensor([[7], [4]])
    flags, call = {"cross_attend": True}, {"tokens": ids(2, 7), "context": context, "context_mask": mask}
    want, got, calls = both(flags, call)
    torch.testing.assert_close(got, want, atol=1e-12, rtol=0)
    assert len(calls) == SIZES["depth"]  # self-attention alone
    x, found = torch.randn(2, 9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), []
    for backend in ("eager", "varlen"):
        torch.manual_seed(0)
        layers = Decoder(**SIZES, position="rope", backend=backend)
        net = perturbed(ContinuousTransformerWrapper(dim_in=3, dim_out=2, max_seq_len=20, attn_layers=layers))
        found.append(net(x, seq_lens=[4, 5]))
    torch.testing.assert_close(found[1], found[0], atol=1e-12, rtol=0)


def context_of(index: Tensor, documents: Tensor | None, **more: object) -> AttentionContext:
    return AttentionContext(
        q_index=index,
        kv_index=index,
        q_positions=index,
        kv_positions=index,
        batch=2,
        heads=2,
        span=4,
        causal=True,
        q_documents=documents,
        kv_documents=documents,
        **more,
    )


def test_where_texts_start() -> None:
    documents = torch.tensor([[7, 7, 3, 3], [3, 3, 3, 5]])
    found = pack(context_of(torch.arange(4)[None], documents, ordered=True))
    assert found is not None
    assert (found.offsets.tolist(), found.longest, found.slots) == ([0, 2, 4, 7, 8], 3, None)
    found = pack(context_of(torch.tensor([[0, -1, 1, 2], [-1, 0, 1, -1]]), documents))
    assert found is not None
    assert found.slots is not None
    assert (found.offsets.tolist(), found.longest, found.slots.tolist()) == ([0, 1, 3, 5], 2, [0, 2, 3, 5, 6])
    assert pack(context_of(torch.arange(4)[None], torch.tensor([[1, 2, 1, 1]] * 2), ordered=True)) is None


REFUSED = {
    "a bias": ({"position": "alibi"}, "the scheme adds a pointwise bias"),
    "a bias beside rope": ({"position": ["rope", "t5"]}, "the scheme adds a pointwise bias"),
    "content": ({"position": "forgetting"}, "the scheme adds a pointwise bias"),
    "whole rows": ({"position": "cope"}, "the scheme needs whole rows"),
    "softcap": ({"attn": {"softcap": 30.0}}, "does not support a soft cap"),
    "sinks": ({"attn": {"sinks": True}}, "does not support attention sinks"),
    "dropout": ({"attn": {"dropout": 0.1}}, "does not support dropout"),
    "chunk": ({"chunk": 4}, "supports windows, not chunks"),
    "a chunk in a pattern": ({"pattern": [{"chunk": 4}, {}]}, "supports windows, not chunks"),
    "first tokens": ({"window": 4, "keep_first": 1}, "does not support keep_first"),
    "wide keys": ({"position": "polar"}, "equal head dims of q, k and v, not 16 and 8"),
    "an odd width": ({"head_dim": 12}, "a multiple of 8, not 12"),
    "a large width": ({"head_dim": 264}, "head dims up to 256, not 264"),
}


@pytest.mark.parametrize(("flags", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(flags: dict[str, object], reason: str) -> None:
    report = check(**{**SIZES, "num_tokens": 29, "max_seq_len": 48, "position": "rope", "backend": "varlen", **flags})
    assert any(reason in error and "backend='varlen' does not support this" in error for error in report.errors)
    assert all("Use " in error for error in report.errors)
    with pytest.raises(IncompatibleConfig, match=reason):
        model("varlen", **flags)
    assert check(**{**SIZES, "num_tokens": 29, "max_seq_len": 48, "position": "rope", **flags}).ok


def test_what_the_validator_says_of_device_and_dtype() -> None:
    layers = Decoder(**SIZES, position="rope", backend="varlen")
    assert check(layers).backend == "varlen"
    assert check(layers, device="cuda", dtype="bfloat16", train=True).ok
    errors = check(layers, device="cpu", dtype="float32").errors
    assert len(errors) == 1
    assert "it runs on CUDA, and the device is cpu; it supports float16 and bfloat16, not float32. Use " in errors[0]
    assert "cross_attender has none" in check(kind="cross_attender", **SIZES, backend="varlen").errors[0]
    with pytest.raises(IncompatibleConfig, match="cross_attender has none"):
        CrossAttender(**SIZES, backend="varlen")(torch.zeros(1, 2, 26), context=torch.zeros(1, 2, 26))
    assert choose("auto", False, "fused").name == choose("auto", True, "fused").name == "sdpa"


@torch.no_grad()
def test_without_cuda_a_whole_pass_is_refused_and_the_rest_is_not() -> None:
    """Nothing is substituted here: torch's own kernel is asked for."""
    net, tokens = model("varlen"), ids(2, 5)
    with pytest.raises(BackendError, match=r"the device is cpu; it supports float16 and bfloat16, not float64\. Use"):
        net(tokens)
    want = model("eager")(tokens)
    torch.testing.assert_close(net(tokens, cache=net.new_cache(2)), want, atol=1e-12, rtol=0)


def test_scores_that_the_kernel_would_not_change_are_refused(kernel: None) -> None:
    """Whoever calls the backend without the validator is told too."""
    backend, q = BACKENDS["varlen"], torch.randn(2, 2, 4, 8, dtype=torch.float64)
    ctx = context_of(torch.arange(4)[None], None, ordered=True)
    prepared = backend.prepare(ctx, None, q.dtype)
    assert isinstance(prepared.native, Packed)
    for ops in (
        ScoreOps(scale=1.0, softcap=3.0),
        ScoreOps(scale=1.0, sinks=torch.zeros(2)),
        ScoreOps(scale=1.0, dropout=0.1),
        ScoreOps(scale=1.0, transform=lambda scores, visible, q, ctx: scores),
    ):
        with pytest.raises(BackendError, match="backend='varlen' does not support this"):
            backend.attend(q, q, q, prepared, ops)
    assert not CALLS
    for window in (AttentionWindow(chunk=2), AttentionWindow(size=2, keep_first=1)):
        with pytest.raises(BackendError, match="not chunks" if window.chunk else "does not support keep_first"):
            backend.prepare(context_of(torch.arange(4)[None], None, ordered=True, window=window), None, q.dtype)
    with pytest.raises(BackendError, match="does not support schemes that change scores"):
        backend.prepare(ctx, Bias(lambda b, h, i, j: 0.0 * (b + h + i + j), 1, 2), q.dtype)


def test_facts_of_the_kernel() -> None:
    assert varlen_problems("cuda", torch.bfloat16, 64, 64) == []
    assert varlen_problems(None, None, 256, 256) == []
    assert len(varlen_problems("cpu", torch.float32, 260, 64)) == 5
    assert Varlen(stand_in).kernel is stand_in
    assert Varlen().kernel is None


@functools.cache
def half_model(backend: str, window: int | None, kv_heads: int, kind: type) -> TransformerWrapper:
    net = model(backend, window=window, kv_heads=kv_heads, kind=kind, head_dim=32)
    return net.to("cuda", torch.bfloat16)


@pytest.mark.cuda
@on_cuda
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("window", [None, 1, 4])
@pytest.mark.parametrize("kind", [Decoder, Encoder])
@pytest.mark.parametrize("kv_heads", [6, 2])
def test_on_cuda_as_sdpa(case: str, window: int | None, kind: type, kv_heads: int) -> None:
    """In bfloat16, whose rounding of logits of about 1 is 4e-3; and the gradient of the embeddings."""
    call = {name: value.cuda() for name, value in CASES[case][0].items()}
    tokens, found = ids(3, 13).cuda(), []
    keep = call.get("mask", torch.ones(3, 13, dtype=torch.bool, device="cuda"))
    for backend in ("sdpa", "varlen"):
        net = half_model(backend, window, kv_heads, kind)
        net.zero_grad()
        logits = net(tokens, **call)[keep].float()
        logits.square().mean().backward()
        found.append((logits.detach(), net.token_emb.weight.grad.float()))
    for got, want in zip(found[1], found[0], strict=True):
        assert (got - want).norm() < 2e-2 * want.norm()


@pytest.mark.cuda
@on_cuda
@torch.no_grad()
def test_on_cuda_decoding_and_float32() -> None:
    net, tokens = half_model("varlen", 4, 2, Decoder), ids(2, 12).cuda()
    cache, whole = net.new_cache(2), net(tokens).float()
    parts = torch.cat([net(part, cache=cache) for part in tokens.split([5, 1, 6], 1)], 1).float()
    assert (parts - whole).norm() < 2e-2 * whole.norm()
    with pytest.raises(BackendError, match="float16 and bfloat16, not float32"):
        model("varlen").float().cuda()(tokens)
