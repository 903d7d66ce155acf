"""How the keys of a published `config.json` say which layers are mixtures of experts, and of what, and back. Pure data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from x_positional.experts_config import MoEConfig
from x_positional.pretrained.fields import Fields, Hf

Sparse = list[bool]
"""For each layer, whether it has experts."""


@dataclass(frozen=True)
class Named:
    """A key and its default. also: another name of it, which some files have."""

    key: str
    default: Any
    also: str = ""

    def read(self, hf: Hf) -> Any:
        said = [hf[key] for key in (self.key, self.also) if hf.get(key) is not None]
        return said[0] if said else self.default


def everywhere(hf: Hf, depth: str = "num_hidden_layers") -> Sparse:
    """Every layer has experts."""
    return [True] * hf[depth]


@dataclass(frozen=True, kw_only=True)
class Shared:
    """The inner width of the shared expert, and what says it of an expert's width."""

    read: Callable[[Hf], int | None]
    write: Callable[[int | None, int], Mapping[str, Any]]
    keys: tuple[str, ...] = ()


NO_SHARED = Shared(read=lambda hf: None, write=lambda shared, width: {})


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """numbers: field of `MoEConfig` -> key. fixed: fields that are the same in the whole family. width: of an expert. dense: of
    the feedforward of layers without experts, None where every layer has some. sparse: which layers have some; said_by: the
    keys that say so."""

    numbers: Mapping[str, Named]
    width: Named
    fixed: Mapping[str, Any] = field(default_factory=dict)
    dense: Named | None = None
    sparse: Callable[[Hf], Sparse] = everywhere
    said_by: Callable[[Sparse], Mapping[str, Any]] = lambda sparse: {}
    sparse_keys: tuple[str, ...] = ()
    shared: Shared = NO_SHARED

    @property
    def said(self) -> tuple[str, ...]:
        return ("layers.ff.dim", "each.ff.dim", "layers.ff.moe", "each.ff.moe")

    @property
    def keys(self) -> tuple[str, ...]:
        named = [*self.numbers.values(), self.width, *([] if self.dense is None else [self.dense])]
        return (*(key for n in named for key in (n.key, n.also) if key), *self.sparse_keys, *self.shared.keys)

    def read(self, hf: Hf) -> Fields:
        said = {name: named.read(hf) for name, named in self.numbers.items()}
        if said.get("groups") == said.get("top_groups"):  # of all groups: there might as well be none
            said |= {"groups": 1, "top_groups": 1} if "groups" in said else {}
        moe = MoEConfig(**{**self.fixed, **said, "shared": self.shared.read(hf)})
        width, dense = self.width.read(hf), None if self.dense is None else self.dense.read(hf)
        sparse = self.sparse(hf)
        return {
            "each.ff.moe": [moe if s else None for s in sparse],
            "each.ff.dim": [width if s else dense for s in sparse],
        }

    def write(self, config: Fields) -> dict[str, Any]:
        mixtures, widths = config["each.ff.moe"], config["each.ff.dim"]
        sparse = [moe is not None for moe in mixtures]
        out: dict[str, Any] = dict(self.said_by(sparse))
        if self.dense is not None and not all(sparse):
            out[self.dense.key] = widths[sparse.index(False)]
        if any(sparse):
            moe, width = mixtures[sparse.index(True)], widths[sparse.index(True)]
            out |= {named.key: getattr(moe, name) for name, named in self.numbers.items()}
            out |= {self.width.key: width, **self.shared.write(moe.shared, width)}
        return out
