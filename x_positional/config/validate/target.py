"""From the target of `check` (a config, a module, a file, fields or flags) to the stacks of layers that are checked."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pydantic import ValidationError
from torch import nn

from x_positional.config.flags import (
    continuous_from_flags,
    layers_from_flags,
    model_from_flags,
    vision_from_flags,
    xtransformer_from_flags,
)
from x_positional.config.flags.reader import MAX_HINTS
from x_positional.config.flags.table import PLACES
from x_positional.config.layers import LayersConfig
from x_positional.config.models import ContinuousConfig, ModelConfig
from x_positional.config.reading import parse_yaml, read_text
from x_positional.config.seq2seq import Seq2SeqConfig
from x_positional.config.validate.fields import invalid_fields
from x_positional.config.vision import VisionConfig
from x_positional.errors import ConfigError, FlagError, nearest
from x_positional.schemes.base import Dims
from x_positional.schemes.suggest import messages, suggestion, user_path, value_at
from x_positional.schemes.values import bound_problems

AnyConfig = ModelConfig | ContinuousConfig | LayersConfig | VisionConfig


@runtime_checkable
class Configured(Protocol):
    """A built module with its config."""

    config: Any


@runtime_checkable
class Sized(Protocol):
    """A built stack of layers with the sizes that its wrapper gave it."""

    dims: Dims


@dataclass(frozen=True)
class Stack:
    """One stack to check."""

    config: AnyConfig
    """The stack, or the model around it."""
    max_seq_len: int | None = None
    """Trained length of a stack without a model."""
    embed_dim: int | None = None
    """Width of its embeddings."""
    doubtful: frozenset[str] = frozenset()
    """Fields that could not be read and were replaced by their defaults."""


@dataclass(frozen=True)
class Reading:
    """What was read from a target."""

    stacks: dict[str, Stack]
    """By name; the only one has an empty name."""
    problems: list[str]
    """Why the rest could not be read."""


def read_target(target: Any, flags: Mapping[str, Any]) -> Reading:
    """Never raises: whatever cannot be read becomes a problem."""
    if problems := bound_problems(target if isinstance(target, Mapping) else flags):
        return Reading({}, problems)
    if target is not None and flags:
        names = ", ".join(flags)
        return Reading(
            {}, [f"{names} given together with a {type(target).__name__}: give a target or keyword flags, not both."]
        )
    if target is None:
        return _of_flags(flags)
    if isinstance(target, str | Path):
        return _of_file(Path(target))
    if isinstance(target, Mapping):
        return _of_fields(target)
    if isinstance(target, nn.Module):
        return _of_module(target)
    if isinstance(target, Seq2SeqConfig):
        if problems := invalid_fields(target):
            return Reading({}, problems)
        return Reading({"encoder": Stack(target.encoder), "decoder": Stack(target.decoder)}, [])
    if isinstance(target, AnyConfig):
        return Reading({"": Stack(target)}, [])
    return Reading(
        {},
        [
            f"{type(target).__name__} cannot be checked. Give a config, a model, a dict of fields, the path of a YAML file, or "
            "keyword flags."
        ],
    )


def _of_module(module: nn.Module) -> Reading:
    """The outermost modules with a config: one, or the two sides of an XTransformer."""
    found: dict[str, Stack] = {}
    for name, part in module.named_modules():
        inside = any(name.startswith(f"{outer}." if outer else "") for outer in found)
        if inside or not isinstance(part, Configured) or not isinstance(part.config, AnyConfig):
            continue
        dims = part.dims if isinstance(part, Sized) else None
        found[name] = Stack(part.config, dims and dims.max_seq_len, dims and dims.embed_dim)
    if found:
        return Reading(found, [])
    return Reading(
        {},
        [
            f"{type(module).__name__} was not built from a config or flags, so there is nothing to check. Check the flags."
        ],
    )


def _of_file(path: Path) -> Reading:
    try:
        text = read_text(path)
    except ConfigError as error:
        return Reading({}, [f"{error}. Give the path of a YAML file, or flags: check(position='rope', ...)."])
    try:
        return _of_fields(parse_yaml(text, str(path)))
    except ConfigError as error:
        return Reading({}, [str(error)] if error.problems == [str(error)] else error.problems)


def _of_fields(data: Mapping[Any, Any]) -> Reading:
    """The fields of a model, of layers, or a file's `model:` section."""
    if isinstance(data.get("model"), Mapping):
        data = data["model"]
    schema = LayersConfig
    if {"image_size", "patch_size"} & set(data):
        return _validated(VisionConfig, data)
    if "layers" in data or "num_tokens" in data or "max_seq_len" in data:
        schema = ContinuousConfig if "num_tokens" not in data and {"dim_in", "dim_out"} & set(data) else ModelConfig
    return _validated(schema, data)


