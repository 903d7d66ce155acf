"""The form of a model of x-transformers, {class: its keywords}, and the model of ours with the same meaning.

Keywords mean here what they mean in x-transformers, also where the same keyword does something else in this library.
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
from x_positional.config.layers import ContinuousConfig, ModelConfig
from x_positional.config.vision import VisionConfig
from x_positional.errors import ConversionError, FlagError, IncompatibleConfig
from x_positional.models.autoregressive import AutoregressiveWrapper
from x_positional.models.continuous import ContinuousTransformerWrapper
from x_positional.models.language import TokenEncoder, TransformerWrapper
from x_positional.models.seq2seq import XTransformer
from x_positional.models.stacks import LAYERS
from x_positional.models.vision import ViTransformerWrapper
from x_positional.pretrained.x_transformers.keywords import PLACING, Flags, cut_sides, layers_meaning, settle_table

KINDS = {kind.__name__: name for name, kind in LAYERS.items()}
"""Decoder -> decoder."""
LOSS = ("ignore_index", "pad_value")


@dataclass(frozen=True)
class Core:
    """A model with a stack inside a whole model. theirs, ours: what its tensors' names start with. bare: it is the stack.
    flags: of its layers."""

    model: nn.Module
    flags: Mapping[str, Any]
    theirs: str = ""
    ours: str = ""
    bare: bool = False


@dataclass(frozen=True)
class Built:
    """A whole model without weights, and the stacks in it."""

    model: nn.Module
    cores: Sequence[Core]


def built(form: Mapping[str, Any]) -> Built:
    """The model of a form. Raises ConversionError with everything that cannot be had."""
    name, flags = only(form, (*MAKERS, *KINDS))
    problems: list[str] = []
    try:
        made = _stack(name, flags, problems) if name in KINDS else MAKERS[name](flags, problems)
    except FlagError as error:
        problems += error.problems
    except IncompatibleConfig as error:
        problems += [] if problems else [line.removeprefix("- ") for line in str(error).splitlines()]
    except ValueError as error:  # sizes that no config can hold
        problems += [str(error)]
    else:
        if not problems:
            return made
    raise ConversionError(f"this {name} has no equal here:", problems)


def only(form: Any, names: Sequence[str]) -> tuple[str, Flags]:
    """The class and the keywords of a form. Raises ConversionError for anything else."""
    if isinstance(form, Mapping) and len(form) == 1:
        (name, flags), *_ = form.items()
        if name in names and isinstance(flags, Mapping):
            return name, dict(flags)
    shown = form if not isinstance(form, Mapping) else dict.fromkeys(form, "...")
    raise ConversionError(
        f"{shown!r} is not the form of a model:",
        [
            f'it is one class and its keywords, as {{"TransformerWrapper": {{"num_tokens": 256, "attn_layers": {{"Decoder": '
            f'{{"dim": 512}}}}}}}}; the classes here: {", ".join(names)}.'
        ],
    )


def _stack(name: str, flags: Flags, problems: list[str]) -> Built:
    layers = layers_meaning(KINDS[name], flags, problems)
    settle_table(layers, {}, sized=False)
    fields = layers_from_flags(KINDS[name], layers)
    kind = LAYERS[KINDS[name]]  # type: ignore[index]
    model = kind.from_config({**fields, "kind": KINDS[name]})
    return Built(model, [Core(model, flags, bare=True)])


def _inside(flags: Flags, problems: list[str], *, sized: bool, always: bool = False) -> tuple[Flags, Flags]:
    """The flags of a wrapper with those of its layers, and those of the layers as they were given."""
    name, given = only(flags.pop("attn_layers", None), tuple(KINDS))
    layers = layers_meaning(KINDS[name], given, problems)
    settle_table(layers, flags, sized=sized, always=always)
    return {**flags, **layers, "kind": KINDS[name]}, given


def _transformer(flags: Flags, problems: list[str]) -> Built:
    headless = bool(flags.pop("return_only_embed", False))
    merged, given = _inside(flags, problems, sized=flags.get("max_seq_len") != 0)
    fields = model_from_flags(flags.get("num_tokens"), flags.get("max_seq_len"), merged)  # type: ignore[arg-type]
    model = (TokenEncoder if headless else TransformerWrapper).from_config(ModelConfig.model_validate(fields))
    return Built(model, [Core(model, given)])


def _continuous(flags: Flags, problems: list[str]) -> Built:
    if not flags.get("max_seq_len"):
        flags.pop("max_seq_len", None)
    merged, given = _inside(flags, problems, sized="max_seq_len" in flags)
    model = ContinuousTransformerWrapper.from_config(ContinuousConfig.model_validate(continuous_from_flags(merged)))
    return Built(model, [Core(model, given)])


def _vision(flags: Flags, problems: list[str]) -> Built:
    merged, given = _inside(flags, problems, sized=True, always=True)
    if flags.get("num_register_tokens") and (placing := [name for name in PLACING if given.get(name)]):
        problems.append(
            f"num_register_tokens={flags['num_register_tokens']} with {placing[0]}: x-transformers puts registers after the "
            "patches and takes them for the next ones; here they are nowhere."
        )
    model = ViTransformerWrapper.from_config(VisionConfig.model_validate(vision_from_flags(merged)))
    return Built(model, [Core(model, given)])


def _xtransformer(flags: Flags, problems: list[str]) -> Built:
    rest, sides = cut_sides(flags)
    ours = dict(rest)
    for prefix, side in sides.items():
        kind = "decoder" if prefix == "dec_" else "encoder"
        layers = layers_meaning(
            kind, {**side, **({"cross_attend": True} if kind == "decoder" else {})}, problems, prefix
        )
        layers.pop("cross_attend", None)
        settle_table(layers, layers, sized=side.get("max_seq_len") != 0)
        ours |= {prefix + name: value for name, value in layers.items()}
    if "dim" not in ours:
        raise FlagError("XTransformer", [*problems, "dim is missing. Model width."])
    model = XTransformer(**ours)
    cores = [
        Core(model.encoder, sides["enc_"], "encoder.", "encoder."),
        Core(model.decoder.net, sides["dec_"], "decoder.net.", "decoder.net."),
    ]
    return Built(model, cores)


def _autoregressive(flags: Flags, problems: list[str]) -> Built:
    inner = flags.pop("net", None)
    only(inner, ("TransformerWrapper",))
    check_flags("AutoregressiveWrapper", flags)
    made = built(inner)
    (core,) = made.cores
    defaults = PLACES["AutoregressiveWrapper"]
    model = AutoregressiveWrapper(core.model, **{name: flags.get(name, defaults[name].default) for name in LOSS})  # type: ignore[arg-type]
    return Built(model, [Core(core.model, core.flags, "net.", "net.")])


MAKERS = {
    "TransformerWrapper": _transformer,
    "ContinuousTransformerWrapper": _continuous,
    "ViTransformerWrapper": _vision,
    "XTransformer": _xtransformer,
    "AutoregressiveWrapper": _autoregressive,
}
