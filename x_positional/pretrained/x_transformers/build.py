"""From the form of an x-transformers model, {class name: keyword arguments}, to an x_positional model without weights.

Keywords have their x-transformers meaning, also where x_positional has a flag of the same name with another meaning.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from x_positional.config.flags import (
    check_flags,
    continuous_from_flags,
    layers_from_flags,
    model_from_flags,
    vision_from_flags,
)
from x_positional.config.flags.table import PLACES
from x_positional.config.models import ContinuousConfig, ModelConfig
from x_positional.config.vision import VisionConfig
from x_positional.errors import ConversionError, FlagError, IncompatibleConfig
from x_positional.models.autoregressive import AutoregressiveWrapper
from x_positional.models.continuous import ContinuousTransformerWrapper
from x_positional.models.language import TokenEncoder, TransformerWrapper
from x_positional.models.seq2seq import XTransformer
from x_positional.models.stacks import LAYERS
from x_positional.models.vision import ViTransformerWrapper
from x_positional.pretrained.x_transformers.keywords import (
    POSITIONAL,
    Flags,
    decide_absolute_table,
    split_sides,
    translate_layer_flags,
)

KINDS = {kind.__name__: name for name, kind in LAYERS.items()}
"""Class name -> kind of stack: Decoder -> decoder."""
LOSS = ("ignore_index", "pad_value")


@dataclass(frozen=True)
class StackOwner:
    """A model that owns one stack of layers, possibly inside a larger model."""

    model: nn.Module
    flags: Mapping[str, Any]
    """Keywords of the stack's layers, as in the form."""
    source_prefix: str = ""
    """What its parameter names start with in x-transformers."""
    target_prefix: str = ""
    """What its parameter names start with in x_positional."""
    is_stack: bool = False
    """The model is the stack itself."""


@dataclass(frozen=True)
class BuiltModel:
    """A whole model without weights, and the owner of each of its stacks."""

    model: nn.Module
    owners: Sequence[StackOwner]


def build_model(form: Mapping[str, Any]) -> BuiltModel:
    """The model of a form, on the current device. Raises ConversionError with every unsupported keyword."""
    name, flags = parse_form(form, (*BUILDERS, *KINDS))
    problems: list[str] = []
    try:
        built = _stack(name, flags, problems) if name in KINDS else BUILDERS[name](flags, problems)
    except FlagError as error:
        problems += error.problems
    except IncompatibleConfig as error:
        problems += [] if problems else [line.removeprefix("- ") for line in str(error).splitlines()]
    except ValueError as error:  # sizes that the config rejects
        problems += [str(error)]
    else:
        if not problems:
            return built
    raise ConversionError(f"this {name} cannot be converted:", problems)


def parse_form(form: Any, names: Sequence[str]) -> tuple[str, Flags]:
    """(class name, keywords) of a form whose class is one of `names`. Raises ConversionError for anything else."""
    if isinstance(form, Mapping) and len(form) == 1:
        (name, flags), *_ = form.items()
        if name in names and isinstance(flags, Mapping):
            return name, dict(flags)
    shown = form if not isinstance(form, Mapping) else dict.fromkeys(form, "...")
    raise ConversionError(
        f"{shown!r} is not a model form:",
        [
            f'expected one class name and its keywords, such as {{"TransformerWrapper": {{"num_tokens": 256, "attn_layers": '
            f'{{"Decoder": {{"dim": 512}}}}}}}}. Supported classes: {", ".join(names)}.'
        ],
    )


def _stack(name: str, flags: Flags, problems: list[str]) -> BuiltModel:
    layers = translate_layer_flags(KINDS[name], flags, problems)
    decide_absolute_table(layers, {}, sized=False)
    fields = layers_from_flags(KINDS[name], layers)
    kind = LAYERS[KINDS[name]]  # type: ignore[index]
    model = kind.from_config({**fields, "kind": KINDS[name]})
    return BuiltModel(model, [StackOwner(model, flags, is_stack=True)])


