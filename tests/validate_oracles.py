"""What a model really does, whatever the validator says: it is built with every gate open, run, decoded and compared.

`faults` names everything that fails or is wrong. The validator must refuse a config if and only if there is a fault.
"""

import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn import Module

from x_positional.backends import BackendError, Choice, choose
from x_positional.backends.eager import Eager
from x_positional.config import ModelConfig
from x_positional.scheme import AttentionContext, PositionScheme
from x_positional.schemes import Alibi, AlibiBias, Chain, CoPE, Forgetting, Rope, T5Bias, XPosEmbedding, t5_buckets
from x_positional.validate import Use
from x_positional.wrappers import TransformerWrapper, build_model

BATCH, CONTEXT = 2, 5
CLOSE = 1e-4


class Gates(ExitStack):
    """Inside it nothing is refused: not by the validator, not by the flags, not by `choose`, not by Chain."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        fields = {name: getattr(config, name) for name in ModelConfig.model_fields}
        for name, value in {
            "build.require": lambda report: None,
            "wrappers.require": lambda report: None,
            "wrappers.model_from_flags": lambda num_tokens, max_seq_len, flags: {**fields, "layers": flags["attn_layers"]},
            "build.choose": open_choose,
            "layers.choose": open_choose,
            "schemes.compose.chain_problems": lambda parts: [],
        }.items():
            self.enter_context(patch(f"x_positional.{name}", value))


def open_choose(requested: str, *rest) -> Choice:
    """What was asked for, whether or not it can run it."""
    try:
        return choose(requested, *rest)
    except BackendError:
        return Choice(requested, "forced")


def forced(config: ModelConfig) -> TransformerWrapper:
    """The model with every parameter set by its name alone, so that equal names are equal numbers."""
    with Gates(config):
        model = build_model(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.isfinite().all():
                raise ValueError(f"{name} starts at {parameter}")
            noise = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=noise) * 1.5 / fan_in**0.5)
            if name.endswith("delta"):  # polar phases live in [-2 pi, 0]
                parameter.copy_(-parameter.abs())
    return model.eval()


def tokens_of(config: ModelConfig, length: int) -> Tensor:
    return torch.randint(config.num_tokens, (BATCH, length), generator=torch.Generator().manual_seed(length))


def context_of(config: ModelConfig) -> dict[str, Tensor]:
    layers = config.layers
    if not (layers.cross_attend or layers.kind == "cross_attender"):
        return {}
    noise = torch.Generator().manual_seed(5)
    given = {"context": torch.randn(BATCH, CONTEXT, layers.context_dim or layers.dim, generator=noise)}
    positions = layers.kind == "cross_attender" and any(part.kind != "none" for part in layers.position or ())
    return given | ({"context_positions": torch.arange(CONTEXT)} if positions else {})


def far(a: Tensor, b: Tensor, close: float = CLOSE) -> bool:
    """Different by more than `close` of the larger one's scale, or not finite."""
    scale = 1 + max(float(a.abs().max()), float(b.abs().max()))
    return not float((a - b).abs().max()) <= close * scale


def faults(config: ModelConfig, use: Use) -> list[str]:
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
    for oracle in ORACLES:
        try:
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
    tokens, context = tokens_of(config, full.shape[1]), context_of(config)
    for chunks in ([1] * tokens.shape[1], [3, 1, 2, tokens.shape[1]]):
        cache = model.new_cache(BATCH, tokens.shape[1] if use.cache == "static" else None, use.cache_window)
        if use.cache == "sliding" and None in cache.windows:
            yield "the sliding cache keeps everything"
        with torch.no_grad():
            pieces = [model(piece, cache=cache, **context) for piece in tokens.split(_cut(chunks, tokens.shape[1]), dim=1)]
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
    n = min(full.shape[1], config.max_seq_len)
    positions = torch.arange(config.max_seq_len - n, config.max_seq_len)
    if any(s.capabilities().uses_positions for s in model.attn_layers.position_schemes):
        with torch.no_grad():
            out = model(tokens_of(config, n), positions=positions, **context_of(config))
        if not out.isfinite().all():
            yield "not finite at the last positions"


