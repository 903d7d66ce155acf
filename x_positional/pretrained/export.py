"""A model of ours as a published family: its config.json and its tensors, or the reasons why no family has it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from x_positional.config.models import ModelConfig
from x_positional.config.vision import VisionConfig
from x_positional.errors import PretrainedError, RopeError, did_you_mean
from x_positional.models.language import TokenEncoder
from x_positional.models.saving import Saveable
from x_positional.pretrained.config_json.canonical import AnyConfig, canonical, differences
from x_positional.pretrained.config_json.codecs import Fields, Written
from x_positional.pretrained.families import FAMILIES
from x_positional.pretrained.family import Family
from x_positional.pretrained.model_kinds import MAKERS, kind_of, part_of
from x_positional.pretrained.tensors.load import sizes_of
from x_positional.pretrained.tensors.write import write_folder

DTYPE_KEY = "dtype"
REWRITTEN = {"dtype", "torch_dtype", "transformers_version"}
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class Fit:
    """What a family makes of a model: its config.json, the same read back, and where that differs from the model."""

    family: Family
    hf: Mapping[str, Any]
    read: AnyConfig | None
    apart: Mapping[str, tuple[Any, Any]]
    problems: tuple[str, ...] = ()


def save_hf(model: Saveable, folder: Path, model_type: str | None = None) -> None:
    """Write a model for transformers. Raises PretrainedError with what no family has."""
    config = model.config
    if not isinstance(config, AnyConfig):
        raise PretrainedError(
            f"{type(model).__name__} cannot be written for transformers:", ["only models of text and of images can."]
        )
    headed = config.num_classes is not None if isinstance(config, VisionConfig) else not isinstance(model, TokenEncoder)
    fit = _in_its_words(model, best_fit(config, _candidates(model, config, model_type, headed), headed), headed)
    tensors = tensors_of(model, fit)
    dtype = next(iter(tensors.values())).dtype
    named = {} if headed or not fit.family.body else {"architectures": [fit.family.body]}
    hf = {key: value for key, value in fit.hf.items() if key not in REWRITTEN}
    said = {**_beside(model, fit.family), **hf, **named, DTYPE_KEY: str(dtype).removeprefix("torch.")}
    write_folder(folder, said, tensors)


def best_fit(config: AnyConfig, families: list[Family], headed: bool = True) -> Fit:
    """The first family that says exactly this model. headed: False where nothing is said of its head. Raises
    PretrainedError with what the nearest one lacks."""
    ours, nearest_fit = canonical(config, headed), None
    for family in families:
        fit = fitted(family, ours, headed)
        if not fit.apart and not fit.problems:
            return fit
        if nearest_fit is None or len(fit.apart) + len(fit.problems) < len(nearest_fit.apart) + len(
            nearest_fit.problems
        ):
            nearest_fit = fit
    if nearest_fit is None:
        raise PretrainedError("this model cannot be written for transformers:", ["there is no family to try."])
    name = nearest_fit.family.model_type
    raise PretrainedError(
        f"this model cannot be written for transformers. The nearest family is {name}, and there:",
        [
            *nearest_fit.problems,
            *(f"{path} is {theirs!r}, here {ours!r}." for path, (ours, theirs) in nearest_fit.apart.items()),
        ],
    )


def _in_its_words(model: Saveable, fit: Fit, headed: bool) -> Fit:
    """The same with the config.json that the model came with, where that still says the model: every word of it stays."""
    origin = model.origin
    if origin is None or origin.family is not fit.family:
        return fit
    names = {codec.key: codec.value for codec in fit.family.fields if isinstance(codec, Written)}
    own = fitted(fit.family, canonical(model.config, headed), headed, {**origin.config, **names})
    return fit if own.apart or own.problems else own


def fitted(family: Family, ours: Fields, headed: bool = True, hf: Mapping[str, Any] | None = None) -> Fit:
    """A family's config.json for canonical fields (or one that there is), and what is lost on the way there and back."""
    if headed and not family.architecture:
        return Fit(family, {}, None, {}, (f"transformers has no class for a {family.model_type} with a head.",))
    try:
        hf = family.write(ours) if hf is None else hf
    except RopeError as error:
        return Fit(family, {}, None, {}, tuple(error.problems))
    fields, problems = family.read(hf)
    fields |= {path: ours[path] for path in (*family.unsaid, *family.optional) if path in ours}
    if problems:
        return Fit(family, hf, None, differences(ours, fields), tuple(problems))
    try:
        read = MAKERS[family.kind].config(fields)
    except ValueError as error:
        return Fit(family, hf, None, {}, (str(error),))
    return Fit(family, hf, read, differences(ours, canonical(read, headed)))


def tensors_of(model: Saveable, fit: Fit) -> dict[str, Tensor]:
    """Name -> tensor, as the family calls and lays them."""
    config, read = model.config, fit.read
    if read is None or not isinstance(config, AnyConfig):
        raise ValueError("only a model that fits has tensors to write")
    out: dict[str, Tensor] = {}
    problems = []
    for name, parameter in model.named_parameters():
        place = fit.family.layout_of(name)
        if place is None:
            problems.append(f"{fit.family.model_type} has no place for {name}.")
            continue
        sizes = sizes_of(MAKERS[fit.family.kind].layers(read, name), place)
        stored = place.layout.store(_as_stored(name, parameter.detach(), config, read), sizes)
        out |= dict(zip(place.names(sizes), stored, strict=True))
    if problems:
        raise PretrainedError("this model cannot be written for transformers:", problems)
    return {name: tensor.contiguous().cpu() for name, tensor in out.items()}


def _as_stored(name: str, tensor: Tensor, ours: AnyConfig, theirs: AnyConfig) -> Tensor:
    """Gains that one side stores as gain - 1 and the other as they are."""
    if not name.endswith(".gain") or name.endswith("_residual.gain"):  # the second is LayerScale's
        return tensor
    one, (other, short) = part_of(ours, name)[0], part_of(theirs, name)
    shift = int(_offset(short, one)) - int(_offset(short, other))
    return tensor if shift == 0 else (tensor.double() + shift).to(tensor.dtype)


def _offset(name: str, config: ModelConfig | VisionConfig) -> bool:
    if isinstance(config, VisionConfig):
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
    if model_type is not None:
        if model_type not in FAMILIES:
            raise PretrainedError(
                f"{model_type!r} cannot be written:", [f"there is no such family; {did_you_mean(model_type, FAMILIES)}"]
            )
        return [FAMILIES[model_type]]
    own = [] if model.origin is None else [model.origin.family]
    kind = kind_of(config)
    others = [family for family in FAMILIES.values() if family not in own and family.kind == kind]
    return own + [family for family in others if family.architecture or not headed]


def _beside(model: Saveable, family: Family) -> dict[str, Any]:
    """What the original config said beside what is read. Ids of special tokens are said in any case: those that a family
    has by default are of other tokens, or of none."""
    hf = {} if model.origin is None else model.origin.config
    if model.origin is not None and model.origin.family is family:
        return {key: value for key, value in hf.items() if key not in family.keys | REWRITTEN}
    return {key: hf.get(key) for key in SPECIAL}


__all__ = ["best_fit", "fitted", "save_hf", "tensors_of"]
