"""A model of x_positional as a published family: its config.json and tensors, or the reasons why no family fits."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from torch import Tensor

from x_positional.config.models import ModelConfig
from x_positional.config.vision import VisionConfig
from x_positional.errors import MAX_SHOWN, PretrainedError, RopeError, did_you_mean
from x_positional.models.language import TokenEncoder
from x_positional.models.saving import Saveable
from x_positional.pretrained.config_json.canonical import AnyConfig, canonical, differences
from x_positional.pretrained.config_json.codecs import Fields, WriteOnly
from x_positional.pretrained.families import FAMILIES
from x_positional.pretrained.family import Family
from x_positional.pretrained.model_kinds import MODEL_KINDS, kind_of, layers_of, side_of
from x_positional.pretrained.modeling import code_for, save_with_code
from x_positional.pretrained.tensors.load import sizes_at
from x_positional.pretrained.tensors.write import write_folder

DTYPE_KEY = "dtype"
REWRITTEN = {"dtype", "torch_dtype", "transformers_version", "auto_map"}
"""Keys of the original config that are not kept. auto_map names files of code, which are not written."""
SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
CANNOT_WRITE = "this model cannot be written for transformers"


@dataclass(frozen=True)
class Fit:
    """A model expressed as a family's config.json, and read back."""

    family: Family
    hf: Mapping[str, Any]
    """The config.json."""
    config: AnyConfig | None
    """What the config.json reads back as; None if it cannot be read."""
    mismatches: Mapping[str, tuple[Any, Any]]
    """Field -> (value of the model, value that the config.json reads back as), where they differ."""
    problems: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether the config.json expresses the whole model."""
        return not self.mismatches and not self.problems


def save_hf(model: Saveable, folder: Path, model_type: str | None = None, code: bool | None = None) -> None:
    """Write a model for transformers.

    Args:
        model: A built model.
        folder: Created if it does not exist.
        model_type: The family to write.
        code: As in `save_pretrained`.

    Raises:
        PretrainedError: With the settings that no family supports, where a family was asked for; or where neither a family nor
            a class of `x_positional.hf` expresses the model.
    """
    if code and model_type is not None:
        problem = f"model_type={model_type!r} asks for a family, and code=True for none. Leave one of them out."
        raise PretrainedError(f"{CANNOT_WRITE}:", [problem])
    if code:
        save_with_code(model, folder)
        return
    try:
        config, tensors = as_family(model, model_type)
    except PretrainedError as error:
        if code is False or model_type is not None:
            raise
        _save_without_family(model, folder, error)
    else:
        write_folder(folder, config, tensors)


def _save_without_family(model: Saveable, folder: Path, reason: PretrainedError) -> None:
    """Write a model that no family expresses. Raises PretrainedError with both reasons where nothing else does."""
    try:
        code_for(model)
    except PretrainedError as error:
        what = str(reason).partition("\n")[0]
        raise PretrainedError(what, [*reason.problems, f"with code=True: {error.problems[0]}"]) from None
    save_with_code(model, folder)


def as_family(model: Saveable, model_type: str | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config.json and the tensors of a model as a published family. Raises PretrainedError where none expresses it."""
    config = model.config
    if not isinstance(config, AnyConfig):
        raise PretrainedError(
            f"a {type(model).__name__} cannot be written for transformers:",
            ["only text models, encoder-decoders and image models can."],
        )
    headed, fit = is_headed(model), fit_of(model, model_type)
    tensors = export_tensors(model, fit)
    dtype = next(iter(tensors.values())).dtype
    body = fit.family.body_architecture
    architectures = {} if headed or not body else {"architectures": [body]}
    hf = {key: value for key, value in fit.hf.items() if key not in REWRITTEN}
    dtype_key = {DTYPE_KEY: str(dtype).removeprefix("torch.")}
    return {**_other_keys(model, fit.family), **hf, **architectures, **dtype_key}, tensors


def is_headed(model: Saveable) -> bool:
    """Whether a model has a head."""
    config = model.config
    return config.num_classes is not None if isinstance(config, VisionConfig) else not isinstance(model, TokenEncoder)


