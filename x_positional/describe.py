"""A model in words: what is applied where, which backend runs and why."""

from torch import nn

from x_positional.config import ContinuousConfig, LayerConfig, LayersConfig, ModelConfig
from x_positional.transformer import AttentionLayers
from x_positional.validate import resolve_kinds


def position_words(config: LayersConfig, max_seq_len: int | None) -> str:
    """The schemes of every kind of layer by name, with what differs from their defaults, and what the layer sees."""
    kinds = [_kind_words(kind) for kind in resolve_kinds(config, max_seq_len)]
    if len(kinds) == 1:
        return kinds[0]
    layers = {kind: [i for i in range(config.depth) if kinds[i % len(kinds)] == kind] for kind in dict.fromkeys(kinds)}
    return "; ".join(f"{kind} in layers {', '.join(map(str, those))}" for kind, those in layers.items())


def _kind_words(kind: LayerConfig) -> str:
    words = []
    for part in kind.parts:
        changed = {n: getattr(part, n) for n, f in type(part).model_fields.items() if getattr(part, n) != f.default}
        settings = ", ".join(f"{name}={value!r}" for name, value in changed.items() if name != "kind")
        words.append(f"{part.kind}({settings})" if settings else part.kind)
    seen = [f"{name} {value}" for name, value in (("window", kind.window), ("chunk", kind.chunk)) if value is not None]
    first = [f"the first {kind.keep_first}"] if kind.keep_first else []
    return ", ".join([" + ".join(words), *seen, *first])


def describe(model: nn.Module, config: ModelConfig | ContinuousConfig) -> str:
    """One line per fact. `model` holds an AttentionLayers."""
    layers = config.layers
    stack = next(m for m in model.modules() if isinstance(m, AttentionLayers))
    backends = dict.fromkeys(f"{kind.choice.name} ({kind.choice.reason})" for kind in stack.kinds)
    parameters = list(model.parameters())
    count = sum(p.numel() for p in parameters)
    unbounded = all(scheme.capabilities().unbounded for scheme in stack.position_schemes)
    past = "defined past it" if unbounded else "refused past it"
    heads = f"{layers.heads} heads of {layers.head_dim}" + (f", {layers.kv_heads} key heads" if layers.kv_heads else "")
    lines = [
        ("layers", f"{layers.kind}, {layers.depth} blocks of width {layers.dim}, {heads}"),
        ("position", position_words(layers, config.max_seq_len)),
        ("backend", "; ".join(backends)),
        ("dtype", f"{parameters[0].dtype} on {parameters[0].device}".replace("torch.", "")),
        ("parameters", f"{count:,}"),
        ("trained length", f"{config.max_seq_len} tokens; positions are {past}" if config.max_seq_len else "not named"),
    ]
    return "\n".join(f"{name:<15} {value}" for name, value in lines)
