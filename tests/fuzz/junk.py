"""Random values for configs: nearly valid ones, extreme numbers, foreign objects, cyclic and deeply nested structures."""

import datetime
import decimal
import itertools
from collections import OrderedDict, deque, namedtuple
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel

from x_positional.config.flags.table import PLACES
from x_positional.config.layers import LayerConfig, LayersConfig
from x_positional.config.models import ContinuousConfig, ModelConfig
from x_positional.config.seq2seq import Seq2SeqConfig
from x_positional.config.vision import VisionConfig
from x_positional.schemes import NoPosition, Rope
from x_positional.schemes.registry import REGISTRY
from x_positional.schemes.rotary.scaling.base import SCALINGS
from x_positional.training.config import TrainConfig

SCHEMES = {kind: scheme for kind, scheme in REGISTRY.items() if scheme.__module__.startswith("x_positional.schemes")}
CLASSES = [LayersConfig, LayerConfig, ModelConfig, ContinuousConfig, VisionConfig, Seq2SeqConfig, TrainConfig]
CLASSES += [*SCHEMES.values(), *SCALINGS.values()]
FLAGS = sorted({name for place in ("AttentionLayers", "TransformerWrapper") for name in PLACES[place]})
WORDS = ["rope", "rotary", "alibi", "ropee", "none", "", "decoder", "encoder", "cross_attender", "sdpa", "flex", "rms"]
WORDS += [
    "512",
    "1e3",
    "nan",
    "true",
    "x" * 70_000,
    "\ud800",
    "\0",
    "ünïcode",
    "a.b",
    "../..",
    "linear",
    "yarn",
    "cuda",
]
NUMBERS = [
    0,
    1,
    2,
    3,
    4,
    7,
    16,
    64,
    4096,
    2**16,
    2**20,
    -1,
    -64,
    2**31,
    2**53 + 1,
    2**63,
    10**8,
    10**12,
    10**30,
    9**9999,
]
NUMBERS += [
    0.0,
    0.5,
    -0.5,
    1.5,
    1e-300,
    1e300,
    1e-30,
    1e30,
    1e-12,
    float("nan"),
    float("inf"),
    float("-inf"),
    True,
    False,
]
NEARLY = [
    "name",
    "type",
    "knd",
    "kind",
    "rope_type",
    "window",
    "windw",
    "position",
    "positon_",
    "scaling",
    "dim",
    "heads",
]
Pair = namedtuple("Pair", "a b")


class Hostile:
    """Raises whatever is asked of it."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"{name} of a hostile object")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("eq")

    def __hash__(self) -> int:
        raise RuntimeError("hash")

    def __repr__(self) -> str:
        raise RuntimeError("repr")

    def __bool__(self) -> bool:
        raise RuntimeError("bool")

    def __iter__(self) -> Any:
        raise RuntimeError("iter")

    def __len__(self) -> int:
        raise RuntimeError("len")

    __int__ = __index__ = __len__

    def __float__(self) -> float:
        raise RuntimeError("float")


class HostileText(str):
    """A string that cannot be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("repr")


FOREIGN = [
    lambda: None,
    Hostile,
    lambda: HostileText("rope"),
    object,
    lambda: object,
    lambda: torch.tensor([1.0, 2.0]),
    lambda: torch.empty(3, device="meta"),
    lambda: torch.zeros(2**20),
    lambda: np.array([1, 2]),
    lambda: np.int64(3),
    lambda: np.float32(0.5),
    lambda: np.array([object()], dtype=object),
    lambda: b"rope",
    lambda: {1, 2},
    lambda: frozenset({"rope"}),
    lambda: deque([1, 2]),
    lambda: range(10**12),
    lambda: itertools.count(),
    lambda: (i for i in (1, 2)),
    lambda: Path("x"),
    lambda: decimal.Decimal("1e999"),
    lambda: datetime.date(2001, 1, 1),
    lambda: Pair(1, 2),
    lambda: OrderedDict(kind="rope"),
    lambda: MappingProxyType({"kind": "rope"}),
    lambda: lambda: 0,
    lambda: torch.float16,
    lambda: torch.nn.Linear(1, 1),
    lambda: Rope(),
    lambda: NoPosition(),
    lambda: LayersConfig(dim=8, depth=1),
    lambda: LayersConfig.model_construct(dim="x", depth=Hostile()),
    lambda: 1j,
]


def _cyclic(rng: Random) -> Any:
    inner: dict[str, Any] = {"kind": "rope"}
    ring: list[Any] = [inner]
    inner["scaling"] = ring if rng.random() < 0.5 else inner
    return rng.choice([ring, inner])


def _deep(rng: Random) -> Any:
    value: Any = 1
    for _ in range(rng.choice([20, 40, 500, 5000])):
        value = [value] if rng.random() < 0.5 else {"kind": value}
    return value


def _wide(rng: Random) -> Any:
    value: Any = ["rope"] * 9
    for _ in range(rng.choice([1, 3, 12])):
        value = [value] * 9
    return value


def junk(rng: Random, depth: int = 0) -> Any:
    """One value of any kind."""
    draw = rng.random()
    if draw < 0.25:
        return rng.choice(NUMBERS)
    if draw < 0.45:
        return rng.choice(WORDS)
    if draw < 0.6:
        return rng.choice(FOREIGN)()
    if draw < 0.65:
        return rng.choice([_cyclic, _deep, _wide])(rng)
    if draw < 0.8 and depth < 4:
        return [junk(rng, depth + 1) for _ in range(rng.randint(0, 4))]
    if draw < 0.85 and depth < 4:
        return tuple(junk(rng, depth + 1) for _ in range(rng.randint(0, 4)))
    if depth < 4:
        keys = [
            rng.choice([*NEARLY, *NEARLY, 1, None, (1, 2), 2.5, "x" * 300, "\udfff"]) for _ in range(rng.randint(0, 4))
        ]
        return {key: junk(rng, depth + 1) for key in keys}
    return None