def order(config: ModelConfig, use: Use, model: TransformerWrapper, full: Tensor) -> Iterator[str]:
    """Shuffling the tokens of an encoder does more than shuffle its outputs."""
    if config.layers.kind == "encoder":
        shuffled = torch.randperm(full.shape[1], generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            out = model(tokens_of(config, full.shape[1])[:, shuffled], **context_of(config))
        if not far(out, full[:, shuffled]):
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
        if not caps.absolute and far(near, model(tokens, positions=torch.arange(n) + 3, **context)):
            yield "moving all positions changes the output"
        spread = torch.arange(n) * 37 if caps.unbounded else torch.arange(n) * (config.max_seq_len - 1) // (n - 1)
        if config.max_seq_len > n or caps.unbounded:
            if not far(near, model(tokens, positions=spread, **context), 1e-6):
                yield "positions change nothing"


def listing(config: ModelConfig, use: Use, model: TransformerWrapper, full: Tensor) -> Iterator[str]:
    """A list of schemes means the same in any order, and something else without any one of them."""
    position = config.layers.position
    if position is None or len(position) < 2:
        return
    for kept in (range(len(position))[::-1], *([j for j in range(len(position)) if j != i] for i in range(len(position)))):
        other = forced(replaced(config, ("layers", "position"), tuple(position[j] for j in kept)))
        for ours, theirs in zip(model.attn_layers.kinds, other.attn_layers.kinds, strict=True):
            for j, same in zip(kept, parts_of(theirs.scheme), strict=True):
                same.load_state_dict(parts_of(ours.scheme)[j].state_dict())
        with torch.no_grad():
            out = other(tokens_of(config, full.shape[1]), **context_of(config))
        if len(kept) < len(position) and not far(full, out, 1e-6):
            yield f"of schemes {list(range(len(position)))} {list(kept)} do it all"
        if len(kept) == len(position) and far(full, out):
            yield "the order of the schemes matters"


def parts_of(scheme: PositionScheme) -> list[Module]:
    return list(scheme.parts) if isinstance(scheme, Chain) else [scheme]


def rotating(config: ModelConfig, use: Use, model: TransformerWrapper, full: Tensor) -> Iterator[str]:
    """Queries turn as each scheme that turns them says."""
    scheme = model.attn_layers.kinds[0].scheme
    if not isinstance(scheme, Chain):
        return
    q = torch.randn(1, config.layers.heads, 4, config.layers.head_dim, generator=torch.Generator().manual_seed(3))
    positions = torch.tensor([[0, 1, 2, 5]])
    turned = scheme.rotate_q(q, scheme.tables(positions))
    for part in scheme.parts:
        if isinstance(part, PositionScheme) and part.overrides("rotate_q"):
            alone = part.rotate_q(q, part.tables(positions))
            if alone.shape != turned.shape or far(alone, turned):
                yield f"queries do not turn as {type(part).__name__} says"


def laws(config: ModelConfig, use: Use, model: TransformerWrapper, full: Tensor) -> Iterator[str]:
    """A penalty grows with distance; buckets of distances are in order."""
    for scheme in model.attn_layers.kinds[0].scheme.modules():
        if isinstance(scheme, AlibiBias):
            bias = scheme.of_distance(torch.tensor([1, 5]))[: len(scheme.left)]
            if not (bias[:, 1] < bias[:, 0]).all():
                yield "an alibi head has no penalty"
        if isinstance(scheme, T5Bias):
            buckets = t5_buckets(torch.arange(200), scheme.num_buckets, scheme.max_distance, scheme.causal_only)
            if (buckets.diff() < 0).any() or buckets.min() < 0:
                yield "t5 buckets are out of order"


def both_sides(config: ModelConfig, use: Use, model: TransformerWrapper, full: Tensor) -> Iterator[str]:
    """Without a causal mask: what lies to the right is treated like what lies to the left, or at least read."""
    if config.layers.kind == "decoder":
        return
    n, heads = 4, config.layers.heads
    index = torch.arange(n)[None]
    ctx = AttentionContext(
        q_index=index, kv_index=index, q_positions=index, kv_positions=index, batch=1, heads=heads, span=n, causal=False,
        ordered=True,
    )  # fmt: skip
    for scheme in model.attn_layers.kinds[0].scheme.modules():
        if isinstance(scheme, XPosEmbedding):
            table = scheme.tables(index)
            if (table.q_cos[0, 0, 0] ** 2 + table.q_sin[0, 0, 0] ** 2 > table.q_cos[0, 0, 1] ** 2 + table.q_sin[0, 0, 1] ** 2).any():
                yield "xpos scores grow to the right"
        if isinstance(scheme, Forgetting):
            bias = scheme.content_bias(torch.zeros(1), ctx, torch.full((1, heads, n, 1), -1.0)).dense(ctx, range(n))
            if (bias > 0).any():
                yield "forgetting remembers what lies to the right better the farther it is"
        if isinstance(scheme, CoPE):
            same = torch.ones(1, heads, n, config.layers.head_dim)
            counted = scheme.transform_scores(torch.zeros(1, heads, n, n), None, same, ctx)
            if torch.equal(counted[:, :, 0], counted[:, :, 1]):
                yield "cope counts the same for every query"


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
        if parameter.grad is None:
            yield f"{name} is never used"
        elif parameter.grad is not None and not parameter.grad.isfinite().all():
            yield f"the gradient of {name} is not finite"


def settings(config: ModelConfig, use: Use, model: TransformerWrapper, full: Tensor) -> Iterator[str]:
    """Every setting that is not at its default changes the parameters or the output."""
    before = _behaviour(config, model)
    for path in changed(config):
        if has_no_effect_by_design(config, path):
            continue
        try:
            other = replaced(config, path, default_at(config, path))
            after = _behaviour(other, forced(other))
        except Exception:
            continue  # without the setting it would not even run
        alike = all(before[0][name] == after[0][name] for name in before[0].keys() & after[0].keys())
        if alike and not far(before[1], after[1], 1e-7):
            yield f"{'.'.join(map(str, path))} changes nothing"


def _behaviour(config: ModelConfig, model: TransformerWrapper) -> tuple[dict[str, torch.Size], Tensor]:
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    torch.manual_seed(0)
    model.train()
    with torch.no_grad():
        out = model(tokens_of(config, min(config.max_seq_len, 9)), **context_of(config))
    model.eval()
    return shapes, out


Path = tuple[str | int, ...]
MEANT_FOR_KERNELS = {"backend", "flash"}
MEANT_FOR_THE_START = {"bias_init", "uniform_init"}
CANCELS = {"center"}  # xPos: the same in queries and keys


def has_no_effect_by_design(config: ModelConfig, path: Path) -> bool:
    """Settings that say how, not what; that only set initial values; and those that repeat what the default means."""
    layers, leaf = config.layers, path[-1]
    if leaf in MEANT_FOR_KERNELS | MEANT_FOR_THE_START | CANCELS:
        return True
    value, natural = at(config, path), {"decoder": ("causal", "symmetric")}.get(layers.kind, ("symmetric",))
    meant = {
        "kv_heads": (layers.heads,), "heads": (layers.heads,), "context_dim": (layers.dim,), "emb_dim": (layers.dim,),
        "final_norm": (layers.norm_place != "post",), "variant": natural,
        "gate_bias": (layers.ff.bias,) if layers.ff.glu else (),
        "cross_attend": (layers.kind == "cross_attender",),
    }  # fmt: skip
    hidden = leaf == "max_distance" and layers.window is not None  # no distance is as far as the window
    part = at(config, path[:-1])
    if isinstance(part, Rope):
        meant["dim"] = (layers.head_dim,)
    if isinstance(part, Alibi):  # learned slopes are a start; as many heads as slopes are said twice
        meant["slopes"] = (part.slopes,) if part.learned and part.slopes else ()
        meant["heads"] = (len(part.slopes),) if part.slopes else meant["heads"]
    return hidden or value in meant.get(str(leaf), ())


def at(config, path: Path):
    for step in path:
        config = config[step] if isinstance(step, int) else getattr(config, step)
    return config


def default_at(config, path: Path):
    return type(at(config, path[:-1])).model_fields[path[-1]].default


def changed(config, before: Path = ()) -> Iterator[Path]:
    """Paths of the settings that have a default and are not at it."""
    for name, field in type(config).model_fields.items():
        value, path = getattr(config, name), (*before, name)
        if name in ("kind", "head_dim") or (not field.is_required() and value == field.default):
            continue
        if name == "position":
            for i, part in enumerate(value):
                yield from changed(part, (*path, i))
        elif hasattr(value, "model_fields"):
            yield from changed(value, path)
        elif not field.is_required():
            yield path


def replaced(config, path: Path, value):
    """The config with another value at a path."""
    step, rest = path[0], path[1:]
    if isinstance(config, tuple):
        return tuple(replaced(item, rest, value) if i == step else item for i, item in enumerate(config))
    old = getattr(config, step)
    return config.model_copy(update={step: replaced(old, rest, value) if rest else value})


ORACLES: list[Callable[..., Iterator[str]]] = [
    decoding, padding, reaching, order, shifting, listing, rotating, laws, both_sides, fusing, training, settings,
]  # fmt: skip