def fit_of(model: Saveable, model_type: str | None = None) -> Fit:
    """The model as its own family, or as the first that expresses it. Raises PretrainedError where none does."""
    config, headed = model.config, is_headed(model)
    return _prefer_original(model, best_fit(config, _candidates(model, config, model_type, headed), headed), headed)


def best_fit(config: AnyConfig, families: list[Family], headed: bool = True) -> Fit:
    """The first family that expresses exactly this model.

    Args:
        config: Of the model.
        families: In the order in which they are tried.
        headed: Whether the model has a head.

    Raises:
        PretrainedError: If there is none, with the settings that the closest family lacks.
    """
    ours, closest = canonical(config, headed), None
    for family in families:
        fit = fit_family(family, ours, headed)
        if fit.exact:
            return fit
        if closest is None or _distance(fit) < _distance(closest):
            closest = fit
    if closest is None:
        raise PretrainedError(f"{CANNOT_WRITE}:", ["no family has models of this kind."])
    unread = closest.config is None  # then there is no config to compare with
    needs = [] if unread else [_need(path, own, theirs) for path, (own, theirs) in closest.mismatches.items()]
    raise PretrainedError(
        f"{CANNOT_WRITE}; the closest family is {closest.family.model_type}:",
        [*closest.problems, *needs[: MAX_SHOWN - 2 - len(closest.problems)], *_way_out(closest, needs)],
    )


def _need(path: str, own: Any, theirs: Any) -> str:
    """A setting that the family needs, by the key of the model's config. Layers that agree share one value."""
    key = re.sub(r"(^|\.)each\.", r"\1layers.", path)
    if key != path and all(isinstance(v, list) and all(one == v[0] for one in v) for v in (own, theirs)):
        own, theirs = own[0], theirs[0]
    elif key != path:
        key += " of each layer"
    return f"it needs {key}={_short(theirs)} (this model: {_short(own)})."


def _way_out(fit: Fit, needs: list[str]) -> list[str]:
    """Settings that were left out, and what to do."""
    shown = MAX_SHOWN - 2 - len(fit.problems)
    more = [f"and {len(needs) - shown} more settings."] if len(needs) > shown else []
    how = "a model with these keys in its config can be written; " if needs and not fit.problems else ""
    as_it_is = "code=True (--code) or format='native' (--format native) writes this one as it is, for x_positional."
    return [*more, f"{how}{as_it_is}"]


def _short(value: Any) -> str:
    """A value as it is written in a config: without defaults, and one scheme without a list."""
    if isinstance(value, tuple) and len(value) == 1:
        return _short(value[0])
    return repr(_written(value))


def _written(value: Any) -> Any:
    if isinstance(value, BaseModel):
        kind = {"kind": getattr(value, "kind")} if "kind" in type(value).model_fields else {}  # noqa: B009
        return kind | {name: _written(inner) for name, inner in value.model_dump(exclude_defaults=True).items()}
    return [_written(one) for one in value] if isinstance(value, list | tuple) else value


def _distance(fit: Fit) -> int:
    return len(fit.mismatches) + len(fit.problems)


def _prefer_original(model: Saveable, fit: Fit, headed: bool) -> Fit:
    """The same with the config.json that the model was loaded with, where that is still exact: all of its keys are kept."""
    origin = model.origin
    if origin is None or origin.family is not fit.family:
        return fit
    constants = {codec.key: codec.value for codec in fit.family.codecs if isinstance(codec, WriteOnly)}
    own = fit_family(fit.family, canonical(model.config, headed), headed, {**origin.config, **constants})
    return own if own.exact else fit


def fit_family(family: Family, ours: Fields, headed: bool = True, hf: Mapping[str, Any] | None = None) -> Fit:
    """Write canonical fields as a family's config.json (unless `hf` is given), read it back, and compare."""
    if headed and not family.architecture:
        return Fit(family, {}, None, {}, (f"transformers has no class for a {family.model_type} with a head.",))
    try:
        hf = family.to_hf(ours) if hf is None else hf
    except RopeError as error:
        return Fit(family, {}, None, {}, tuple(error.problems))
    fields, problems = family.to_fields(hf)
    fields |= {path: ours[path] for path in (*family.inferred, *family.optional) if path in ours}
    if problems:
        return Fit(family, hf, None, differences(ours, fields), tuple(problems))
    try:
        config = MODEL_KINDS[family.kind].config(fields)
    except ValueError as error:
        return Fit(family, hf, None, {}, (str(error),))
    return Fit(family, hf, config, differences(ours, canonical(config, headed)))


