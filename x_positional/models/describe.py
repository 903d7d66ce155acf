"""A model in words: what is applied where, which backend runs and why."""

import torch
from torch import nn

from x_positional.config.layers import LayerConfig, LayersConfig
from x_positional.config.models import ContinuousConfig, ModelConfig
from x_positional.config.vision import VisionConfig
from x_positional.modules.experts import MixtureOfExperts
from x_positional.modules.quantized import IntegerWeights
from x_positional.modules.stack import AttentionLayers


def position_words(config: LayersConfig, max_seq_len: int | None) -> str:
    """The schemes of every kind of layer by name, with what differs from their defaults, and what the layer sees."""
    kinds = [_kind_words(kind) for kind in config.resolved_layers(max_seq_len)]
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


def facts(model: nn.Module, layers: LayersConfig, max_seq_len: int | None) -> dict[str, str]:
    """What holds for any model around an AttentionLayers, by name."""
    stack = next(m for m in model.modules() if isinstance(m, AttentionLayers))
    integers = [m for m in model.modules() if isinstance(m, IntegerWeights)]
    scales = {id(scale) for module in integers for scale in module.scales()}
    parameters = [p for p in model.parameters() if id(p) not in scales]
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    backends = dict.fromkeys(f"{kind.choice.name} ({kind.choice.reason})" for kind in stack.kinds)
    heads = f"{layers.heads} heads of {layers.head_dim}" + (f", {layers.kv_heads} key heads" if layers.kv_heads else "")
    used = sum(p.numel() for p in parameters) - sum(
        m.idle() for m in model.modules() if isinstance(m, MixtureOfExperts)
    )
    total = f"{sum(p.numel() for p in parameters):,}"
    quantized = {"weights": _quantized_words(model, parameters, dtype)} if integers else {}
    return {
        "layers": f"{layers.kind}, {layers.depth} blocks of width {layers.dim}, {heads}",
        "position": position_words(layers, max_seq_len),
        "backend": "; ".join(backends),
        "dtype": f"{dtype} on {parameters[0].device}".replace("torch.", ""),
        "parameters": total if f"{used:,}" == total else f"{total}, {used:,} of them for one token",
        **quantized,
    }


def _quantized_words(model: nn.Module, parameters: list[nn.Parameter], dtype: torch.dtype) -> str:
    """How much memory quantized weights take. parameters: without scales."""
    held = sum(p.nbytes for p in model.parameters())
    plain = sum(p.numel() * (dtype.itemsize if p.dtype == torch.int8 else p.itemsize) for p in parameters)
    share = sum(p.numel() for p in parameters if p.dtype == torch.int8) / sum(p.numel() for p in parameters)
    whole = str(dtype).removeprefix("torch.")
    return f"{share:.0%} int8 with a scale per row: {held / 1e6:,.1f} MB, {plain / 1e6:,.1f} MB in {whole}"


def written(facts: dict[str, str]) -> str:
    """One line per fact."""
    return "\n".join(f"{name:<15} {value}" for name, value in facts.items())


def describe(model: nn.Module, config: ModelConfig | ContinuousConfig) -> str:
    """One line per fact. `model` holds an AttentionLayers."""
    stack = next(m for m in model.modules() if isinstance(m, AttentionLayers))
    unbounded = all(scheme.capabilities().unbounded for scheme in stack.position_schemes)
    past = "defined past it" if unbounded else "refused past it"
    length = f"{config.max_seq_len} tokens; positions are {past}" if config.max_seq_len else "not named"
    return written({**facts(model, config.layers, config.max_seq_len), "trained length": length})


POOLED = {
    "mean": "mean of the patches",
    "cls": "cls token",
    "cls_mean": "cls token and the mean of the patches",
    "attention": "patches that a learned query attends to",
}


def describe_image(model: nn.Module, config: VisionConfig, axes: int) -> str:
    """The same for a model of images whose schemes read positions with `axes` axes, 0 for none."""
    known = facts(model, config.stack, config.trained_patches)
    table = "a learned table" if config.tables else ""
    others = "" if known["position"] == "none" else known["position"]
    known["position"] = " + ".join(filter(None, (table, others))) or "none: a bag of patches"
    rows, columns = config.grid
    height, width = config.image_size
    size = f"{height} x {width} pixels, {rows} x {columns} patches of {config.patch_size[0]} x {config.patch_size[1]}"
    resized = f"; the table is resized ({config.resizing})" if config.tables else ""
    told = {
        0: "not read",
        1: "one axis: the number of the patch, row by row",
        2: f"row and column, {config.coordinates}",
    }
    beside = [f"{config.num_register_tokens} registers"] if config.num_register_tokens else []
    beside = ["the cls token", *beside] if config.has_cls else beside
    nowhere = f"; {' and '.join(beside)} at 0, not rotated" if beside and axes else ""
    head = f"{config.num_classes} classes" if config.num_classes else "no head"
    return written(
        {
            **known,
            "positions": told[axes] + nowhere,
            "trained size": f"{size}; other sizes run{resized}",
            "output": f"{head} on the {POOLED[config.pool]}",
        }
    )
