"""What each layer sees and how it turns queries and keys, as `config.json` says it: `layer_types`, windows, chunks, layers
that do not turn, rotary parameters for all or by type; and what older files say in their place.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from x_positional.errors import RopeError
from x_positional.pretrained.config_json.codecs import NULL, Fields, Hf
from x_positional.pretrained.rope import from_hf, to_hf
from x_positional.schemes import NoPE, Rope

FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"
OLDER = {"attention": FULL}
"""Older names of types."""
ROPE_KEYS = (
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "partial_rotary_factor",
    "rotary_emb_base",
    "rotary_pct",
    "rope_pct",
    "rope_local_base_freq",
    "original_max_position_embeddings",
)
"""Where rotary parameters may stand."""
SHARE, CHANNELS, NEIGHBOURS = "partial_rotary_factor", "rotary_dim", "rope_interleave"
"""How much of a head turns, as a share or in channels, and whether pairs are neighbours: keys that few families read."""

Types = Callable[[Hf], list[str]]


def all_of(kind: str) -> Types:
    """Every layer alike."""
    return lambda hf: [kind] * hf["num_hidden_layers"]


def full_every(period: int | str, other: str = SLIDING) -> Types:
    """Every `period`-th layer sees everything, the others do not. A key may say the period."""

    def types(hf: Hf) -> list[str]:
        n = hf[period] if isinstance(period, str) else period
        return [other if (i + 1) % n else FULL for i in range(hf["num_hidden_layers"])]

    return types


def sliding_from(first: str) -> Types:
    """Windows from the layer on that a key names (Qwen 2)."""
    return lambda hf: [SLIDING if i >= hf[first] else FULL for i in range(hf["num_hidden_layers"])]


def types_of(hf: Hf, unlisted: Types) -> list[str]:
    """The type of every layer. Raises ValueError where there are more or fewer types than layers."""
    listed = hf.get("layer_types")
    types: list[str] = unlisted(hf) if listed is None else [OLDER.get(str(kind), str(kind)) for kind in listed]
    if len(types) != hf["num_hidden_layers"]:
        raise ValueError(f"layer_types has {len(types)} entries, and there are {hf['num_hidden_layers']} layers.")
    return types


def types_written(config: Fields) -> list[str]:
    """The type of every layer of ours."""
    pairs = zip(config["each.window"], config["each.chunk"], strict=True)
    return [SLIDING if window else CHUNKED if chunk else FULL for window, chunk in pairs]


@dataclass(frozen=True, kw_only=True)
class Reaches:
    """`layer_types`, the length of windows and of chunks. unlisted: the types in a file that lists none. window, chunk: the
    keys of the lengths, None where a family has no such layers. switch: the key that must be true for windows to be there.
    older: keys that `unlisted` reads."""

    unlisted: Types
    window: str | None = "sliding_window"
    chunk: str | None = None
    switch: str | None = None
    older: tuple[str, ...] = ()

    @property
    def said(self) -> tuple[str, ...]:
        return ("layers.window", "layers.chunk", "each.window", "each.chunk")

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(key for key in ("layer_types", self.window, self.chunk, self.switch, *self.older) if key)

    def read(self, hf: Hf) -> Fields:
        types = types_of(hf, self.unlisted)
        lengths = {FULL: None, SLIDING: self._length(hf, self.window), CHUNKED: self._length(hf, self.chunk)}
        if unknown := sorted(set(types) - set(lengths)):
            raise ValueError(f"layer_types has {', '.join(unknown)}; here there are {', '.join(lengths)}.")
        return {
            "each.window": [lengths[kind] if kind == SLIDING else None for kind in types],
            "each.chunk": [lengths[kind] if kind == CHUNKED else None for kind in types],
        }

    def _length(self, hf: Hf, key: str | None) -> int | None:
        off = key == self.window and self.switch is not None and not hf.get(self.switch)
        return None if key is None or off else hf.get(key)

    def write(self, config: Fields) -> dict[str, Any]:
        out: dict[str, Any] = {"layer_types": types_written(config)}
        for key, path in ((self.window, "each.window"), (self.chunk, "each.chunk")):
            if key is not None:
                out[key] = next((length for length in config[path] if length), NULL)
        if self.switch is not None:
            out[self.switch] = any(config["each.window"])
        return out


@dataclass(frozen=True, kw_only=True)
class Turning:
    """Which layers turn at all. which: True for those. says: the keys for it, from ours."""

    which: Callable[[Hf], list[bool]]
    says: Callable[[list[bool]], dict[str, Any]] = lambda turning: {}
    keys: tuple[str, ...] = ()


def turning_unless_listed(interval: str = "no_rope_layer_interval") -> Turning:
    """`no_rope_layers` has 1 for layers that turn, and 0 for others; without it every `interval`-th does not."""

    def which(hf: Hf) -> list[bool]:
        listed, depth = hf.get("no_rope_layers"), hf["num_hidden_layers"]
        if not listed:
            return [(i + 1) % hf[interval] != 0 for i in range(depth)]
        if len(listed) < depth:
            raise ValueError(f"no_rope_layers has {len(listed)} entries, and there are {depth} layers.")
        return [bool(turns) for turns in listed[:depth]]

    return Turning(
        which=which,
        says=lambda turning: {"no_rope_layers": [int(turns) for turns in turning]},
        keys=("no_rope_layers", interval),
    )


def turning_in(kind: str, unlisted: Types) -> Turning:
    """Layers of one type turn, others do not (Cohere 2)."""
    return Turning(which=lambda hf: [k == kind for k in types_of(hf, unlisted)])


@dataclass(frozen=True, kw_only=True)
class Turns:
    """Rotary position embedding. unlisted: given, each type of layer has rotary parameters of its own, and these are the
    types in a file that lists none. turning: which layers turn, None for all. honours: which of SHARE, CHANNELS, NEIGHBOURS
    the family reads; a share that it does not read is refused. axes: positions may have several, of which each turns its
    section of a head; without it transformers ignores sections, and so does this."""

    unlisted: Types | None = None
    turning: Turning | None = None
    honours: tuple[str, ...] = ()
    axes: bool = False

    @property
    def said(self) -> tuple[str, ...]:
        return ("layers.position", "each.position")

    @property
    def keys(self) -> tuple[str, ...]:
        return (*ROPE_KEYS, *self.honours, *(self.turning.keys if self.turning else ()))

    def read(self, hf: Hf) -> Fields:
        said = {key: value for key, value in hf.items() if key not in self._ignored}
        found = from_hf(said, ignore=() if self.axes else ("mrope_section",))
        depth = hf["num_hidden_layers"]
        if self.unlisted is not None:
            types = types_of(hf, self.unlisted)
            parts = [part if isinstance(part, Rope) else NoPE() for part in _by_type(found, types)]
        elif isinstance(found, Rope):
            parts = [found] * depth
        else:
            raise RopeError(
                [f"rope_parameters differ by layer type ({', '.join(found)}), and this family has one type."]
            )
        if any(isinstance(part, Rope) and part.fraction for part in parts) and SHARE not in self.honours:
            raise RopeError(
                [f"{SHARE}: models of this family turn whole heads, and transformers ignores it. Leave it out."]
            )
        turning = [True] * depth if self.turning is None else self.turning.which(hf)
        if all(turning) and all(part == parts[0] for part in parts):
            return {"layers.position": [parts[0]]}
        return {"each.position": [[p if turns else NoPE()] for p, turns in zip(parts, turning, strict=True)]}

    @property
    def _ignored(self) -> set[str]:
        return {CHANNELS, NEIGHBOURS} - set(self.honours)

    def write(self, config: Fields) -> dict[str, Any]:
        layers = [position[0] if len(position) == 1 else None for position in config["each.position"]]
        if not all(isinstance(part, Rope | NoPE) for part in layers):
            return {}
        ropes = [self._said(part, config["layers.head_dim"]) for part in layers]
        first = next((part for part in ropes if isinstance(part, Rope)), None)
        out = {} if self.turning is None else self.turning.says([isinstance(part, Rope) for part in ropes])
        if first is None:
            return out
        if self.unlisted is not None:
            types = types_written(config)
            rope = to_hf({kind: ropes[types.index(kind)] for kind in dict.fromkeys(types)})
        else:
            rope = to_hf(first)
        return out | {key: value for key, value in rope.items() if key not in self._ignored}

    def _said(self, part: Any, head_dim: int) -> Any:
        """How many channels turn, in the way that the family says it."""
        if not isinstance(part, Rope) or CHANNELS in self.honours:
            return part
        turned = head_dim if part.dim is None else part.dim
        share = share_of(turned, head_dim)  # said in full where a family reads it: its default may be another
        return part.model_copy(
            update={"dim": None, "fraction": 1.0 if share is None and SHARE in self.honours else share}
        )


def _by_type(found: Rope | Mapping[str, Rope | NoPE], types: Sequence[str]) -> list[Rope | NoPE]:
    if isinstance(found, Rope):
        return [found] * len(types)
    if missing := sorted(set(types) - set(found)):
        raise RopeError([f"rope_parameters has nothing for {', '.join(missing)}; it has: {', '.join(found)}."])
    return [found[kind] for kind in types]


def share_of(turned: int, head_dim: int) -> float | None:
    """The share of a head that is read back as this many channels, which are rounded down; None for all of it."""
    if turned == head_dim:
        return None
    share = turned / head_dim
    return share if int(head_dim * share) == turned else math.nextafter(share, 1.0)