def _validated(schema: type[AnyConfig], data: Mapping[Any, Any], name: str = "") -> Reading:
    try:
        return Reading({name: Stack(schema.parse(dict(data)))}, [])
    except ValidationError as error:
        problems = [f"{name}: {text}" if name else text for text in messages(schema, error, data)]
        corrected, doubtful = _corrected(schema, error, data)
    try:
        return Reading({name: Stack(schema.parse(corrected), doubtful=doubtful)}, problems)
    except ValidationError:
        return Reading({}, problems)


def _corrected(schema: type[AnyConfig], error: ValidationError, data: Mapping[Any, Any]) -> tuple[Any, frozenset[str]]:
    """A copy to check further: unknown names replaced by the nearest, invalid values by their defaults."""
    corrected, doubtful = _copied(data), set()
    for problem in reversed(error.errors(include_url=False)):  # the last of a list goes first
        *place, leaf = user_path(problem["loc"], data)
        section = value_at(corrected, tuple(place))
        found = suggestion(schema, problem["loc"], data) if problem["type"] == "extra_forbidden" else None
        if found is None:
            doubtful.add(next((step for step in reversed((*place, leaf)) if isinstance(step, str)), ""))
        if isinstance(section, list) and isinstance(leaf, int):
            del section[leaf : leaf + 1]  # none where nested lists were flattened before
        elif isinstance(section, dict) and leaf in section:
            value = section.pop(leaf)
            better = None if found is None else value_at(corrected, found[:-1])
            if found is not None and isinstance(better, dict):
                better.setdefault(found[-1], value)
    return corrected, frozenset(doubtful)


def _copied(data: Any) -> Any:
    """New dicts and lists around the same values."""
    if isinstance(data, Mapping):
        return {name: _copied(value) for name, value in data.items()}
    return [_copied(value) for value in data] if isinstance(data, list | tuple) else data


def _of_flags(flags: Mapping[str, Any]) -> Reading:
    """Keyword flags of Encoder, Decoder (or `kind=`), of a wrapper together with them, or of XTransformer."""
    given = dict(flags)
    if isinstance(layers := given.get("attn_layers"), Configured) and isinstance(layers.config, LayersConfig):
        given["attn_layers"] = {name: getattr(layers.config, name) for name in LayersConfig.model_fields}
    try:
        return _fields_of_flags(given, [])
    except FlagError as error:
        problems = error.problems
    try:
        return _fields_of_flags(_corrected_flags(given), problems)
    except FlagError:
        return Reading({}, problems)


def _fields_of_flags(flags: Mapping[str, Any], problems: list[str]) -> Reading:
    if any(name.startswith(("enc_", "dec_")) for name in flags):
        rest = dict(flags)
        fields = xtransformer_from_flags(rest.pop("dim", None), rest)
        sides = {side: _validated(ModelConfig, fields[side], side) for side in ("encoder", "decoder")}
        stacks = {name: stack for side in sides.values() for name, stack in side.stacks.items()}
        return Reading(stacks, problems + [p for side in sides.values() for p in side.problems])
    image = bool({"image_size", "patch_size"} & set(flags))
    flags = {"kind": "encoder" if image else "decoder", **flags} if "attn_layers" not in flags else dict(flags)
    if image:
        schema, fields = VisionConfig, vision_from_flags(flags)
    elif "dim_in" in flags or "dim_out" in flags:
        schema, fields = ContinuousConfig, continuous_from_flags(flags)
    elif _of_wrapper(flags):
        sizes = {"num_tokens": 256, **flags}  # the verdict does not depend on the vocabulary
        schema, fields = ModelConfig, model_from_flags(sizes["num_tokens"], sizes.get("max_seq_len"), sizes)  # type: ignore[arg-type]
    else:
        schema, fields = LayersConfig, layers_from_flags(flags.pop("kind"), flags)
    read = _validated(schema, fields)
    return Reading(read.stacks, problems + [p.replace("layers.", "") for p in read.problems])  # flags have no sections


def _of_wrapper(flags: Mapping[str, Any]) -> bool:
    own = set(PLACES["TransformerWrapper"]) - set(PLACES["AttentionLayers"])
    return bool(own & set(flags))


def _corrected_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Unknown flags replaced by the nearest known one, refused ones left out."""
    places = (
        "AttentionLayers",
        "TransformerWrapper",
        "ContinuousTransformerWrapper",
        "XTransformer",
        "ViTransformerWrapper",
    )
    table = {name: flag for place in places for name, flag in PLACES[place].items()}
    known = {"kind", *(name for name, flag in table.items() if flag.verdict == "supported")}
    names, hints = sorted(known), MAX_HINTS
    corrected: dict[str, Any] = {}
    for name, value in flags.items():
        prefix = name[:4] if name[:4] in ("enc_", "dec_") else ""
        bare = name.removeprefix(prefix)
        close = bare if bare in table or bare in known else nearest(bare, names) if hints > 0 else None
        hints -= close != bare
        if close in known and (close == bare or prefix + close not in flags):
            corrected[prefix + close] = value
    return corrected