def named(rng: Random, classes: dict[str, type[BaseModel]], tag: str) -> dict[str, Any]:
    """A scheme or scaling with some of its settings, mostly extreme numbers."""
    name = rng.choice(sorted(classes))
    fields = [field for field in classes[name].model_fields if field != tag]
    chosen = rng.sample(fields, min(len(fields), rng.randint(0, 3)))
    return {tag: name} | {field: setting(rng, field) for field in chosen}


def setting(rng: Random, field: str) -> Any:
    """A value for one field."""
    if field == "scaling" and rng.random() < 0.8:
        return named(rng, SCALINGS, "rope_type")
    if field == "position" and rng.random() < 0.8:
        parts = [named(rng, SCHEMES, "kind") for _ in range(rng.randint(1, 2))]
        return rng.choice([parts, parts[0], parts[0]["kind"]])
    if field == "pattern" and rng.random() < 0.7:
        entries = rng.choice([1, 2, 3, 200, 2000])
        return [{"window": i % rng.choice([3, 5000]) + 1} for i in range(entries)]
    if field in ("slopes", "sections", "short_factor", "long_factor") and rng.random() < 0.5:
        return [rng.choice(NUMBERS) for _ in range(rng.choice([1, 2, 3, 5000]))]
    return rng.choice(NUMBERS) if rng.random() < 0.5 else junk(rng)


def fields_of(rng: Random, schema: type[BaseModel], depth: int = 0) -> dict[str, Any]:
    """Some fields of a config class, a few of them unknown."""
    known = list(schema.model_fields)
    out: dict[str, Any] = {}
    for name, field in schema.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel) and rng.random() < 0.8 and depth < 4:
            out[name] = fields_of(rng, inner, depth + 1)
        elif field.is_required() and rng.random() < 0.95:
            out[name] = rng.choice([1, 2, 16, 16, 16])
        elif rng.random() < 2 / len(known):
            out[name] = setting(rng, name)
    if rng.random() < 0.1:
        out[rng.choice(NEARLY)] = junk(rng)
    return out


def flags_of(rng: Random) -> dict[str, Any]:
    """Keyword flags, mostly of a valid model."""
    out: dict[str, Any] = {"dim": 16, "depth": rng.choice([1, 2, 2000]), "heads": rng.choice([2, 4, 4096])}
    if rng.random() < 0.5:
        out |= {"num_tokens": 11, "max_seq_len": rng.choice([8, 2**31])}
    if rng.random() < 0.1:
        out |= {"image_size": 32, "patch_size": 8, "kind": "encoder"}
        out.pop("max_seq_len", None)
    for _ in range(rng.randint(0, 4)):
        name = rng.choice([*FLAGS, *["position", "pattern", "window", "attn", "ff", "norm", "kind"] * 20, *NEARLY])
        out[name] = setting(rng, name)
    for name in ("cache", "device", "dtype", "train", "decode_to", "cache_window"):
        if rng.random() < 0.15:
            usual = {"cache": "static", "device": "cuda", "dtype": "float16", "train": True, "decode_to": 64}
            out[name] = usual.get(name, 4) if rng.random() < 0.7 else junk(rng)
    return out


def _scalar(rng: Random) -> str:
    odd = ["~", "rope", "16", "1e400", "2001-99-99", ".inf", "0x1f", "1:30:00", "!!binary ==", "!!set {1}", '"\\ud800"']
    odd += ["9" * 5000, "!!python/object/apply:os.system [ls]", "!!timestamp 9999-99-99", "*a", "[*a, *a]", "{<<: *a}"]
    odd += ["[" * rng.choice([3, 40, 2000]), "{" * 50, "'", "\t", "\x00", "!!int x", "!!float x", "? [1]", "-" * 100]
    return rng.choice(odd)


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(8)
)
MERGES = "a: &a {x: 1, y: 2}\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} {{<<: [{','.join(['*' + chr(97 + i)] * 9)}]}}\n" for i in range(8)
)


def yaml_text(rng: Random) -> str:
    """A file: a model's fields with odd values, repeated keys, aliases, cut off or damaged."""
    lines = ["anchor: &a {kind: rope}\n"] if rng.random() < 0.3 else []
    lines += [BOMB] if rng.random() < 0.03 else [MERGES] if rng.random() < 0.03 else []
    layers = ["dim: 16", "depth: 1", "heads: 2", "position: rope"]
    layers += [f"{rng.choice(NEARLY)}: {_scalar(rng)}" for _ in range(rng.randint(0, 2))]
    rng.shuffle(layers)
    inside = "".join(f"    {line}\n" for line in layers)
    lines.append(
        f"model:\n  num_tokens: 256\n  max_seq_len: 8\n  layers: {'&a' if rng.random() < 0.1 else ''}\n{inside}"
    )
    if rng.random() < 0.2:
        lines.append(f"{rng.choice(['optimizer', 'data', 'run', 'model'])}: {_scalar(rng)}\n")
    text = "".join(lines)
    if rng.random() < 0.2:
        at = rng.randrange(len(text))
        text = text[:at] + rng.choice(["", ":", "&a ", "*a ", "[", "\n", "- ", "#", "'", "\x07"]) + text[at + 1 :]
    return text
