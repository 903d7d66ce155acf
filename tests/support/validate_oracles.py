"""What a model really does, whatever the validator says: it is built with every gate open, run, decoded and compared.

`faults` names everything that fails or is wrong. The validator must refuse a config if and only if there is a fault.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn import functional as F

from tests.support.rounding import rounding
from tests.support.validate_forced import (
    BATCH,
    FORCED,
    at_default,
    at_positions,
    caches_of_kept_tokens,
    changed,
    context_of,
    far,
    forced,
    has_no_effect_by_design,
    replaced,
    tokens_of,
    unwindowed,
)
from x_positional.attention.backends.eager import Eager
from x_positional.config.layers import LayersConfig
from x_positional.config.models import ModelConfig
from x_positional.config.validate import Use
from x_positional.errors import PositionError
from x_positional.models.language import TransformerWrapper
from x_positional.modules.experts import Router
from x_positional.schemes import (
    AlibiBias,
    Axial,
    AxialEmbedding,
    Chain,
    CopeScores,
    DebertaBias,
    ForgettingBias,
    GatedT5Bias,
    NoPE,
    Rope,
    RopeEmbedding,
    ScalableSoftmax,
    T5Bias,
    XPosEmbedding,
    t5_buckets,
)
from x_positional.schemes.base import AttentionContext, PositionScheme, Span
from x_positional.schemes.rotary.frequencies import inverse_frequencies
from x_positional.schemes.rotary.scaling import DefaultRope, LongRope
from x_positional.schemes.rotary.scaling.parts import Parts


def faults(config: ModelConfig, use: Use, oracles: Sequence[Callable[..., Iterator[str]]] | None = None) -> list[str]:
    """Everything that fails or is wrong."""
    try:
        model = forced(config)
        with torch.no_grad():
            full = model(tokens_of(config, length_of(config, use)), **context_of(config))
    except Exception as error:
        return [f"fails: {type(error).__name__}: {error}"]
    if not full.isfinite().all():
        return ["not finite"]
    found = []
    for oracle in ORACLES if oracles is None else oracles:
        try:
            with caches_of_kept_tokens():
                found += oracle(config, use, model, full)
        except Exception as error:
            found.append(f"{oracle.__name__} fails: {type(error).__name__}: {error}")
    return found


def length_of(config: ModelConfig, use: Use) -> int:
    return use.decode_to or min(config.max_seq_len, 9)


def decoding(config: ModelConfig, use: Use, model: TransformerWrapper, full: Tensor) -> Iterator[str]:
    """Chunks of several lengths through the cache that was asked for give what the full pass gives."""
    if config.layers.kind == "encoder":
        if use.cache or use.decode_to:
            model.new_cache(BATCH)
        return
    if use.cache is None and not all(kind.scheme.capabilities().kv_cacheable for kind in model.attn_layers.kinds):
        return  # nobody asked for a cache, and there is none
    tokens, context = tokens_of(config, full.shape[1]), context_of(config)
    for chunks in ([1] * tokens.shape[1], [3, 1, 2, tokens.shape[1]]):
        cache = model.new_cache(BATCH, tokens.shape[1] if use.cache == "static" else None, use.cache_window)
        if use.cache == "sliding" and any(window.kept is None for window in cache.windows):
            yield "the sliding cache keeps everything"
        with torch.no_grad():
            pieces = [
                model(piece, cache=cache, **context) for piece in tokens.split(_cut(chunks, tokens.shape[1]), dim=1)
            ]
        if far(torch.cat(pieces, dim=1), full):
            yield f"decoding by {chunks} differs from the full pass"


def _cut(chunks: list[int], length: int) -> list[int]:
    out = []
    for chunk in chunks:
        out.append(min(chunk, length - sum(out)))
    return [n for n in out if n]


def padding(config: ModelConfig, use: Use, model: TransformerWrapper, full: Tensor) -> Iterator[str]:
    """Tokens padded on the left and on the right give what they give alone."""
    n = full.shape[1]
    tokens, context = tokens_of(config, n), context_of(config)
    for left, right in ((2, 0), (0, 2), (1, 1)):
        padded = F.pad(tokens, (left, right))
        mask = F.pad(torch.ones_like(tokens, dtype=torch.bool), (left, right))
        with torch.no_grad():
            out = model(padded, mask=mask, **context)
        if far(out[:, left : left + n], full):
            yield f"padding by {left} on the left and {right} on the right changes the output"


def reaching(config: ModelConfig, use: Use, model: TransformerWrapper, full: Tensor) -> Iterator[str]:
    """Every position below max_seq_len runs."""
    with torch.no_grad():
        out = model(tokens_of(config, config.max_seq_len), **context_of(config))
    if not out.isfinite().all():
        yield "not finite at the last positions"
    n = min(full.shape[1], config.max_seq_len)
    positions = torch.arange(config.max_seq_len - n, config.max_seq_len)
    if any(s.capabilities().uses_positions for s in model.attn_layers.position_schemes):
        with torch.no_grad():
            out = at_positions(model, tokens_of(config, n), positions, context_of(config))
        if not out.isfinite().all():
            yield "not finite at the last positions, given as such"


def order(config: ModelConfig, use: Use, model: TransformerWrapper, full: Tensor) -> Iterator[str]:
    """In one layer of an encoder, what a token makes of the others depends on their order."""
    if config.layers.kind == "encoder":
        one = forced(config.model_copy(update={"layers": config.layers.model_copy(update={"depth": 1})}))
        tokens, context = tokens_of(config, full.shape[1]), context_of(config)
        orders = (torch.cat([tokens[:, :1], tokens[:, 1:].roll(by, 1)], 1) for by in range(1, full.shape[1] - 1))
        with torch.no_grad():
            first = one(tokens, **context)[:, 0]
            depends = any(far(first, one(other, **context)[:, 0]) for other in orders)
        if not depends:
            yield "blind to order"


def shifting(config: ModelConfig, use: Use, model: TransformerWrapper, full: Tensor) -> Iterator[str]:
    """Where only distances count, moving all positions changes nothing; where positions count, spreading them does."""
    if config.layers.kind == "cross_attender":
        return
    caps = model.attn_layers.kinds[0].scheme.capabilities()
    if not caps.uses_positions:
        return
    n = min(full.shape[1], config.max_seq_len)
    tokens, context = tokens_of(config, n), context_of(config)
    with torch.no_grad():
        near = model(tokens, **context)
        if not caps.absolute and far(near, at_positions(model, tokens, torch.arange(n) + 3, context)):
            yield "moving all positions changes the output"
        step = 36.5 if caps.continuous else 37  # whole numbers turn pixel frequencies by multiples of pi
        spread = torch.arange(n) * step if caps.unbounded else torch.arange(n) * (config.max_seq_len - 1) // (n - 1)
        farther = config.max_seq_len > n or caps.unbounded
        if farther and not far(near, at_positions(model, tokens, spread, context), 1e-6):
            yield "positions change nothing"


def keeping(config: ModelConfig, use: Use, model: TransformerWrapper, full: Tensor) -> Iterator[str]:
    """In one layer, the last token of a text attends as if the text were only the first tokens and its window.

    That short text is filled up to the length of the whole, which frequencies may depend on. Temperatures are left out: they
    depend on the query's position in the whole text (tests/attention/test_kept_lengths.py).
    """
    for layers in keeping_layers(config):
        first, size = layers.keep_first, layers.window or 0
        plain = layers.model_copy(update={"window": None, "chunk": None, "keep_first": 0})
        one, near = (
            forced(config.model_copy(update={"max_seq_len": KEPT_IN, "layers": own})) for own in (layers, plain)
        )
        n = min([KEPT_IN, *(s.limit for s in one.attn_layers.position_schemes if s.limit is not None)])
        tokens, context = tokens_of(config, n), context_of(config)
        short = torch.cat([tokens[:, :first], tokens[:, n - size :], tokens], dim=1)[:, :n]
        with torch.no_grad():
            if far(one(tokens, **context)[:, -1], near(short, **context)[:, first + size - 1]):
                yield "the first tokens are not attended to at the distances of the short text"


def keeping_layers(config: ModelConfig) -> Iterator[LayersConfig]:
    """One layer of each kind that has keep_first and a window, with every scheme that is added to the embeddings."""
    layers = config.layers
    if layers.kind == "cross_attender":
        return  # it has no self-attention: `settings` finds that keep_first changes nothing
    dims, kinds = layers.dims(config.max_seq_len, config.placed_dim), layers.resolved_layers(config.max_seq_len)
    schemes = [(part, part.build(dims)) for kind in kinds for part in kind.parts]
    added = [part for part, scheme in schemes if scheme.overrides("embed")]
    scaling = [part for part, scheme in schemes if scheme.capabilities().acts_on == ("queries",)]
    for kind in kinds:
        parts = [part for part in kind.parts if part not in scaling]
        position = (*parts, *(part for part in added if part not in parts)) or (NoPE(),)
        own = {name: getattr(kind, name) for name in type(kind).model_fields}
        if kind.keep_first and kind.window:
            yield layers.model_copy(update={**own, "pattern": (), "depth": 1, "position": position})


def listing(config: ModelConfig, use: Use, model: TransformerWrapper, full: Tensor) -> Iterator[str]:
    """A list of schemes means the same in any order, and something else without any one of them."""
    position = config.layers.position
    if position is None or len(position) < 2:
        return
    n = range(len(position))
    for kept in ([*n][::-1], *([j for j in n if j != i] for i in n)):
        other = forced(replaced(config, ("layers", "position"), tuple(position[j] for j in kept)))
        for ours, theirs in zip(model.attn_layers.kinds, other.attn_layers.kinds, strict=True):
            for j, same in zip(kept, parts_of(theirs.scheme), strict=True):
                same.load_state_dict(parts_of(ours.scheme)[j].state_dict())
        try:
            with torch.no_grad():
                out = other(tokens_of(config, full.shape[1]), **context_of(config))
        except PositionError:
            if len(kept) < len(n):
                continue  # without it the others would not even run
            raise
        if len(kept) < len(n) and not far(full, out, 1e-6):
            yield f"schemes {kept} of {len(n)} do it all"
        if len(kept) == len(n) and far(full, out):
            yield "the order of the schemes matters"


def splitting(config: ModelConfig, use: Use, model: TransformerWrapper, full: Tensor) -> Iterator[str]:
    """Each axis of a position turns the pairs that its section says, or its share of them; none stand still."""
    for part in config.layers.position or ():
        if isinstance(part, Axial) or (isinstance(part, Rope) and part.kind == "rope" and part.sections is not None):
            scheme = part.build(config.layers.dims(config.max_seq_len))
            pairs = scheme.width // 2
            sections = (pairs // part.axes,) * part.axes if isinstance(part, Axial) else part.sections or ()
            axes, said = len(sections), list(sections)
            positions = torch.eye(axes)[None] if axes > 1 else torch.ones(1, 1)
            turned = (scheme.tables(positions).k_sin[0, 0] != 0).sum(-1) // 2
            if turned.tolist() != said or sum(said) != pairs:
                yield f"of {pairs} pairs the axes turn {turned.tolist()}, not {said}"


def parts_of(scheme: PositionScheme) -> list[Module]:
    return list(scheme.parts) if isinstance(scheme, Chain) else [scheme]


def rotating(config: ModelConfig, use: Use, model: TransformerWrapper, full: Tensor) -> Iterator[str]:
    """Queries point to where each scheme that turns queries and keys says; a temperature only makes them longer."""
    scheme = model.attn_layers.kinds[0].scheme
    if not isinstance(scheme, Chain):
        return
    q = torch.randn(1, config.layers.heads, 4, config.layers.head_dim, generator=torch.Generator().manual_seed(3))
    positions = torch.tensor([[1, 2, 3, 5]])  # not 0: ssmax scales a query that sees one key by log 1
    turned = scheme.rotate_q(q, scheme.tables(positions))
    directions = turned / turned.norm(dim=-1, keepdim=True)
    for part in scheme.parts:
        if isinstance(part, PositionScheme) and part.overrides("rotate_k"):
            alone = part.rotate_q(q, part.tables(positions))
            if alone.shape != turned.shape:
                yield f"queries have other shapes than {type(part).__name__} makes"
                continue
            own = alone / alone.norm(dim=-1, keepdim=True)
            sign = (
                (own * directions).sum(-1, keepdim=True)[..., :1, :].sign()
            )  # a learned factor of a head may be negative
            if far(own * sign, directions):
                yield f"queries do not turn as {type(part).__name__} says"


def laws(config: ModelConfig, use: Use, model: TransformerWrapper, full: Tensor) -> Iterator[str]:
    """A penalty grows with distance; buckets of distances are in order."""
    for scheme in model.attn_layers.kinds[0].scheme.modules():
        if isinstance(scheme, AlibiBias):
            bias = scheme.of_distance(torch.tensor([1, 5]))[: len(scheme.left)]
            if not (bias[:, 1] < bias[:, 0]).all():
                yield "an alibi head has no penalty"
        if isinstance(scheme, RopeEmbedding):
            rotated = scheme.tables(torch.zeros(1, 1)).q_cos.shape[-1]
            if rotated != scheme.width:
                yield f"{rotated} channels are rotated, not {scheme.width}"
        if isinstance(scheme, RopeEmbedding) and not isinstance(scheme, AxialEmbedding):
            yield from stretching(scheme, next(p.theta for p in config.layers.position or () if isinstance(p, Rope)))
        if isinstance(scheme, T5Bias):
            buckets = t5_buckets(torch.arange(200), scheme.num_buckets, scheme.max_distance, scheme.causal_only)
            if (buckets.diff() < 0).any() or buckets.min() < 0:
                yield "t5 buckets are out of order"
        if isinstance(scheme, DebertaBias) and (scheme.rows(torch.arange(200)).diff() < 0).any():
            yield "deberta buckets are out of order"
        if isinstance(scheme, GatedT5Bias) and not scheme.share:
            yield "the gates of a head read no channel"


def choosing(config: ModelConfig, use: Use, model: TransformerWrapper, full: Tensor) -> Iterator[str]:
    """The experts of a token are different ones, from as many groups as are open."""
    for router in (m for m in model.modules() if isinstance(m, Router)):
        experts = len(router.weight)
        tokens = torch.randn(20, router.weight.shape[1], generator=torch.Generator().manual_seed(4))
        for chosen in router(tokens).experts.tolist():
            groups = {expert // (experts // router.groups) for expert in chosen}
            if len(set(chosen)) < router.top_k or (router.groups > 1 and len(groups) > router.top_groups):
                yield f"experts {chosen} are chosen, and {router.top_groups} of {router.groups} groups are open"


def both_sides(config: ModelConfig, use: Use, model: TransformerWrapper, full: Tensor) -> Iterator[str]:
    """Without a causal mask: what lies to the right is treated like what lies to the left, or at least read."""
    if config.layers.kind == "decoder":
        return
    n, heads = 4, config.layers.heads
    index = torch.arange(n)[None]
    ctx = AttentionContext(
        q_index=index,
        kv_index=index,
        q_positions=index,
        kv_positions=index,
        batch=1,
        heads=heads,
        span=n,
        causal=False,
        ordered=True,
    )
    for scheme in model.attn_layers.kinds[0].scheme.modules():
        if isinstance(scheme, XPosEmbedding):
            table = scheme.tables(index)
            factor = (table.q_cos**2 + table.q_sin**2)[0, 0]  # [T R]
            if (factor[0] > factor[1]).any():
                yield "xpos scores grow to the right"
        if isinstance(scheme, ForgettingBias):
            bias = scheme.content_bias(torch.zeros(1), ctx, torch.full((1, heads, n, 1), -1.0), None).dense(
                ctx, Span(0, n), Span(0, n)
            )
            if (bias > 0).any():
                yield "forgetting remembers what lies to the right better the farther it is"
        if isinstance(scheme, ScalableSoftmax) and not scheme.tables(index)[..., 0, :].any():
            yield "ssmax scales the first query to zero, which sees every key"
        if isinstance(scheme, CopeScores):
            same = torch.ones(1, heads, n, config.layers.head_dim)
            counted = scheme.transform_scores(torch.zeros(1, heads, n, n), None, same, ctx)
            apart = (counted[:, :, 0] - counted[:, :, 1]).abs().max().item()
            if apart <= rounding(counted):  # a CPU's matrix products may round equal rows differently
                yield "cope counts the same for every query"


def stretching(scheme: RopeEmbedding, theta: float) -> Iterator[str]:
    """A scaling alone says how the frequencies of theta change: slow pairs at least as much as fast ones, by its factor."""
    cpu, scaling = torch.device("cpu"), scheme.scaling
    length = torch.tensor([[64]]) if scaling.follows_length else None
    ours, said = scheme.initial_frequencies(cpu, length), scaling.frequencies(scheme.width, theta, length=length)
    if not isinstance(scaling, DefaultRope) and not torch.allclose(ours.inv_freq, said.inv_freq):
        yield "the frequencies are stretched twice"
    if isinstance(scaling, Parts):
        kept = said.inv_freq / inverse_frequencies(scheme.width, theta, cpu)
        if (kept.diff() > 1e-9).any() or (scaling.factor > 1 and kept[-1] > 1 - 1e-9):
            yield "slow pairs are not stretched by the factor"
    if isinstance(scaling, LongRope) and {scaling.factor, scaling.attention_factor, scaling.short_mscale} == {None}:
        yield f"nobody said the attention factor, and it is {said.attention_factor}"


def embedding(config: ModelConfig, use: Use, model: TransformerWrapper, full: Tensor) -> Iterator[str]:
    """What is added to the embeddings is added once, however many layers there are."""
    layers = model.attn_layers
    n = min(full.shape[1], config.max_seq_len)
    layout = layers.layout(BATCH, n, full.device)
    x = torch.zeros(BATCH, n, config.placed_dim or config.layers.dim)
    with torch.no_grad():
        if far(layers.embed(x, layout), layers.kinds[0].scheme.embed(x, layout.positions)):
            yield "the embeddings are changed more than once"


def agreeing(config: ModelConfig, use: Use, model: TransformerWrapper, full: Tensor) -> Iterator[str]:
    """The backend gives what eager gives."""
    if config.layers.backend != "eager":
        with torch.no_grad():
            eager = forced(on_eager(config))(tokens_of(config, full.shape[1]), **context_of(config))
        if far(full, eager):
            yield f"{config.layers.backend} differs from eager"


def on_eager(config: ModelConfig) -> ModelConfig:
    return replaced(config, ("layers", "backend"), "eager")


def fusing(config: ModelConfig, use: Use, model: TransformerWrapper, full: Tensor) -> Iterator[str]:
    """What asks for flash does not get full score matrices."""
    if config.layers.flash and isinstance(model.attn_layers.kinds[0].choice.backend, Eager):
        yield "eager holds the whole score matrix"


def training(config: ModelConfig, use: Use, model: TransformerWrapper, full: Tensor) -> Iterator[str]:
    """Every parameter is reached by the gradient, and all of it is finite."""
    if config.layers.backend == "flex" and not use.train:
        return  # on this device it has no gradient, and nobody asked for one
    model.zero_grad()
    model(tokens_of(config, full.shape[1]), **context_of(config)).square().mean().backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is None and parameter.requires_grad:
            yield f"{name} is never used"
        elif parameter.grad is not None and not parameter.grad.isfinite().all():
            yield f"the gradient of {name} is not finite"


def settings(config: ModelConfig, use: Use, model: TransformerWrapper, full: Tensor) -> Iterator[str]:
    """Every setting that is not at its default changes the parameters or the output."""
    if _runs_on_flex(config, model):  # which traces every call; eager gives the same (`agreeing`)
        config = on_eager(config)
        model = forced(config)
    usual = config, _behaviour(config, model)
    for path in changed(config):
        if has_no_effect_by_design(config, path):
            continue
        base, before = usual
        try:
            if path[-1] == "max_distance":  # a window may hide all distances on which it has an effect
                base = unwindowed(config)
                before = _behaviour(base, forced(base))
            other = at_default(base, path)
            after = _behaviour(other, forced(other))
        except Exception:
            continue  # without the setting it would not even run
        alike = all(before[0][name] == after[0][name] for name in before[0].keys() & after[0].keys())
        close = KEPT_ROUNDING if path[-1] == "keep_first" else 1e-7
        if alike and not far(before[1], after[1], close):
            yield f"{'.'.join(map(str, path))} changes nothing"


def _runs_on_flex(config: ModelConfig, model: TransformerWrapper) -> bool:
    supported = all(kind.choice.reason != FORCED for kind in model.attn_layers.kinds)
    return config.layers.backend == "flex" and supported


def _behaviour(config: ModelConfig, model: TransformerWrapper) -> tuple[dict[str, torch.Size], Tensor]:
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    torch.default_generator.manual_seed(0)
    model.train()
    longest = min(config.max_seq_len, 9)
    with torch.no_grad():  # a policy of lengths has no effect on a text of exactly max_seq_len
        outs = [model(tokens_of(config, n), **context_of(config)) for n in {longest, max(1, longest - 1)}]
    model.eval()
    return shapes, torch.cat(outs, dim=1)


KEPT_IN = 16
"""The longest text of `keeping`."""
KEPT_ROUNDING = rounding(torch.ones(()))
"""With keep_first, scores of first tokens are corrected by a difference that rounds even where it is 0. So outputs that are
equal may differ by the rounding of two float32 computations."""


def own_embeddings(config: ModelConfig, use: Use, model: TransformerWrapper, full: Tensor) -> Iterator[str]:
    """What is added to the embeddings is what each layer's own scheme adds."""
    stack, noise = model.attn_layers, torch.Generator().manual_seed(2)
    layout = stack.layout(BATCH, min(full.shape[1], config.max_seq_len), full.device)
    width = config.layers.dim if config.emb_dim is None else config.emb_dim
    x = torch.randn(BATCH, layout.positions.shape[-1], width, generator=noise)
    added = stack.embed(x, layout)
    for layer, kind in enumerate(stack.kinds):
        if far(kind.scheme.embed(x, layout.positions), added):
            yield f"layer {layer} reads embeddings that are not those of its own scheme"


ORACLES: list[Callable[..., Iterator[str]]] = [
    decoding,
    padding,
    reaching,
    order,
    keeping,
    shifting,
    listing,
    splitting,
    rotating,
    laws,
    choosing,
    both_sides,
    embedding,
    own_embeddings,
    agreeing,
    fusing,
    training,
    settings,
]

OF_PATTERNS: list[Callable[..., Iterator[str]]] = [
    own_embeddings,
    decoding,
    padding,
    reaching,
    keeping,
    choosing,
    agreeing,
    training,
    settings,
]
"""Oracles for a whole model, whose layers may differ."""

OF_ONE_KIND = [oracle for oracle in ORACLES if oracle not in OF_PATTERNS]
"""Oracles for a model whose layers are all alike: each entry of a pattern is tried alone."""