def export_tensors(model: Saveable, fit: Fit) -> dict[str, Tensor]:
    """Published name -> tensor, in the layout of the family."""
    config, read_back = model.config, fit.config
    if read_back is None or not isinstance(config, AnyConfig):
        raise PretrainedError(f"{CANNOT_WRITE}:", list(fit.problems) or ["no family fits it."])
    out: dict[str, Tensor] = {}
    problems = []
    for name, parameter in model.named_parameters():
        location = fit.family.locate(name)
        if location is None:
            problems.append(f"no checkpoint mapping for parameter {name} in family {fit.family.model_type!r}.")
            continue
        sizes = sizes_at(layers_of(read_back, name), location)
        stored = location.layout.store(_shift_gain(name, parameter.detach(), config, read_back), sizes)
        out |= dict(zip(location.names(sizes), stored, strict=True))
    if problems:
        raise PretrainedError(f"{CANNOT_WRITE}:", problems)
    return {name: tensor.contiguous().cpu() for name, tensor in out.items()}


def _shift_gain(name: str, tensor: Tensor, ours: AnyConfig, theirs: AnyConfig) -> Tensor:
    """Add or subtract 1 where only one of the two configs stores a gain as gain - 1."""
    if not name.endswith(".gain") or name.endswith("_residual.gain"):  # the second is LayerScale's
        return tensor
    own, (other, short) = side_of(ours, name)[0], side_of(theirs, name)
    shift = int(_unit_offset(short, own)) - int(_unit_offset(short, other))
    return tensor if shift == 0 else (tensor.double() + shift).to(tensor.dtype)


def _unit_offset(name: str, config: ModelConfig | VisionConfig) -> bool:
    """Whether a gain is stored as gain - 1."""
    if isinstance(config, VisionConfig):
        if name.startswith("tokens_norm"):
            return config.tokens_norm is not None and config.tokens_norm.unit_offset
        return not name.startswith("emb_norm") and config.layers.norm.unit_offset
    if name.startswith("emb_norm"):
        return config.emb_norm is not None and config.emb_norm.unit_offset
    if name.startswith("head."):
        return config.head is not None and config.head.norm.unit_offset
    if ".q_norm." in name or ".k_norm." in name:
        layer, kinds = int(name.split("blocks.")[1].split(".")[0]), config.layers.layer_kinds()
        return (kinds[layer % len(kinds)].attn or config.layers.attn).qk_norm_unit_offset
    return config.layers.norm.unit_offset


def _candidates(model: Saveable, config: AnyConfig, model_type: str | None, headed: bool) -> list[Family]:
    """Families to try: the requested one; otherwise that of the checkpoint, then all of the kind."""
    if model_type is not None:
        if model_type not in FAMILIES:
            raise PretrainedError(
                f"{CANNOT_WRITE}:", [f"unknown model_type={model_type!r}; {did_you_mean(model_type, FAMILIES)}"]
            )
        family = FAMILIES[model_type].written_as or FAMILIES[model_type]
        return [family, *family.variants.values()]
    own = [] if model.origin is None else [model.origin.family]
    kind = kind_of(config)
    every = [each for family in FAMILIES.values() for each in (family, *family.variants.values())]
    others = [family for family in every if family not in own and family.kind == kind]
    return own + [f for f in others if f.written_as is None and (f.architecture or not headed)]


def _other_keys(model: Saveable, family: Family) -> dict[str, Any]:
    """Keys of the original config that no codec writes. For another family, the ids of special tokens, including None:
    the defaults of the family's class would be other tokens.
    """
    hf = {} if model.origin is None else model.origin.config
    if model.origin is not None and model.origin.family is family:
        return {key: value for key, value in hf.items() if key not in family.keys | REWRITTEN}
    return {key: hf.get(key) for key in SPECIAL_IDS}


__all__ = ["as_family", "best_fit", "export_tensors", "fit_family", "fit_of", "save_hf"]
