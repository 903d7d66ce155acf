"""Codec of mixtures of experts: which layers have experts, and how many of what width. Pure data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from x_positional.config.layers import MoEConfig
from x_positional.pretrained.config_json.codecs import Fields, Hf

ExpertLayers = list[bool]
"""For each layer, whether it has experts."""


@dataclass(frozen=True)
class AliasedKey:
    """A key with a default and, optionally, another name."""

    key: str
    default: Any
    alias: str = ""
    """Another name of the key, used by some files."""

    def value(self, hf: Hf) -> Any:
        """The value in a config, or the default."""
        found = [hf[key] for key in (self.key, self.alias) if hf.get(key) is not None]
        return found[0] if found else self.default


def every_layer(hf: Hf) -> ExpertLayers:
    """Every layer has experts."""
    return [True] * hf["num_hidden_layers"]


@dataclass(frozen=True, kw_only=True)
class SharedExpert:
    """The inner width of the shared expert."""

    width: Callable[[Hf], int | None]
    """Config -> inner width, None without a shared expert."""
    to_hf: Callable[[int | None, int], Mapping[str, Any]]
    """(Its inner width, that of a routed expert) -> keys."""
    keys: tuple[str, ...] = ()


NO_SHARED_EXPERT = SharedExpert(width=lambda hf: None, to_hf=lambda shared, width: {})


@dataclass(frozen=True, kw_only=True)
class MoECodec:
    """The keys of a mixture of experts."""

    numbers: Mapping[str, AliasedKey]
    """Field of `MoEConfig` -> key."""
    width: str
    """Key of the inner width of an expert."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `MoEConfig` that are the same in the whole family."""
    dense_width: str | None = None
    """Key of the inner width of layers without experts; None where every layer has experts."""
    expert_layers: Callable[[Hf], ExpertLayers] = every_layer
    expert_layers_to_hf: Callable[[ExpertLayers], Mapping[str, Any]] = lambda layers: {}
    expert_layers_keys: tuple[str, ...] = ()
    shared: SharedExpert = NO_SHARED_EXPERT

    @property
    def sets(self) -> tuple[str, ...]:
        return ("layers.ff.dim", "each.ff.dim", "layers.ff.moe", "each.ff.moe")

    @property
    def keys(self) -> tuple[str, ...]:
        named = [key for number in self.numbers.values() for key in (number.key, number.alias)]
        own = (*named, self.width, self.dense_width, *self.expert_layers_keys, *self.shared.keys)
        return tuple(key for key in own if key)

    def to_fields(self, hf: Hf) -> Fields:
        numbers = {name: number.value(hf) for name, number in self.numbers.items()}
        if numbers.get("groups") == numbers.get("top_groups"):  # all groups are kept: the same as no groups
            numbers |= {"groups": 1, "top_groups": 1} if "groups" in numbers else {}
        moe = MoEConfig(**{**self.fixed, **numbers, "shared": self.shared.width(hf)})
        width, dense = hf[self.width], None if self.dense_width is None else hf[self.dense_width]
        layers = self.expert_layers(hf)
        return {
            "each.ff.moe": [moe if has_experts else None for has_experts in layers],
            "each.ff.dim": [width if has_experts else dense for has_experts in layers],
        }

    def to_hf(self, fields: Fields) -> dict[str, Any]:
        mixtures, widths = fields["each.ff.moe"], fields["each.ff.dim"]
        layers = [moe is not None for moe in mixtures]
        out: dict[str, Any] = dict(self.expert_layers_to_hf(layers))
        if self.dense_width is not None and not all(layers):
            out[self.dense_width] = widths[layers.index(False)]
        if any(layers):
            moe, width = mixtures[layers.index(True)], widths[layers.index(True)]
            out |= {number.key: getattr(moe, name) for name, number in self.numbers.items()}
            out |= {self.width: width, **self.shared.to_hf(moe.shared, width)}
        return out
