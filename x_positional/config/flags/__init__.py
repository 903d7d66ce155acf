"""x-transformers' keyword flags -> the fields of the config, as plain nested dicts that the config classes validate."""

from collections.abc import Mapping
from typing import Any

from x_positional.config.flags.layers import CLASSES, LAYERS, layer_fields, layer_reader
from x_positional.config.flags.position import with_table
from x_positional.config.flags.reader import Fields, FlagReader, check_flags, require_bounded_flags, same
from x_positional.config.layers import LayersConfig
from x_positional.errors import FlagError, shown

__all__ = [
    "FlagError",
    "check_flags",
    "continuous_from_flags",
    "layers_from_flags",
    "model_from_flags",
    "vision_from_flags",
    "xtransformer_from_flags",
]

TRANSFORMER, CONTINUOUS, SEQ2SEQ = "TransformerWrapper", "ContinuousTransformerWrapper", "XTransformer"
VISION = "ViTransformerWrapper"
NEEDED = {TRANSFORMER: ("num_tokens", "max_seq_len"), VISION: ("image_size", "patch_size")}
HEAD = ("logits_dim", "tie_embedding", "tie_embedding_scale", "head", "logits_bias", "logits_scale", "logits_softcap")


def layers_from_flags(kind: str, flags: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `LayersConfig` for an "encoder", "decoder" or "cross_attender".

    Raises FlagError with every problem at once: unknown and refused flags, flags that cannot be combined, settings of a
    scheme that is off. `position` is left out where no scheme was chosen.
    """
    where, problems = CLASSES.get(kind, LAYERS) if isinstance(kind, str) else LAYERS, []
    require_bounded_flags(where, flags)
    fields = layer_fields(layer_reader(kind, flags, problems), kind)
    _raise(where, problems)
    return fields


def model_from_flags(num_tokens: int, max_seq_len: int, flags: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `ModelConfig`.

    Args:
        num_tokens: Vocabulary size.
        max_seq_len: Trained length.
        flags: Those of TransformerWrapper, with `attn_layers` (a `LayersConfig` or its fields), or with `kind` and the
            flags of the layers in the same dict.

    Raises:
        FlagError: With every problem at once.
    """
    problems: list[str] = []
    sizes = {"num_tokens": num_tokens, "max_seq_len": max_seq_len}
    require_bounded_flags(TRANSFORMER, {**flags, **sizes})
    for name in sizes:
        if name in flags and not same(flags[name], sizes[name]):
            given, other = shown(sizes[name]), shown(flags[name])
            problems.append(f"{name} is {given} and {name}={other} among the flags. Give it once.")
    fields = _wrapped(TRANSFORMER, {**flags, **sizes}, problems)
    _raise(TRANSFORMER, problems)
    return fields


def continuous_from_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The same for ContinuousTransformerWrapper: max_seq_len, dim_in, dim_out, emb_dropout, post_emb_norm, layers."""
    problems: list[str] = []
    require_bounded_flags(CONTINUOUS, flags)
    fields = _wrapped(CONTINUOUS, flags, problems)
    _raise(CONTINUOUS, problems)
    return fields


def vision_from_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The same for ViTransformerWrapper: the fields of `VisionConfig`."""
    problems: list[str] = []
    require_bounded_flags(VISION, flags)
    fields = _wrapped(VISION, flags, problems)
    _raise(VISION, problems)
    return fields


def xtransformer_from_flags(dim: int, flags: Mapping[str, Any]) -> dict[str, Any]:
    """`encoder` and `decoder` (fields of `ModelConfig` each), tie_token_emb, ignore_index, pad_value.

    flags: those of XTransformer, and those of TransformerWrapper and of the layers with `enc_` or `dec_` before them.
    Raises FlagError with every problem at once; a flag with neither prefix is one.
    """
    problems: list[str] = []
    require_bounded_flags(SEQ2SEQ, {**flags, "dim": dim})
    shared: dict[str, Any] = {"dim": dim}
    sides: dict[str, dict[str, Any]] = {"enc_": {}, "dec_": {}}
    known = FlagReader({}, [SEQ2SEQ], []).table
    for name, value in flags.items():
        if name[:4] in sides:
            sides[name[:4]][name[4:]] = value
        elif name in known:
            shared[name] = value
        else:
            problems.append(f"{name} is not a flag of XTransformer; use enc_{name}, dec_{name}, or both.")
    read = FlagReader(shared, [SEQ2SEQ], problems)
    read.check()
    fields = {name: read.value(name) for name in ("tie_token_emb", "ignore_index", "pad_value")}
    fields["encoder"] = _side("encoder", dim, sides["enc_"], problems)
    fields["decoder"] = _side("decoder", dim, sides["dec_"], problems)
    _raise(SEQ2SEQ, problems)
    return fields


def _raise(where: str, problems: list[str]) -> None:
    if problems:
        raise FlagError(where, problems)


def _side(kind: str, dim: int, flags: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    prefix, decoder = kind[:3] + "_", kind == "decoder"
    fixed = {
        "dim": (dim, "both sides share dim="),
        "kind": (kind, "the prefix sets it"),
        "cross_attend": (decoder, "the decoder attends to the encoder, and the encoder to nothing else"),
        "only_cross": (False, "without self-attention a token does not see earlier ones"),
    }
    for name, (value, why) in fixed.items():
        if name in flags and not same(flags[name], value):
            problems.append(f"{prefix}{name}={shown(flags[name])} is refused: {why}. Leave it out.")
    headless = () if decoder else HEAD
    for name in headless:
        if name in flags:
            problems.append(f"{prefix}{name} sets the head, and an encoder has none. Use dec_{name}.")
    given = {name: value for name, value in flags.items() if name not in fixed and name not in headless}
    given |= {"dim": dim, "kind": kind} | ({"cross_attend": True} if decoder else {})
    return _wrapped(TRANSFORMER, given, problems, prefix)


def _wrapped(where: str, flags: Mapping[str, Any], problems: list[str], prefix: str = "") -> dict[str, Any]:
    """The fields of one wrapper and its layers; problems are added to `problems`."""
    given = dict(flags)
    layers, kind = given.pop("attn_layers", None), given.pop("kind", None)
    required = NEEDED.get(where, ())
    if layers is None:
        read = layer_reader(kind, given, problems, where, prefix=prefix, missing=required)
        layers = layer_fields(read, kind)
    else:
        read = FlagReader(given, [where], problems, prefix=prefix)
        read.check(required)
        if not isinstance(layers, LayersConfig | Mapping):
            problems.append(f"attn_layers={shown(layers)} must be a LayersConfig, or its fields as a dict.")
            layers = {}
    fields = Fields(read)
    fields.set_copied(where)
    if where == TRANSFORMER:
        _check_head(read)
        if read.given.get("tie_embedding_scale") is not None:
            fields.set("tie_embedding_scale", read.value("tie_embedding_scale"), "tie_embedding_scale")
    if same(read.given.get("max_seq_len"), 0):
        problems.append(
            f"{prefix}max_seq_len=0 is refused. Give the trained length; to switch off the table use {prefix}use_abs_pos_emb=False."
        )
    if isinstance(layers, LayersConfig):
        position = layers.position if where == VISION else with_table(layers.position, read)
        return {**fields.tree, "layers": layers if position is layers.position else layers.with_position(position)}
    position = layers.get("position") if where == VISION else with_table(layers.get("position"), read)
    return {**fields.tree, "layers": dict(layers) if position is None else {**layers, "position": position}}


def _check_head(read: FlagReader) -> None:
    tied = read.value("tie_embedding") is True
    if read.asked("tie_embedding_scale") and not tied:
        read.problem(
            f"{read.shown('tie_embedding_scale')} has no effect without {read.prefix}tie_embedding=True. "
            "Give both, or neither."
        )
    logits_dim, num_tokens = read.value("logits_dim"), read.value("num_tokens")
    if tied and logits_dim is not None and not same(logits_dim, num_tokens):
        read.problem(
            f"{read.shown('logits_dim')} with {read.prefix}tie_embedding=True: tied logits have "
            f"num_tokens={shown(num_tokens)} columns. Leave one of them out."
        )
