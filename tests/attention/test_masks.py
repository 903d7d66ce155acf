"""attention_mask and prefix_len: real backends against a float64 pass written out, every cache kind, compiling, and refusals.

B batch, T tokens.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.naive_attention import naive, one_layer, random_qkv
from x_positional import ContinuousTransformerWrapper, CrossAttender, Decoder, Encoder, TransformerWrapper
from x_positional.errors import CacheError, InputError, PositionError
from x_positional.models.autoregressive import AutoregressiveWrapper
from x_positional.models.language import TokenEncoder
from x_positional.schemes.registry import scheme_config

T, VOCAB = 13, 29
BACKENDS = ("eager", "blockwise", "sdpa", "flex")


def model(kind: type = Decoder, *, seed: int = 0, **flags: Any) -> TransformerWrapper:
    torch.manual_seed(seed)
    flags = {"position": "rope", "attn_dim_head": 14, **flags}
    layers = kind(dim=22, depth=2, heads=3, attn_kv_heads=1, **flags)
    wrapper = TransformerWrapper if kind is Decoder else TokenEncoder
    net = wrapper(num_tokens=VOCAB, max_seq_len=256, attn_layers=layers).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return net


def tokens(length: int = T, batch: int = 3) -> Tensor:
    return torch.randint(0, VOCAB, (batch, length), generator=torch.Generator().manual_seed(1))


def random_pairs(length: int = T, batch: int = 3) -> Tensor:
    pairs = torch.rand(batch, length, length, generator=torch.Generator().manual_seed(2)) < 0.5
    return pairs | torch.eye(length, dtype=torch.bool)


def of_prefix(prefixes: list[int], length: int = T) -> Tensor:
    rows = [[[k <= q or max(q, k) < n for k in range(length)] for q in range(length)] for n in prefixes]
    return torch.tensor(rows)


def close(got: Tensor, want: Tensor, within: float = 2e-5) -> None:
    assert got.isfinite().all()
    assert (got - want).abs().max() <= within


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scheme", ["rope", "alibi"])
@torch.no_grad()
def test_backends_against_plain_floats(scheme: str, backend: str):
    """Each visible key in a loop of Python floats."""
    layers = one_layer(scheme_config(scheme), 2, 6, backend=backend)
    qkv, pairs = random_qkv(2, 6), random_pairs(9, 2)
    x = torch.cat([t.transpose(1, 2).flatten(-2) for t in qkv], dim=-1)
    got = (layers(x, attention_mask=pairs) - x)[..., :12].unflatten(-1, (2, 6)).transpose(1, 2)
    shown = one_layer(scheme_config(scheme), 2, 6, causal=False)
    biases = scores_of(shown, qkv, x)

    def logits(query: Any, keys: Any, seen: list[int], m: int, h: int, b: int) -> list[float]:
        return [biases[b, h, m, n].item() if pairs[b, m, n] else -1e9 for n in seen]

    close(got, naive(qkv, logits, causal=False), 1e-12)


def scores_of(layers: Any, qkv: Any, x: Tensor) -> Tensor:
    """[B H T S] the scores of a bidirectional layer, from its attention over values that are one-hot."""
    scheme = layers.kinds[0].scheme
    layout = layers.layout(x.shape[0], x.shape[1], x.device)
    q, k, _ = qkv
    tables = scheme.tables(layout.positions)
    q, k = scheme.rotate_q(q, tables), scheme.rotate_k(k, tables)
    scores = q @ k.mT * q.shape[-1] ** -0.5
    distance = torch.arange(9)[:, None] - torch.arange(9)
    if scheme.overrides("bias"):
        scores = scores + scheme.of_distance(distance)
    return scores


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("flags", [{}, {"position": "alibi"}, {"window": 5}])
@torch.no_grad()
def test_backends_padded_and_cached(flags: dict[str, Any], backend: str):
    """A prefix equals its mask of pairs, and each row alone; a cache continues it."""
    net, ids = model(backend=backend, **flags), tokens()
    want = model(backend="eager", **flags)(ids, attention_mask=of_prefix([5, 1, 9]))
    close(net(ids, prefix_len=[5, 1, 9]), want)
    keep = torch.ones(3, T + 3, dtype=torch.bool)
    keep[:, :3] = False
    wide = torch.cat([ids[:, :3], ids], 1)
    close(net(wide, mask=keep, prefix_len=torch.tensor([5, 1, 9]))[:, 3:], want)
    cache = net.new_cache(3)
    parts = [net(wide[:, :13], attention_mask=keep[:, :13].long(), prefix_len=[5, 1, 9], cache=cache)[:, 3:]]
    parts += [net(ids[:, 10:11], attention_mask=keep[:, :14], cache=cache), net(ids[:, 11:], cache=cache)]
    close(torch.cat(parts, 1), want)


@pytest.mark.parametrize(
    "kind", [{}, {"max_len": T}, {"window": 5}, {"window": 5, "keep_first": 2}, {"dtype": torch.int8}, {"window": 4}]
)
@torch.no_grad()
def test_every_cache_kind(kind: dict[str, Any]):
    net, ids = model(), tokens()
    one, several = net.new_cache(3, **kind), net.new_cache(3, **kind)
    want = net(ids, prefix_len=6, cache=one)
    parts = [net(ids[:, :8], prefix_len=6, cache=several), *(net(t, cache=several) for t in ids[:, 8:].split(1, 1))]
    close(torch.cat(parts, 1), want)
    pairs = random_pairs() & (torch.arange(T) // 4 <= torch.arange(T)[:, None] // 4)
    one, several = net.new_cache(3, **kind), net.new_cache(3, **kind)
    want = net(ids, attention_mask=pairs, cache=one)
    parts = [net(ids[:, s : s + 4], attention_mask=pairs[:, s : s + 4, : s + 4], cache=several) for s in range(0, T, 4)]
    close(torch.cat(parts, 1), want)


@pytest.mark.parametrize("backend", ["auto", "blockwise"])
@pytest.mark.parametrize("flags", [{}, {"position": "alibi"}, {"attn_dropout": 0.1}])
def test_blocks_and_gradients(flags: dict[str, Any], backend: str):
    """Enough tokens for several blocks; a prefix that ends inside of one."""
    length = 150
    ids, pairs = tokens(length, 2), random_pairs(length, 2)
    dropless = {**flags, "attn_dropout": 0.0}
    for given in ({"attention_mask": pairs}, {"prefix_len": 70}, {"prefix_len": torch.tensor([0, 131])}):
        found = []
        for net in (model(backend="eager", **dropless), model(backend=backend, **dropless)):
            net(ids, **given).square().mean().backward()
            found.append([parameter.grad for parameter in net.parameters() if parameter.grad is not None])
        for want, got in zip(*found, strict=True):
            close(got, want, 1e-4 * max(1.0, want.abs().max().item()))
    net = model(backend=backend, **flags).train()
    assert net(ids, prefix_len=70).isfinite().all()


@torch.no_grad()
def test_rows_that_are_split_into_texts():
    """As many padded or packed tokens as sdpa computes text by text, without a mask: a given one keeps it from that."""
    length = 512
    ids, pairs = tokens(length, 2), random_pairs(length, 2)
    padded = {"mask": torch.arange(length).expand(2, -1) >= torch.tensor([[3], [0]])}
    packed = {"document_ids": (torch.arange(length) // 200).expand(2, -1)}
    nets = model(backend="eager").double(), model(backend="sdpa").double()
    for given in (
        {**padded, "prefix_len": 70},
        {**padded, "attention_mask": pairs},
        {**packed, "attention_mask": pairs.tril()},
    ):
        want, got = (net(ids, **given) for net in nets)
        close(got, want, 1e-10)


@torch.no_grad()
def test_documents_chunks_and_masks_all_hide():
    ids, pairs = tokens(), random_pairs()
    documents = torch.arange(T).expand(3, -1) // 5
    same = documents[:, :, None] == documents[:, None]
    net = model(backend="eager")
    positions = documents.new_tensor([[i % 5 for i in range(T)]]).expand(3, -1)
    want = net(ids, attention_mask=pairs & same, positions=positions)
    close(model()(ids, attention_mask=pairs, document_ids=documents), want)
    chunked = model(chunk=5)(ids, attention_mask=pairs)
    close(chunked, net(ids, attention_mask=pairs & same))


@torch.no_grad()
def test_in_an_encoder():
    net, ids, pairs = model(Encoder), tokens(), random_pairs()
    close(model(Encoder, backend="eager")(ids, attention_mask=pairs), net(ids, attention_mask=pairs[:, None]))
    everything = torch.ones_like(pairs)
    close(net(ids, attention_mask=everything), net(ids))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("flags", [{}, {"position": "alibi"}])
@torch.no_grad()
def test_a_query_that_sees_nothing_gets_zeros(flags: dict[str, Any], backend: str):
    """Attention adds nothing, so the token is computed as if its layer had no attention."""
    net, ids, pairs = model(backend=backend, **flags), tokens(), random_pairs()
    pairs[:, 4] = False
    got, alone = net(ids, attention_mask=pairs), torch.zeros(3, T, T, dtype=torch.bool)
    close(got[:, 4], net(ids, attention_mask=alone)[:, 4])


@torch.no_grad()
def test_varlen_falls_back_to_sdpa():
    ids = tokens()
    net, plain = model(backend="varlen", attn_dim_head=16), model(backend="sdpa", attn_dim_head=16)
    close(net(ids, prefix_len=5), plain(ids, prefix_len=5), 0)
    close(net(ids, attention_mask=random_pairs()), plain(ids, attention_mask=random_pairs()), 0)


@torch.no_grad()
def test_compiles_without_graph_breaks():
    net, ids = model(), tokens()
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    for given in (
        {"attention_mask": random_pairs()},
        {"attention_mask": (torch.arange(T).expand(3, -1) > 1).long()},
        {"prefix_len": 5},
        {"prefix_len": torch.tensor([5, 1, 9]), "mask": torch.arange(T).expand(3, -1) > 1},
    ):
        close(compiled(ids, **given)[:, 2:], net(ids, **given)[:, 2:])
    torch._dynamo.reset()


@torch.no_grad()
def test_a_prefix_is_kept_whole():
    net, ids = model(), tokens()
    cache = net.new_cache(3)
    net(ids[:, :9], prefix_len=6, cache=cache)
    cache.crop(-3)
    close(net(ids[:, 6:], cache=cache), net(ids, prefix_len=6)[:, 6:])
    with pytest.raises(CacheError, match="would leave 5 tokens"):
        cache.crop(5)
    cache.crop(0)
    close(net(ids, cache=cache), net(ids))
    masked = net.new_cache(3)
    net(ids, attention_mask=of_prefix([3, 4, 1]), cache=masked)
    masked.crop(4)
    with pytest.raises(CacheError, match="up to token 4"):
        masked.crop([4, 3, 0])


@torch.no_grad()
def test_other_wrappers():
    ids, x = tokens(), torch.randn(3, T, 8)
    encoder = model(Encoder)
    keep = torch.arange(T).expand(3, -1) > 2
    assert torch.equal(encoder(ids, attention_mask=keep), encoder(ids, mask=keep))
    layers = Decoder(dim=16, depth=2, heads=2, position="rope")
    net = ContinuousTransformerWrapper(dim_in=8, dim_out=3, attn_layers=layers).eval()
    close(net(x, prefix_len=[5, 1, 9]), net(x, attention_mask=of_prefix([5, 1, 9])))
    hidden = torch.randn(3, T, 16)
    close(layers(hidden, prefix_len=5), layers(hidden, attention_mask=of_prefix([5, 5, 5])))


PAIRS, KEEP = random_pairs(), torch.ones(3, T, dtype=torch.bool)
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"attention_mask": PAIRS.float()}, "additive masks are unsupported.*attention_mask == 0"),
    ({"attention_mask": KEEP.float()}, r"torch.float32.*attention_mask.bool\(\)"),
    ({"attention_mask": PAIRS.long()}, "int64 of shape.*only padding"),
    ({"attention_mask": PAIRS[:, None].expand(-1, 3, -1, -1)}, "a mask for each head"),
    ({"attention_mask": PAIRS[:2]}, r"= \[3, 13, 13\]"),
    ({"attention_mask": PAIRS[:, :, 1:]}, r"got \[3, 13, 12\]"),
    ({"attention_mask": PAIRS[0]}, r"= \[3, 13\]; got \[13, 13\]"),
    ({"attention_mask": KEEP[0]}, r"got \[13\]"),
    ({"attention_mask": KEEP.long() * 2}, "contains 2"),
    ({"attention_mask": ~KEEP}, "attention_mask hides every token"),
    ({"attention_mask": KEEP, "mask": KEEP}, "both mark padding"),
    ({"attention_mask": PAIRS, "prefix_len": 3}, "both replace the causal mask"),
    ({"attention_mask": "all"}, "attention_mask must be a tensor"),
    ({"prefix_len": -1}, "cannot be negative"),
    ({"prefix_len": 14}, "prefix_len=14 exceeds the 13 tokens of this call"),
    ({"prefix_len": [1, 2]}, "3 of them, one a row; got shape"),
    ({"prefix_len": 2.0}, "float32"),
    ({"prefix_len": True}, "torch.bool"),
    ({"prefix_len": 12, "mask": torch.arange(T).expand(3, -1) > torch.tensor([[0], [0], [4]])}, "8 tokens of row 2"),
    ({"prefix_len": 3, "document_ids": torch.zeros(3, T, dtype=torch.long)}, "packed documents"),
]


@pytest.mark.parametrize(("given", "message"), REFUSED)
def test_refusals(given: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        model()(tokens(), **given)


def test_refusals_of_models():
    ids = tokens()
    with pytest.raises(InputError, match="prefix_len is for decoders"):
        model(Encoder)(ids, prefix_len=0)
    with pytest.raises(PositionError, match="ForgettingBias is defined only for keys at or before"):
        model(position="forgetting")(ids, prefix_len=3)
    counted = "ScalableSoftmax scales each query by the number of keys at or before it"
    for given in ({"prefix_len": 3}, {"attention_mask": PAIRS}):
        with pytest.raises(PositionError, match=counted):
            model(position=["rope", "ssmax"])(ids, **given)
    with pytest.raises(PositionError, match="with NoPosition only the causal mask"):
        model(position="none")(ids, attention_mask=PAIRS)
    crossing = CrossAttender(dim=16, depth=1, heads=2)
    x = torch.randn(3, T, 16)
    with pytest.raises(InputError, match="attention_mask would be ignored: this stack has no self-attention"):
        crossing(x, context=x, attention_mask=PAIRS)


@torch.no_grad()
def test_refusals_with_a_cache():
    net, ids = model(), tokens()
    cache = net.new_cache(3)
    net(ids[:, :5], cache=cache)
    before, new = cache.state, ids[:, 5:6]
    past = torch.ones(3, 6, dtype=torch.bool)
    past[1, 2] = False
    for given, message in (
        ({"attention_mask": past}, "row 1 of attention_mask shows 4 earlier tokens, but this cache holds 5"),
        ({"attention_mask": PAIRS[:, :1, :5]}, r"= \[3, 1, 6\], 5 of them cached"),
        ({"prefix_len": 1}, None),
        ({"prefix_len": [0, 1, 0]}, None),
    ):
        if message is None:
            net(new, cache=cache.copy(), **given)
            continue
        with pytest.raises(InputError, match=message):
            net(new, cache=cache, **given)
    with pytest.raises(InputError, match="holds the first tokens of the row already"):
        net(ids[:, 5:8], cache=cache, prefix_len=2)
    assert cache.state is before
    ragged = net.new_cache(3)
    net(ids[:, :5], mask=past[:, :5], cache=ragged)
    with pytest.raises(InputError, match="the rows of this cache hold 4 to 5 tokens"):
        net(new, cache=ragged, attention_mask=past[:, None])
    net(new, cache=ragged, attention_mask=past)


def test_the_loss_of_a_prefix_lm():
    """Targets are the tokens after the prefix."""
    net, ids = model(), tokens()
    keep = torch.arange(T).expand(3, -1) >= torch.tensor([[0], [4], [0]])
    wrapper, prefixes = AutoregressiveWrapper(net), [3, 6, T]
    logits = net(ids, mask=keep, prefix_len=prefixes).log_softmax(-1)
    found = [
        -logits[row, t - 1, ids[row, t]]
        for row, (first, prefix) in enumerate(zip((0, 4, 0), prefixes, strict=True))
        for t in range(first + prefix, T)
    ]
    loss = wrapper(ids, mask=keep, prefix_len=torch.tensor(prefixes))
    close(loss, torch.stack(found).mean())
    close(wrapper(ids, mask=keep, prefix_len=prefixes, labels=ids), loss)
    assert wrapper(ids, prefix_len=T) == 0
    with pytest.raises(InputError, match="exceeds the 9 tokens of row 1"):
        wrapper(ids, mask=keep, prefix_len=10)


@torch.no_grad()
def test_the_loss_of_a_prefix_lm_after_a_soft_prompt():
    """The first token is predicted from the last prepended place, padding between them or not."""
    net, ids = model(), tokens()
    soft = torch.randn(3, 4, 22, generator=torch.Generator().manual_seed(3))
    keep = torch.ones(3, 4 + T, dtype=torch.bool)
    keep[0, 3] = keep[1, 4:6] = False
    wrapper, given = AutoregressiveWrapper(net), {"prepend_embeds": soft, "reduction": "none"}
    for prefix, count in (([3, 4, 4], [T, T - 2, T]), ([4, 4, 5], [T - 1, T - 2, T - 1])):
        each = wrapper(ids, mask=keep, prefix_len=prefix, **given)
        assert (each != 0).sum(1).tolist() == count
        for row, n in enumerate(prefix):
            k = keep[row]
            alone = wrapper(ids[row, k[4:]][None], prefix_len=n, **given | {"prepend_embeds": soft[row, k[:4]][None]})
            close(each[row].sum(), alone.sum(), 1e-4)


def continued(net: TransformerWrapper, prompt: Tensor, count: int, prefix: int) -> Tensor:
    """Greedy tokens, each from one pass over everything."""
    for _ in range(count):
        new = net(prompt[None], prefix_len=prefix)[0, -1].argmax()
        prompt = torch.cat([prompt, new[None]])
    return prompt[-count:]


@pytest.mark.parametrize("prefix", ["prompt", 3, [2, 9, 0]])
@torch.no_grad()
def test_generation(prefix: Any):
    net = model()
    prompts = [row[:n] for row, n in zip(tokens(), (5, 9, 3), strict=True)]
    prefixes = [5, 9, 3] if prefix == "prompt" else [prefix] * 3 if isinstance(prefix, int) else prefix
    want = torch.stack([continued(net, p, 6, n) for p, n in zip(prompts, prefixes, strict=True)])
    wrapper = AutoregressiveWrapper(net)
    for options in ({}, {"cache_kv": False}, {"prefill_chunk_size": 9}):
        assert torch.equal(wrapper.generate(prompts, 6, temperature=0, prefix_len=prefix, **options), want)
    assert torch.equal(torch.stack(list(wrapper.stream(prompts, 6, temperature=0, prefix_len=prefix)), 1), want)
    cache = wrapper.prefill(prompts, prefix_len=prefix)
    assert torch.equal(wrapper.generate(None, 6, temperature=0, cache=cache), want)


def test_refusals_of_generation():
    wrapper, prompts = AutoregressiveWrapper(model()), [row[:n] for row, n in zip(tokens(), (5, 9, 3), strict=True)]
    for options, message in (
        ({"prefix_len": "prompt", "prefill_chunk_size": 4}, "would cut a prefix of 9 tokens"),
        ({"prefix_len": 4}, "exceeds the 3 tokens of row 2"),
        ({"prefix_len": "all"}, "prefix_len='all' must be"),
    ):
        with pytest.raises(InputError, match=message):
            wrapper.generate(prompts, 2, **options)
    cache = wrapper.prefill(prompts)
    with pytest.raises(InputError, match="prompts=None adds no tokens"):
        wrapper.generate(None, 2, cache=cache, prefix_len=2)
    with pytest.raises(InputError, match="holds the first tokens of the row already"):
        wrapper.generate(prompts, 2, cache=cache, prefix_len=2)