def _wrapper_flags(flags: Flags, problems: list[str], *, sized: bool, always: bool = False) -> tuple[Flags, Flags]:
    """(x_positional flags of a wrapper and its layers, keywords of the layers as given)."""
    name, given = parse_form(flags.pop("attn_layers", None), tuple(KINDS))
    layers = translate_layer_flags(KINDS[name], given, problems)
    decide_absolute_table(layers, flags, sized=sized, always=always)
    return {**flags, **layers, "kind": KINDS[name]}, given


def _transformer(flags: Flags, problems: list[str]) -> BuiltModel:
    headless = bool(flags.pop("return_only_embed", False))
    merged, given = _wrapper_flags(flags, problems, sized=flags.get("max_seq_len") != 0)
    fields = model_from_flags(flags.get("num_tokens"), flags.get("max_seq_len"), merged)  # type: ignore[arg-type]
    model = (TokenEncoder if headless else TransformerWrapper).from_config(ModelConfig.model_validate(fields))
    return BuiltModel(model, [StackOwner(model, given)])


def _continuous(flags: Flags, problems: list[str]) -> BuiltModel:
    if not flags.get("max_seq_len"):
        flags.pop("max_seq_len", None)
    merged, given = _wrapper_flags(flags, problems, sized="max_seq_len" in flags)
    model = ContinuousTransformerWrapper.from_config(ContinuousConfig.model_validate(continuous_from_flags(merged)))
    return BuiltModel(model, [StackOwner(model, given)])


def _vision(flags: Flags, problems: list[str]) -> BuiltModel:
    merged, given = _wrapper_flags(flags, problems, sized=True, always=True)
    if flags.get("num_register_tokens") and (positional := [name for name in POSITIONAL if given.get(name)]):
        problems.append(
            f"num_register_tokens={flags['num_register_tokens']} with {positional[0]}: x-transformers gives register tokens the "
            "positions after the patches; x_positional gives them none."
        )
    model = ViTransformerWrapper.from_config(VisionConfig.model_validate(vision_from_flags(merged)))
    return BuiltModel(model, [StackOwner(model, given)])


def _xtransformer(flags: Flags, problems: list[str]) -> BuiltModel:
    rest, sides = split_sides(flags)
    translated = dict(rest)
    for prefix, side in sides.items():
        kind = "decoder" if prefix == "dec_" else "encoder"
        layers = translate_layer_flags(
            kind, {**side, **({"cross_attend": True} if kind == "decoder" else {})}, problems, prefix
        )
        layers.pop("cross_attend", None)
        decide_absolute_table(layers, layers, sized=side.get("max_seq_len") != 0)
        translated |= {prefix + name: value for name, value in layers.items()}
    if "dim" not in translated:
        raise FlagError("XTransformer", [*problems, "dim is missing. Model width."])
    model = XTransformer(**translated)
    owners = [
        StackOwner(model.encoder, sides["enc_"], "encoder.", "encoder."),
        StackOwner(model.decoder.net, sides["dec_"], "decoder.net.", "decoder.net."),
    ]
    return BuiltModel(model, owners)


def _autoregressive(flags: Flags, problems: list[str]) -> BuiltModel:
    inner = flags.pop("net", None)
    parse_form(inner, ("TransformerWrapper",))
    check_flags("AutoregressiveWrapper", flags)
    built = build_model(inner)
    (owner,) = built.owners
    defaults = PLACES["AutoregressiveWrapper"]
    model = AutoregressiveWrapper(owner.model, **{name: flags.get(name, defaults[name].default) for name in LOSS})  # type: ignore[arg-type]
    return BuiltModel(model, [StackOwner(owner.model, owner.flags, "net.", "net.")])


BUILDERS = {
    "TransformerWrapper": _transformer,
    "ContinuousTransformerWrapper": _continuous,
    "ViTransformerWrapper": _vision,
    "XTransformer": _xtransformer,
    "AutoregressiveWrapper": _autoregressive,
}
