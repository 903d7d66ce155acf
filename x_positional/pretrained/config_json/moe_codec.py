"""How the keys of a published `config.json` say which layers are mixtures of experts, and of what, and back. Pure data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from x_positional.config.layers import MoEConfig
from x_positional.pretrained.config_json.codecs import Fields, Hf

Sparse = list[bool]
"""For each layer, whether it has experts."""


@dataclass(frozen=True)
class Named:
    """A key and its default. also: another name of it, which some files have in its place."""

    key: str
    default: Any
    also: str = ""

    def read(self, hf: Hf) -> Any:
        said = [hf[key] for key in (self.key, self.also) if hf.get(key) is not None]
        return said[0] if said else self.default


def everywhere(hf: Hf) -> Sparse:
    """Every layer has experts."""
    return [True] * hf["num_hidden_layers"]


@dataclass(frozen=True, kw_only=True)
class Shared:
    """The inner width of the shared expert, and what says it of an expert's width."""

    read: Callable[[Hf], int | None]
    write: Callable[[int | None, int], Mapping[str, Any]]
    keys: tuple[str, ...] = ()


NO_SHARED = Shared(read=lambda hf: None, write=lambda shared, width: {})


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """numbers: field of `MoEConfig` -> key. fixed: fields that are the same in the whole family. width: the key of an expert's
    inner width; dense: of that of layers without experts, None where every layer has some. sparse: which layers have some;
    said_by: the keys that say so."""

    numbers: Mapping[str, Named]
    width: str
    fixed: Mapping[str, Any] = field(default_factory=dict)
    dense: str | None = None
    sparse: Callable[[Hf], Sparse] = everywhere
    said_by: Callable[[Sparse], Mapping[str, Any]] = lambda sparse: {}
    sparse_keys: tuple[str, ...] = ()
    shared: Shared = NO_SHARED

    @property
    def said(self) -> tuple[str, ...]:
        return ("layers.ff.dim", "each.ff.dim", "layers.ff.moe", "each.ff.moe")

    @property
    def keys(self) -> tuple[str, ...]:
        named = [key for number in self.numbers.values() for key in (number.key, number.also)]
        return tuple(key for key in (*named, self.width, self.dense, *self.sparse_keys, *self.shared.keys) if key)

    def read(self, hf: Hf) -> Fields:
        said = {name: named.read(hf) for name, named in self.numbers.items()}
        if said.get("groups") == said.get("top_groups"):  # of all groups: there might as well be none
            said |= {"groups": 1, "top_groups": 1} if "groups" in said else {}
        moe = MoEConfig(**{**self.fixed, **said, "shared": self.shared.read(hf)})
        width, dense, sparse = hf[self.width], None if self.dense is None else hf[self.dense], self.sparse(hf)
        return {
            "each.ff.moe": [moe if s else None for s in sparse],
            "each.ff.dim": [width if s else dense for s in sparse],
        }

    def write(self, config: Fields) -> dict[str, Any]:
        mixtures, widths = config["each.ff.moe"], config["each.ff.dim"]
        sparse = [moe is not None for moe in mixtures]
        out: dict[str, Any] = dict(self.said_by(sparse))
        if self.dense is not None and not all(sparse):
            out[self.dense] = widths[sparse.index(False)]
        if any(sparse):
            moe, width = mixtures[sparse.index(True)], widths[sparse.index(True)]
            out |= {named.key: getattr(moe, name) for name, named in self.numbers.items()}
            out |= {self.width: width, **self.shared.write(moe.shared, width)}
        return out
