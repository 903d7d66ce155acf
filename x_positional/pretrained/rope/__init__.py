"""Reads RoPE parameters in Hugging Face's form into frequencies or `Rope` configs, and writes them back.

F pairs.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from x_positional.errors import RopeError
from x_positional.pretrained.rope.config_json import FRACTIONS, NEUTRAL, THETAS, RopeSource, read_config_json
from x_positional.pretrained.rope.parameters import (
    UNSUPPORTED,
    ConfigContext,
    RopeParameters,
    read_parameters,
    write_parameters,
)
from x_positional.schemes import (
    DefaultRope,
    DynamicNtk,
    Linear,
    Llama3,
    LongRope,
    NoPE,
    Ntk,
    NtkAlpha,
    NtkByParts,
    Proportional,
    Rope,
    RopeScaling,
    Yarn,
    YarnPaper,
)
from x_positional.schemes.rotary.axes import section_problems

__all__ = [
    "NEUTRAL",
    "SYNONYMS",
    "DefaultRope",
    "DynamicNtk",
    "Linear",
    "Llama3",
    "LongRope",
    "Ntk",
    "NtkAlpha",
    "NtkByParts",
    "Proportional",
    "RopeError",
    "RopeScaling",
    "Yarn",
    "YarnPaper",
    "from_hf",
    "inverse_frequencies",
    "published_rope",
    "to_hf",
]


SYNONYMS = (*THETAS, *FRACTIONS)
"""Names of theta and of the rotated fraction at the top level."""


@runtime_checkable
class HasDict(Protocol):
    """A config object of transformers."""

    def to_dict(self) -> dict[str, Any]: ...


def inverse_frequencies(
    rope_parameters: Mapping[str, Any],
    head_dim: int,
    max_position_embeddings: int | None = None,
    seq_len: int | None = None,
) -> tuple[Tensor, float]:
    """Inverse frequencies and attention factor of RoPE parameters in Hugging Face's form.

    F is half of int(head_dim * partial_rotary_factor), or head_dim / 2 for `proportional`. Computed in float64, rounded once.

    Args:
        rope_parameters: flat dict as in `config.json`: `rope_type` or `type`, `rope_theta`, ...
        head_dim: channels of a head.
        max_position_embeddings: context length of the model, which some types need.
        seq_len: sequence length, for types whose frequencies depend on it (`dynamic`, `longrope`); None: a short one.

    Returns:
        (inv_freq [F] float32, attention_factor).

    Raises:
        RopeError: with every problem: unknown keys (with the closest known one), missing and invalid values.
    """
    if any(isinstance(value, Mapping) for value in rope_parameters.values()):
        raise RopeError(
            [f"these parameters are nested by layer type. Pass those of one type: {', '.join(rope_parameters)}."]
        )
    found = read_parameters(rope_parameters, ConfigContext(max_position_embeddings=max_position_embeddings))
    scaling, width = found.scaling or DefaultRope(), int(head_dim * (found.fraction or 1.0))
    if width < 2:
        found.problems.append(
            f"rotary width is {width} (head_dim={head_dim}); RoPE rotates pairs and needs at least 2 channels."
        )
    problems = found.problems or scaling.problems(width, found.theta)
    if problems:
        raise RopeError(problems)
    frequencies = scaling.frequencies(width, found.theta, length=seq_len or 1)
    return frequencies.inv_freq.float(), float(frequencies.attention_factor)


def from_hf(
    config: HasDict | Mapping[str, Any], *, length: int | None = None, ignore: Collection[str] = ()
) -> Rope | dict[str, Rope | NoPE]:
    """The `Rope` config of a Hugging Face model.

    Reads `rope_parameters` and all older forms: `rope_scaling`, `type`, `su`, `mrope`, theta and rotated fraction at the
    top level under each of their names, local and global thetas, and the defaults of each `model_type`. `mrope_section`
    becomes `Rope.sections`: positions may then have one axis per section. Which layers use RoPE (`no_rope_layers`) is up to
    the stack.

    Args:
        config: a config object of transformers, a `config.json` as a dict, or its RoPE parameters alone.
        length: sequence length to fix the frequencies of `dynamic` and `longrope` for, so that keys can be cached. None:
            frequencies follow the length of each row, as in the published models.
        ignore: keys to ignore, because you do not need them or handle them yourself; `mrope_section` for text alone.

    Returns:
        One `Rope`, or {layer type: `Rope` or `NoPE`} where layer types differ.

    Raises:
        RopeError: with every problem: unknown keys (with the closest known one) and invalid values.
    """
    source = read_config_json(config.to_dict() if isinstance(config, HasDict) else config, length, ignore)
    readings = {
        name: None if parameters is None else read_parameters(parameters, source.context)
        for name, parameters in source.layers.items()
    }
    problems = [
        f"{name}: {problem}" if name else problem
        for name, found in readings.items()
        if found is not None
        for problem in (*found.problems, *_unsupported_problems(found, ignore), *_width_problems(found, source, ignore))
    ]
    if problems:
        raise RopeError(problems)
    if "mrope_section" in ignore:
        readings = {name: found and replace(found, sections=None) for name, found in readings.items()}
    parts = {name: NoPE() if found is None else _rope(found, source) for name, found in readings.items()}
    return parts if source.nested else _rope(readings[""] or RopeParameters(), source)


def published_rope(
    config: Mapping[str, Any], reads: Collection[str], ignore: Collection[str] = ()
) -> Rope | dict[str, Rope | NoPE]:
    """`from_hf` of a family that reads only some of the names of theta and of the rotated fraction, as transformers does.

    Args:
        config: A whole `config.json`.
        reads: Those of `SYNONYMS` that the family reads.
        ignore: As in `from_hf`.

    Raises:
        RopeError: Also where another name has a value that differs from the one that is read.
    """
    unread = {name for name in SYNONYMS if name not in reads and config.get(name) is not None}
    found = from_hf({key: value for key, value in config.items() if key not in unread}, ignore=ignore)
    ropes = [part for part in ([found] if isinstance(found, Rope) else found.values()) if isinstance(part, Rope)]
    effective = {name: {_synonym_value(part, name) for part in ropes} for name in unread}
    problems = [
        f"{name}={config[name]!r}: transformers ignores this key in this family and uses "
        f"{' and '.join(map(str, sorted(values)))}. Remove the key, or "
        f"pass ignore=({name!r},)."
        for name, values in sorted(effective.items())
        if values and values != {config[name]}
    ]
    if problems:
        raise RopeError(problems)
    return found


def _synonym_value(rope: Rope, name: str) -> float:
    return rope.theta if name in THETAS else 1.0 if rope.fraction is None else rope.fraction


def _rope(found: RopeParameters, source: RopeSource) -> Rope:
    return Rope(
        theta=found.theta,
        dim=source.dim,
        fraction=None if source.dim else found.fraction,
        scaling=found.scaling,
        interleaved=source.interleaved,
        sections=found.sections,
        section_order=found.section_order if found.sections else "contiguous",
    )


def _unsupported_problems(found: RopeParameters, ignore: Collection[str]) -> list[str]:
    return [
        f"{key} is unsupported: {UNSUPPORTED[key]}. To ignore this key: ignore=({key!r},)."
        for key in found.unsupported
        if key not in ignore
    ]


def _width_problems(found: RopeParameters, source: RopeSource, ignore: Collection[str]) -> list[str]:
    """Problems of scaling and sections with the rotary width, where the config contains it."""
    if source.head_dim is None or found.problems:
        return []
    width = source.dim or int(source.head_dim * (found.fraction or 1.0))
    problems = [] if found.scaling is None else found.scaling.problems(width, found.theta)
    if found.sections is not None and "mrope_section" not in ignore:
        problems += section_problems(found.sections, found.section_order, width // 2)
    return problems


def to_hf(rope: Rope | Mapping[str, Rope | NoPE]) -> dict[str, Any]:
    """Keys of a `config.json` for a `Rope`, or for one per layer type: the inverse of `from_hf`.

    Scalings that transformers does not have keep their x_positional name. A fixed `length` of a scaling is not written: pass
    it to `from_hf` again.

    Returns:
        `rope_parameters`, and where needed `max_position_embeddings` (for `dynamic`), `rotary_dim` and `rope_interleave`.

    Raises:
        RopeError: for everything that this form cannot express.
    """
    parts: dict[str, Rope | NoPE] = {"": rope} if isinstance(rope, Rope) else dict(rope)
    ropes = {name: part for name, part in parts.items() if isinstance(part, Rope)}
    problems = [f"{name}: {p}" if name else p for name, part in ropes.items() for p in _write_problems(part)]
    lengths = [
        part.scaling.original_max_position_embeddings for part in ropes.values() if isinstance(part.scaling, DynamicNtk)
    ]
    shared: dict[str, list[Any]] = {
        "max_position_embeddings": lengths,
        "rotary_dim": [part.dim for part in ropes.values()],
        "rope_interleave": [part.interleaved or None for part in ropes.values()],
    }
    problems += [
        f"{key} is one key for all layer types, but their values differ: {values}."
        for key, values in shared.items()
        if len(set(values)) > 1
    ]
    if problems:
        raise RopeError(problems)
    written = {
        name: write_parameters(part.theta, part.fraction, _as_scaling(part)) | _sections(part)
        if isinstance(part, Rope)
        else None
        for name, part in parts.items()
    }
    out: dict[str, Any] = {"rope_parameters": written[""] if isinstance(rope, Rope) else written}
    return out | {key: values[0] for key, values in shared.items() if values and values[0] is not None}


def _sections(rope: Rope) -> dict[str, Any]:
    if rope.sections is None:
        return {}
    order = {"mrope_interleaved": True} if rope.section_order == "interleaved" else {}
    return {"mrope_section": list(rope.sections), **order}


def _as_scaling(rope: Rope) -> RopeScaling | None:
    if rope.interpolation_factor != 1:
        return Linear(factor=rope.interpolation_factor)
    return rope.scaling if rope.base_rescale_factor == 1 else Ntk(factor=rope.base_rescale_factor)


def _write_problems(rope: Rope) -> list[str]:
    found = []
    if rope.kind != "rope":
        found.append(f"position={rope.kind!r} cannot be written in Hugging Face's form; only rope can.")
    if rope.heads is not None:
        found.append(f"heads={rope.heads}: Hugging Face's form rotates every head. Remove heads.")
    if rope.learned:
        found.append("learned=True: frequencies are constants in Hugging Face's form. Remove learned.")
    if rope.section_order == "video":
        found.append("section_order='video' cannot be written in Hugging Face's form; contiguous and interleaved can.")
    changes = (rope.interpolation_factor != 1, rope.base_rescale_factor != 1, rope.scaling is not None)
    if sum(changes) > 1:
        found.append(
            "interpolation_factor, base_rescale_factor and scaling: Hugging Face's form holds only one. Set one."
        )
    elif 0 < rope.base_rescale_factor < 1:
        found.append(
            f"base_rescale_factor={rope.base_rescale_factor:g} cannot be written below 1. Change theta instead."
        )
    if rope.fraction is not None and isinstance(rope.scaling, Proportional):
        found.append(
            f"fraction={rope.fraction:g} with Proportional(fraction=...): both are partial_rotary_factor. Set one."
        )
    return found
