"""From what a user has at hand (a config, a module, a file, fields, flags) to stacks of layers that can be judged."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import yaml
from pydantic import ValidationError
from torch import nn

from x_positional.config.flags import (
    continuous_from_flags,
    layers_from_flags,
    model_from_flags,
    vision_from_flags,
    xtransformer_from_flags,
)
from x_positional.config.flags.table import PLACES
from x_positional.config.layers import ContinuousConfig, LayersConfig, ModelConfig
from x_positional.config.seq2seq import Seq2SeqConfig
from x_positional.config.suggest import as_written, at, sentences, suggestion
from x_positional.config.vision import VisionConfig
from x_positional.errors import FlagError
from x_positional.schemes.base import Dims

AnyConfig = ModelConfig | ContinuousConfig | LayersConfig | VisionConfig


@runtime_checkable
class Configured(Protocol):
    """A built module that knows its config."""

    config: Any


@runtime_checkable
class Sized(Protocol):
    """A built stack of layers, which knows the sizes that its wrapper gave it."""

    dims: Dims


@dataclass(frozen=True)
class Stack:
    """One stack to judge. doubtful: fields that could not be read and stand at their defaults."""

    config: AnyConfig
    max_seq_len: int | None = None
    embed_dim: int | None = None
    doubtful: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Reading:
    """stacks by name, and what could not be read."""

    stacks: dict[str, Stack]
    problems: list[str]


def read_target(target: Any, flags: Mapping[str, Any]) -> Reading:
    """Never raises: what cannot be read is a problem."""
    if target is not None and flags:
        names = ", ".join(flags)
        return Reading({}, [f"{names} given beside {type(target).__name__}: give a target or keyword flags, not both."])
    if target is None:
        return _of_flags(flags)
    if isinstance(target, str | Path):
        return _of_file(Path(target))
    if isinstance(target, Mapping):
        return _of_fields(target)
    if isinstance(target, nn.Module):
        return _of_module(target)
    if isinstance(target, Seq2SeqConfig):
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
    """The outermost modules that have a config: one, or the two sides of an XTransformer."""
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
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        return Reading(
            {}, [f"cannot read {path}: {error}. Give the path of a YAML file, or flags: check(position='rope', ...)."]
        )
    if not isinstance(data, Mapping):
        return Reading({}, [f"{path} holds {type(data).__name__}, not keys and values of a model."])
    return _of_fields(data)


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
        return Reading({name: Stack(schema.model_validate(dict(data)))}, [])
    except ValidationError as error:
        problems = [f"{name}: {text}" if name else text for text in sentences(schema, error, data)]
        mended, doubtful = _mend(schema, error, data)
    try:
        return Reading({name: Stack(schema.model_validate(mended), doubtful=doubtful)}, problems)
    except ValidationError:
        return Reading({}, problems)


def _mend(schema: type[AnyConfig], error: ValidationError, data: Mapping[Any, Any]) -> tuple[Any, frozenset[str]]:
    """A copy that can be judged further: unknown names read as the nearest, unreadable values left at their defaults."""
    mended, doubtful = _copied(data), set()
    for problem in reversed(error.errors(include_url=False)):  # the last of a list goes first
        *place, leaf = as_written(problem["loc"], data)
        section = at(mended, tuple(place))
        found = suggestion(schema, problem["loc"], data) if problem["type"] == "extra_forbidden" else None
        if found is None:
            doubtful.add(next((step for step in reversed((*place, leaf)) if isinstance(step, str)), ""))
        if isinstance(section, list) and isinstance(leaf, int):
            del section[leaf]
        elif isinstance(section, dict) and leaf in section:
            value = section.pop(leaf)
            better = None if found is None else at(mended, found[:-1])
            if found is not None and isinstance(better, dict):
                better.setdefault(found[-1], value)
    return mended, frozenset(doubtful)


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
        return _fields_of_flags(_mend_flags(given), problems)
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


def _mend_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Unknown flags read as the nearest known one, refused ones left out."""
    places = (
        "AttentionLayers",
        "TransformerWrapper",
        "ContinuousTransformerWrapper",
        "XTransformer",
        "ViTransformerWrapper",
    )
    table = {name: flag for place in places for name, flag in PLACES[place].items()}
    known = {"kind", *(name for name, flag in table.items() if flag.verdict == "supported")}
    mended: dict[str, Any] = {}
    for name, value in flags.items():
        prefix = name[:4] if name[:4] in ("enc_", "dec_") else ""
        bare = name.removeprefix(prefix)
        close = [bare] if bare in table or bare in known else difflib.get_close_matches(bare, sorted(known), n=1)
        if close and close[0] in known and (close[0] == bare or prefix + close[0] not in flags):
            mended[prefix + close[0]] = value
    return mended
