"""A model in words: what is applied where, which backend runs and why."""

from torch import nn

from x_positional.config import ContinuousConfig, LayersConfig, ModelConfig
from x_positional.transformer import AttentionLayers
from x_positional.validate import resolve_position


def position_words(config: LayersConfig, max_seq_len: int | None) -> str:
    """The schemes by name, with what differs from their defaults."""
    words = []
    for part in resolve_position(config, max_seq_len):
        changed = {n: getattr(part, n) for n, f in type(part).model_fields.items() if getattr(part, n) != f.default}
        settings = ", ".join(f"{name}={value!r}" for name, value in changed.items() if name != "kind")
        words.append(f"{part.kind}({settings})" if settings else part.kind)
    return " + ".join(words)


def describe(model: nn.Module, config: ModelConfig | ContinuousConfig) -> str:
    """One line per fact. `model` holds an AttentionLayers."""
    layers = config.layers
    stack = next(m for m in model.modules() if isinstance(m, AttentionLayers))
    choice = stack.kinds[0].choice
    parameters = list(model.parameters())
    count = sum(p.numel() for p in parameters)
    caps = stack.kinds[0].scheme.capabilities()
    past = "defined past it" if caps.unbounded else "refused past it"
    heads = f"{layers.heads} heads of {layers.head_dim}" + (f", {layers.kv_heads} key heads" if layers.kv_heads else "")
    lines = [
        ("layers", f"{layers.kind}, {layers.depth} blocks of width {layers.dim}, {heads}"),
        ("position", position_words(layers, config.max_seq_len)),
        ("backend", f"{choice.name} ({choice.reason})"),
        ("dtype", f"{parameters[0].dtype} on {parameters[0].device}".replace("torch.", "")),
        ("parameters", f"{count:,}"),
        ("trained length", f"{config.max_seq_len} tokens; positions are {past}" if config.max_seq_len else "not named"),
    ]
    return "\n".join(f"{name:<15} {value}" for name, value in lines)
