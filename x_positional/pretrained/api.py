"""`from_pretrained`: a folder, a GGUF file or a name on the Hugging Face Hub, to a model."""

import difflib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from x_positional.errors import PretrainedError, did_you_mean
from x_positional.pretrained.config_json.codecs import Fields
from x_positional.pretrained.config_json.encoder_decoder import encoder_alone
from x_positional.pretrained.config_json.ignored_keys import HARMLESS
from x_positional.pretrained.families import FAMILIES, INNER
from x_positional.pretrained.family import Family
from x_positional.pretrained.model_kinds import MAKERS, make
from x_positional.pretrained.native import NATIVE, load_native
from x_positional.pretrained.nested import opened
from x_positional.pretrained.source import Source, open_source
from x_positional.pretrained.tensors.files import CONFIG, Tensors
from x_positional.pretrained.tensors.layouts import Same
from x_positional.pretrained.tensors.load import Names, fill

RENAMED = {"rope_parameters": "rope_scaling", "rope_scaling": "rope_parameters"}
"""Two names of one thing: said under one, it is no longer said under the other."""


@dataclass(frozen=True)
class Origin:
    """Where a model came from: its family and its `config.json`."""

    family: Family
    config: Mapping[str, Any]


def from_pretrained(
    source: str | Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    backend: str = "auto",
    **overrides: Any,
) -> Any:
    """A published model: a folder with `config.json` and safetensors (one file or shards), its name on the Hugging Face
    Hub, or a GGUF file. Decoders and encoders are `TransformerWrapper`, so they take `mask=`, `positions=`, `cache=` and
    generate as any other does; encoders without a head give hidden states. Encoder-decoders are `XTransformer`:
    `logits(src, tgt, mask)`. Vision models are `ViTransformerWrapper`, which takes pixel_values [B C H W]; without a head,
    `encode` gives hidden states.

    dtype, device: None is as stored (float32 for GGUF, which is dequantised), and the CPU. backend: as in `Decoder`.
    overrides: keys of `config.json` that win over the file's, as `rope_parameters={"rope_type": "yarn", ...}`. Tensors are
    read one at a time: no second copy is held.
    Raises PretrainedError with everything that is wrong: unknown families and settings, damaged or missing files, pickles,
    tensors that are missing, do not fit or are not used.
    """
    return load_source(open_source(source), dtype, device, backend, **overrides)


def load_source(
    source: Source,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    backend: str = "auto",
    **overrides: Any,
) -> Any:
    """`from_pretrained` of what is open already."""
    hf = source.config
    if hf.get("model_type") == NATIVE:
        return load_native(hf, source.tensors(), dtype, device)
    hf, tensors = opened(hf, source.tensors(), INNER)
    family = family_of(hf, str(source.path))
    hf = _overridden(family, family.renamed(hf), family.renamed(overrides))
    return load(family, hf, tensors, dtype, device, backend)


def load(
    family: Family,
    hf: Mapping[str, Any],
    tensors: Tensors,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
    backend: str,
) -> nn.Module:
    """A model of a family, its config and its tensors."""
    if family.kind == "seq2seq" and not any("decoder." in name for name in tensors.names()):
        family = encoder_alone(family)
    fields, problems = family.read(hf)
    if problems:
        raise PretrainedError(f"{CONFIG} of {tensors.source} cannot be followed:", problems)
    if unknown := family.unknown(hf):
        warnings.warn(
            f"{CONFIG} of {tensors.source} has keys that are not read here: {', '.join(unknown)}. If one of them changes what "
            "the model computes, its logits differ: `x-positional verify` compares them with transformers.",
            stacklevel=4,
        )
    names = Names(tensors, family)
    fields |= {path: names.find(tensor) is not None for path, tensor in family.optional.items()}
    headed, maker = settle_head(family, fields, names, hf), MAKERS[family.kind]
    fields |= {f"{side}layers.backend": backend for side in maker.sides}
    model = make(family.kind, fields, headed)
    config: Any = model.config
    fill(model, family, lambda name: maker.layers(config, name), names, dtype=dtype, device=device)
    model.origin = Origin(family, hf)  # type: ignore[assignment]
    return model.eval()


def family_of(hf: Mapping[str, Any], source: str) -> Family:
    """The family of a `config.json`. Raises PretrainedError with the nearest one."""
    name = hf.get("model_type")
    if name in FAMILIES:
        return FAMILIES[name]
    raise PretrainedError(
        f"{source} cannot be read:",
        [
            f"unsupported model_type={name!r}; {did_you_mean(str(name), {*FAMILIES, *INNER})} A family is a table of names and "
            "config keys: docs/pretrained.md shows how to write one."
        ],
    )


def _overridden(family: Family, hf: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The file's config with what the caller says instead. A newer key replaces the older name of the same."""
    problems = []
    for key in overrides:
        if key not in family.keys | HARMLESS | family.harmless:
            close = difflib.get_close_matches(key, family.keys, n=1)
            hint = (
                f"did you mean {close[0]!r}?"
                if close
                else f"{family.model_type} reads: {', '.join(sorted(family.keys))}"
            )
            problems.append(f"{key} is no key of {CONFIG} that is read here; {hint}")
    if problems:
        raise PretrainedError("these overrides cannot be followed:", problems)
    replaced = {older for newer, older in RENAMED.items() if newer in overrides}
    return {**{key: value for key, value in hf.items() if key not in replaced}, **overrides}


def settle_head(family: Family, fields: Fields, names: Names, hf: Mapping[str, Any]) -> bool:
    """Whether there is a head. Whether it is the embedding is settled in `fields` by the tensors; the config only hints.

    Both there and different: two tensors. Both there and equal, or one of them alone: one tensor, where the config ties them.
    """
    maker = MAKERS[family.kind]
    head, embedding = _written(family, maker.head), _written(family, maker.embedding)
    if head is not None and not maker.embedding:
        return names.find(head) is not None or not _headless(family, names, hf)
    if head is None or embedding is None:
        return False
    found = names.find(head), names.find(embedding)
    if found[0] is None:
        return not _headless(family, names, hf)
    if fields[maker.tied] and found[1] is None:
        names.alias(embedding, found[0])
    elif fields[maker.tied] and found[1] is not None:
        fields[maker.tied] = names.same(found[0], found[1])
    if fields[maker.tied]:
        names.used.add(found[0])
    return True


def _written(family: Family, parameter: str) -> str | None:
    """The one tensor that a parameter is, None where the family has no such parameter."""
    place = family.layout_of(parameter)
    return place.layout.name + place.leaf if place is not None and isinstance(place.layout, Same) else None


def _headless(family: Family, names: Names, hf: Mapping[str, Any]) -> bool:
    """Whether the file is of the body alone, as its `architectures` say, or where they are silent, its tensors."""
    named = hf.get("architectures") or ()
    if family.architecture in named:
        return False
    place = family.layout_of("head.linear.weight")
    bare = place is not None and names.find(place.names(None)[0]) is None  # type: ignore[arg-type]
    return bare or any(name.endswith(("Model", "Encoder", "Backbone")) for name in named)
