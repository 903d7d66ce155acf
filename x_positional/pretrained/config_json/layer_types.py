"""Codecs of what differs by layer: `layer_types`, windows, chunks, layers without RoPE, RoPE parameters for all layers or
by layer type, and what older files have in their place.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from x_positional.errors import ConfigError, RopeError
from x_positional.pretrained.config_json.codecs import NULL, Fields, Hf
from x_positional.pretrained.rope import NEUTRAL, SYNONYMS, published_rope, to_hf
from x_positional.schemes import NoPE, NtkAlpha, Rope

FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"
TYPE_ALIASES = {"attention": FULL}
"""Older names of layer types."""
ROPE_KEYS = (
    "rope_parameters",
    "rope_scaling",
    "rope_local_base_freq",
    "original_max_position_embeddings",
    *SYNONYMS,
    *NEUTRAL,
)
"""Keys that may contain RoPE parameters."""
READ_SYNONYMS = ("rope_theta", "partial_rotary_factor")
"""Names of theta and of the rotated fraction that families read."""
PARTIAL_FACTOR, ROTARY_DIM, INTERLEAVE, ALPHA = "partial_rotary_factor", "rotary_dim", "rope_interleave", "alpha"
"""The rotary width as a fraction of a head or in channels, whether adjacent channels are pairs, and a factor of theta: few
families read these.
"""

LayerTypes = Callable[[Hf], list[str]]
"""Config -> the type of every layer."""


def all_of(kind: str) -> LayerTypes:
    """Every layer has this type."""
    return lambda hf: [kind] * hf["num_hidden_layers"]


def full_every(period: int | str, other: str = SLIDING) -> LayerTypes:
    """Full attention in every `period`-th layer (a number, or the key that contains it), `other` elsewhere."""

    def types(hf: Hf) -> list[str]:
        n = hf[period] if isinstance(period, str) else period
        return [other if (i + 1) % n else FULL for i in range(hf["num_hidden_layers"])]

    return types


def sliding_from(first: str) -> LayerTypes:
    """Windows from a layer on; `first` is the key that contains its index (Qwen 2)."""
    return lambda hf: [SLIDING if i >= hf[first] else FULL for i in range(hf["num_hidden_layers"])]


def layer_types(hf: Hf, default: LayerTypes) -> list[str]:
    """The type of every layer. Raises ConfigError where `layer_types` does not have one entry per layer."""
    listed = hf.get("layer_types")
    types: list[str] = default(hf) if listed is None else [TYPE_ALIASES.get(str(kind), str(kind)) for kind in listed]
    if len(types) != hf["num_hidden_layers"]:
        raise ConfigError(f"layer_types has {len(types)} entries for {hf['num_hidden_layers']} layers.")
    return types


def types_of_fields(fields: Fields) -> list[str]:
    """The type of every layer, from its window and chunk."""
    pairs = zip(fields["each.window"], fields["each.chunk"], strict=True)
    return [SLIDING if window else CHUNKED if chunk else FULL for window, chunk in pairs]


@dataclass(frozen=True, kw_only=True)
class LayerTypesCodec:
    """`layer_types`, and the lengths of windows and chunks."""

    default_types: LayerTypes
    """Layer types of a file without `layer_types`."""
    window: str | None = "sliding_window"
    """Key of the window length; None where the family has no windows."""
    chunk: str | None = None
    """Key of the chunk length; None where the family has no chunks."""
    switch: str | None = None
    """Key that must be true to enable windows."""
    legacy_keys: tuple[str, ...] = ()
    """Keys that `default_types` reads."""
    window_needed: bool = False
    """transformers needs a window length even if no layer has a window: then the context length is written."""

    @property
    def sets(self) -> tuple[str, ...]:
        return ("layers.window", "layers.chunk", "each.window", "each.chunk")

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(key for key in ("layer_types", self.window, self.chunk, self.switch, *self.legacy_keys) if key)

    def to_fields(self, hf: Hf) -> Fields:
        types = layer_types(hf, self.default_types)
        lengths = {FULL: None, SLIDING: self._length(hf, self.window), CHUNKED: self._length(hf, self.chunk)}
        if SLIDING in (hf.get("layer_types") or ()) and self._off(hf):
            raise ConfigError(
                f"{self.switch}=False contradicts layer_types, which lists {SLIDING}: the result depends on "
                f"the attention implementation of transformers. Set {self.switch} to true or layer_types to {FULL}."
            )
        if unknown := sorted(set(types) - set(lengths)):
            raise ConfigError(f"unsupported layer_types: {', '.join(unknown)}; supported: {', '.join(lengths)}.")
        return {
            "each.window": [lengths[kind] if kind == SLIDING else None for kind in types],
            "each.chunk": [lengths[kind] if kind == CHUNKED else None for kind in types],
        }

    def _length(self, hf: Hf, key: str | None) -> int | None:
        return None if key is None or (key == self.window and self._off(hf)) else hf.get(key)

    def _off(self, hf: Hf) -> bool:
        """Whether windows are disabled."""
        return self.switch is not None and not hf.get(self.switch)

    def to_hf(self, fields: Fields) -> dict[str, Any]:
        out: dict[str, Any] = {"layer_types": types_of_fields(fields)}
        for key, path in ((self.window, "each.window"), (self.chunk, "each.chunk")):
            if key is not None:
                out[key] = next((length for length in fields[path] if length), NULL)
        if self.window_needed and out.get(str(self.window)) is NULL:
            out[str(self.window)] = fields["max_seq_len"]
        if self.switch is not None:
            out[self.switch] = any(fields["each.window"])
        return out


@dataclass(frozen=True, kw_only=True)
class RopeLayers:
    """Which layers use RoPE; the others use no positions."""

    which: Callable[[Hf], list[bool]]
    """Config -> for each layer, whether it uses RoPE."""
    to_hf: Callable[[list[bool]], dict[str, Any]] = lambda rotated: {}
    keys: tuple[str, ...] = ()


def no_rope_layers(interval: str = "no_rope_layer_interval") -> RopeLayers:
    """The key `no_rope_layers`: 1 for layers with RoPE, 0 for others. Without it, every `interval`-th layer has none."""

    def which(hf: Hf) -> list[bool]:
        listed, depth = hf.get("no_rope_layers"), hf["num_hidden_layers"]
        if not listed:
            return [(i + 1) % hf[interval] != 0 for i in range(depth)]
        if len(listed) < depth:
            raise ConfigError(f"no_rope_layers has {len(listed)} entries for {depth} layers.")
        return [bool(rotated) for rotated in listed[:depth]]

    return RopeLayers(
        which=which,
        to_hf=lambda rotated: {"no_rope_layers": [int(layer) for layer in rotated]},
        keys=("no_rope_layers", interval),
    )


def rope_in(kind: str, default: LayerTypes) -> RopeLayers:
    """RoPE in layers of one type only (Cohere 2)."""
    return RopeLayers(which=lambda hf: [k == kind for k in layer_types(hf, default)])


@dataclass(frozen=True, kw_only=True)
class RopeCodec:
    """Rotary position embedding."""

    default_types: LayerTypes | None = None
    """If set, each layer type has RoPE parameters of its own, and these are the types of a file without `layer_types`."""
    layers: RopeLayers | None = None
    """Which layers use RoPE; None for all."""
    reads: tuple[str, ...] = ()
    """Which of PARTIAL_FACTOR, ROTARY_DIM, INTERLEAVE and ALPHA the family reads; a fraction or an alpha that it ignores is
    refused.
    """
    others: tuple[str, ...] = ()
    """Keys of the RoPE parameters that another codec reads."""
    axes: bool = False
    """Whether positions may have several axes, one per section of a head. If not, sections are ignored, as in transformers."""

    @property
    def sets(self) -> tuple[str, ...]:
        return ("layers.position", "each.position")

    @property
    def keys(self) -> tuple[str, ...]:
        return (*ROPE_KEYS, *self.reads, *(self.layers.keys if self.layers else ()))

    def to_fields(self, hf: Hf) -> Fields:
        read = {key: value for key, value in hf.items() if key not in self._ignored}
        ignore = self.others if self.axes else (*self.others, "mrope_section")
        found = published_rope(read, READ_SYNONYMS, ignore=ignore)
        depth = hf["num_hidden_layers"]
        if self.default_types is not None:
            types = layer_types(hf, self.default_types)
            parts = [part if isinstance(part, Rope) else NoPE() for part in _by_type(found, types)]
        elif isinstance(found, Rope):
            parts = [found] * depth
        else:
            raise RopeError(
                [f"rope_parameters differ by layer type ({', '.join(found)}), but this family has a single layer type."]
            )
        if problems := [*self._unread(parts), *self._width_problems(hf)]:
            raise RopeError(problems)
        rotated = [True] * depth if self.layers is None else self.layers.which(hf)
        if all(rotated) and all(part == parts[0] for part in parts):
            return {"layers.position": [parts[0]]}
        return {"each.position": [[p if layer else NoPE()] for p, layer in zip(parts, rotated, strict=True)]}

    def _unread(self, parts: Sequence[Rope | NoPE]) -> list[str]:
        """Problems of what the family ignores."""
        ropes = [part for part in parts if isinstance(part, Rope)]
        problems = []
        if any(rope.fraction for rope in ropes) and PARTIAL_FACTOR not in self.reads:
            problems.append(
                f"{PARTIAL_FACTOR}: this family rotates whole heads, and transformers ignores the key. Remove it."
            )
        if any(isinstance(rope.scaling, NtkAlpha) for rope in ropes) and ALPHA not in self.reads:
            problems.append(
                f"{ALPHA}: transformers ignores the key in this family, and theta stays as it is. Remove it."
            )
        return problems

    def _width_problems(self, hf: Hf) -> list[str]:
        """Problems of a rotary width that is given in both forms: transformers uses the fraction."""
        inside = hf.get("rope_scaling") or hf.get("rope_parameters") or {}
        fraction, channels = inside.get(PARTIAL_FACTOR, hf.get(PARTIAL_FACTOR)), hf.get(ROTARY_DIM)
        if {PARTIAL_FACTOR, ROTARY_DIM} - set(self.reads) or fraction is None or channels is None:
            return []
        width = int(hf["head_dim"] * fraction)
        if width == channels:
            return []
        return [
            f"{ROTARY_DIM}={channels} contradicts {PARTIAL_FACTOR}={fraction}, which is {width} of {hf['head_dim']} channels. "
            "Keep one."
        ]

    @property
    def _ignored(self) -> set[str]:
        return {ROTARY_DIM, INTERLEAVE} - set(self.reads)

    def to_hf(self, fields: Fields) -> dict[str, Any]:
        parts = [position[0] if len(position) == 1 else None for position in fields["each.position"]]
        if not all(isinstance(part, Rope | NoPE) for part in parts):
            return {}
        ropes = [self._with_width(part, fields["layers.head_dim"]) for part in parts]
        first = next((part for part in ropes if isinstance(part, Rope)), None)
        out = {} if self.layers is None else self.layers.to_hf([isinstance(part, Rope) for part in ropes])
        if first is None:
            return out
        if self.default_types is not None:
            types = types_of_fields(fields)
            rope = to_hf({kind: ropes[types.index(kind)] for kind in dict.fromkeys(types)})
        else:
            rope = to_hf(first)
        return out | {key: value for key, value in rope.items() if key not in self._ignored}

    def _with_width(self, part: Any, head_dim: int) -> Any:
        """The scheme with its rotary width in the form that the family reads."""
        if not isinstance(part, Rope) or ROTARY_DIM in self.reads:
            return part
        width = head_dim if part.dim is None else part.dim
        fraction = rotary_fraction(width, head_dim)
        if fraction is None and PARTIAL_FACTOR in self.reads:
            fraction = 1.0  # written explicitly: the class's default may differ
        return part.model_copy(update={"dim": None, "fraction": fraction})


def _by_type(found: Rope | Mapping[str, Rope | NoPE], types: Sequence[str]) -> list[Rope | NoPE]:
    if isinstance(found, Rope):
        return [found] * len(types)
    if missing := sorted(set(types) - set(found)):
        raise RopeError([f"rope_parameters has no entry for {', '.join(missing)}; it has: {', '.join(found)}."])
    return [found[kind] for kind in types]


def rotary_fraction(width: int, head_dim: int) -> float | None:
    """The fraction of a head that reads back as `width` channels, given that readers round down; None for the whole head."""
    if width == head_dim:
        return None
    fraction = width / head_dim
    return fraction if int(head_dim * fraction) == width else math.nextafter(fraction, 1.0)
