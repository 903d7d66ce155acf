"""Rotary parameters as Hugging Face writes them, to frequencies and to `Rope` configs, and back.

F pairs.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from x_positional.errors import RopeError
from x_positional.pretrained.rope.config_json import Written, written
from x_positional.pretrained.rope.parameters import BEYOND, Around, Parameters, read, write
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
    "to_hf",
]


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
    """(inv_freq [F] float32, attention_factor) of a flat dict: `rope_type` or `type`, `rope_theta`, ... as in `config.json`.

    F is half of int(head_dim * partial_rotary_factor), half the head for `proportional`. seq_len: the length of the text,
    for the types that follow it (`dynamic`, `longrope`); None is a short one. Computed in float64, rounded once.
    Raises RopeError with every problem: unknown keys (with the nearest name), missing and impossible values.
    """
    if any(isinstance(value, Mapping) for value in rope_parameters.values()):
        raise RopeError(
            [f"these parameters are nested: pass those of one layer type, of {', '.join(rope_parameters)}."]
        )
    found = read(rope_parameters, Around(max_position_embeddings=max_position_embeddings))
    scaling, width = found.scaling or DefaultRope(), int(head_dim * (found.fraction or 1.0))
    if width < 2:
        found.problems.append(f"{width} of head_dim={head_dim} channels would turn; pairs need 2. Raise head_dim.")
    problems = found.problems or scaling.problems(width, found.theta)
    if problems:
        raise RopeError(problems)
    frequencies = scaling.frequencies(width, found.theta, length=seq_len or 1)
    return frequencies.inv_freq.float(), float(frequencies.attention_factor)


def from_hf(
    config: HasDict | Mapping[str, Any], *, length: int | None = None, elsewhere: Collection[str] = ()
) -> Rope | dict[str, Rope | NoPE]:
    """The `Rope` of a config object of transformers, of a `config.json` as a dict, or of its rotary parameters alone; a
    dict of them by layer type where types differ (None there is `NoPE`).

    Reads today's `rope_parameters` and the older forms: `rope_scaling`, `type`, `su`, `mrope`, theta and the rotated share
    at the top under each of their names, local and global thetas, and what a `model_type` means without saying it.
    `mrope_section` becomes `Rope.sections`: positions then have an axis for each, or none where it is the same on all.
    length: of the texts to come, for `dynamic` and `longrope`: frequencies are then fixed, so keys can be cached. None
    takes each row's own, as the published models do. elsewhere: keys whose meaning you provide by other means, or do not
    need, such as `mrope_section` for text alone. Which layers turn (`no_rope_layers`) is up to the stack.
    Raises RopeError with every problem at once: unknown keys, with the nearest name, and impossible values.
    """
    source = written(config.to_dict() if isinstance(config, HasDict) else config, length, elsewhere)
    readings = {
        name: None if parameters is None else read(parameters, source.around)
        for name, parameters in source.layers.items()
    }
    problems = [
        f"{name}: {problem}" if name else problem
        for name, found in readings.items()
        if found is not None
        for problem in (*found.problems, *_beyond(found, elsewhere), *_misfits(found, source, elsewhere))
    ]
    if problems:
        raise RopeError(problems)
    if "mrope_section" in elsewhere:
        readings = {name: found and replace(found, sections=None) for name, found in readings.items()}
    parts = {name: NoPE() if found is None else _rope(found, source) for name, found in readings.items()}
    return parts if source.nested else _rope(readings[""] or Parameters(), source)


def _rope(found: Parameters, source: Written) -> Rope:
    return Rope(
        theta=found.theta,
        dim=source.dim,
        fraction=None if source.dim else found.fraction,
        scaling=found.scaling,
        interleaved=source.interleaved,
        sections=found.sections,
        section_order=found.section_order if found.sections else "contiguous",
    )


def _beyond(found: Parameters, elsewhere: Collection[str]) -> list[str]:
    return [
        f"{key}: {BEYOND[key]}, which Rope does not. If you provide it by other means, or do not need it, say "
        f"elsewhere=({key!r},)."
        for key in found.beyond
        if key not in elsewhere
    ]


def _misfits(found: Parameters, source: Written, elsewhere: Collection[str]) -> list[str]:
    """What the scaling and the sections say against the width, where the config tells it."""
    if source.head_dim is None or found.problems:
        return []
    width = source.dim or int(source.head_dim * (found.fraction or 1.0))
    problems = [] if found.scaling is None else found.scaling.problems(width, found.theta)
    if found.sections is not None and "mrope_section" not in elsewhere:
        problems += section_problems(found.sections, found.section_order, width // 2)
    return problems


def to_hf(rope: Rope | Mapping[str, Rope | NoPE]) -> dict[str, Any]:
    """Keys of a `config.json`: `rope_parameters`, one dict or one per layer type, and what stands beside it
    (`max_position_embeddings` for `dynamic`, `rotary_dim`, `rope_interleave`). `from_hf` reads the same `Rope` back; a
    fixed length is the reader's choice and is not written.

    Scalings that transformers does not have keep their own name there. Raises RopeError for what has no such form.
    """
    parts: dict[str, Rope | NoPE] = {"": rope} if isinstance(rope, Rope) else dict(rope)
    ropes = {name: part for name, part in parts.items() if isinstance(part, Rope)}
    problems = [f"{name}: {p}" if name else p for name, part in ropes.items() for p in _unwritable(part)]
    lengths = [
        part.scaling.original_max_position_embeddings for part in ropes.values() if isinstance(part.scaling, DynamicNtk)
    ]
    beside: dict[str, list[Any]] = {
        "max_position_embeddings": lengths,
        "rotary_dim": [part.dim for part in ropes.values()],
        "rope_interleave": [part.interleaved or None for part in ropes.values()],
    }
    problems += [
        f"{key} stands once, beside all layer types, and these differ: {values}."
        for key, values in beside.items()
        if len(set(values)) > 1
    ]
    if problems:
        raise RopeError(problems)
    written_out = {
        name: write(part.theta, part.fraction, _as_scaling(part)) | _sections(part) if isinstance(part, Rope) else None
        for name, part in parts.items()
    }
    out: dict[str, Any] = {"rope_parameters": written_out[""] if isinstance(rope, Rope) else written_out}
    return out | {key: values[0] for key, values in beside.items() if values and values[0] is not None}


def _sections(rope: Rope) -> dict[str, Any]:
    if rope.sections is None:
        return {}
    turns = {"mrope_interleaved": True} if rope.section_order == "interleaved" else {}
    return {"mrope_section": list(rope.sections), **turns}


def _as_scaling(rope: Rope) -> RopeScaling | None:
    if rope.interpolation_factor != 1:
        return Linear(factor=rope.interpolation_factor)
    return rope.scaling if rope.base_rescale_factor == 1 else Ntk(factor=rope.base_rescale_factor)


def _unwritable(rope: Rope) -> list[str]:
    found = []
    if rope.kind != "rope":
        found.append(f"{rope.kind} has no such form; only rope has.")
    if rope.heads is not None:
        found.append(f"heads={rope.heads}: there every head turns. Leave heads out.")
    if rope.learned:
        found.append("learned=True: frequencies there are constants. Leave learned out.")
    if rope.section_order == "video":
        found.append("section_order='video' has no such form; contiguous and interleaved have.")
    changes = (rope.interpolation_factor != 1, rope.base_rescale_factor != 1, rope.scaling is not None)
    if sum(changes) > 1:
        found.append("interpolation_factor, base_rescale_factor and scaling: there is room for one. Give one.")
    elif 0 < rope.base_rescale_factor < 1:
        found.append(f"base_rescale_factor={rope.base_rescale_factor:g} has no such form below 1. Put it into theta.")
    if rope.fraction is not None and isinstance(rope.scaling, Proportional):
        found.append(f"fraction={rope.fraction:g} beside Proportional(fraction=...): one key holds both. Give one.")
    return found
