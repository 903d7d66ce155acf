"""Encoder, Decoder and CrossAttender from keyword flags; each also runs alone on embeddings [B T M]."""

from collections.abc import Mapping
from typing import Any, ClassVar

from typing_extensions import Self

from x_positional.attention.backends import choose
from x_positional.config.flags import layers_from_flags
from x_positional.config.layers import LayersConfig, LayersKind
from x_positional.config.validate import layers_report, require
from x_positional.errors import PositionError
from x_positional.models.build import Positions, build_blocks, build_kinds, build_norm, positions_of
from x_positional.modules.stack import AttentionLayers
from x_positional.schemes.base import AttentionContext, PositionScheme
from x_positional.schemes.none import NoPosition
from x_positional.schemes.registry import SchemeConfig


class Unbound(NoPosition):
    """Stands in for a scheme that waits for a length; using it says what is missing."""

    def __init__(self, problem: str):
        super().__init__()
        self.problem = problem

    def tables(self, positions: Any) -> Any:
        raise PositionError(self.problem)

    def bias(self, ctx: AttentionContext) -> Any:
        raise PositionError(self.problem)


class ConfiguredLayers(AttentionLayers):
    """A stack that knows the config it was made from."""

    kind: ClassVar[LayersKind]

    def __init__(self, dim: int | None = None, depth: int | None = None, **flags: Any):
        given = {name: value for name, value in (("dim", dim), ("depth", depth)) if value is not None}
        self._assemble(
            LayersConfig.model_validate({**layers_from_flags(self.kind, {**given, **flags}), "kind": self.kind})
        )

    @classmethod
    def from_config(cls, config: LayersConfig | Mapping[str, Any]) -> Self:
        """The same layers from a `LayersConfig` of this kind."""
        layers = cls.__new__(cls)
        layers._assemble(LayersConfig.model_validate(config))
        return layers

    def _assemble(self, config: LayersConfig) -> None:
        waiting = missing_length(config)
        if waiting is None:
            positions = positions_of(config, None, None)
        else:
            require(layers_report(config, 1))  # any length shows the problems that have nothing to do with it
            positions = _placeholder(waiting, config.depth)
        crosses = config.cross_attend or config.kind == "cross_attender"
        super().__init__(
            dims=config.dims(),
            blocks=build_blocks(config),
            schemes=positions.parts,
            kinds=build_kinds(config, positions),
            final_norm=build_norm(config) if _ends_normed(config) else None,
            cross_choice=choose(config.backend, config.flash, "fused", config.attn.features()) if crosses else None,
        )
        self.config = config

    def bind(self, config: LayersConfig, max_seq_len: int | None, embed_dim: int | None) -> None:
        """Called by a wrapper: `config` with the wrapper's positions. Schemes that needed its length are made now."""
        unchanged = config.layer_kinds() == self.config.layer_kinds()
        self.dims = config.dims(max_seq_len, embed_dim)
        positions = positions_of(config, max_seq_len, embed_dim)  # says every problem, whether or not it is used
        chosen = all(kind.position is not None for kind in config.layer_kinds())
        if not (unchanged and chosen) or any(part.needs_wrapper for part in parts_of(config)):
            self.set_positions(positions.parts, build_kinds(config, positions))
        self.config = config


def missing_length(config: LayersConfig) -> str | None:
    """What a scheme waits for until a wrapper names a length; None where nothing does."""
    waiting = [part for part in parts_of(config) if part.needs_wrapper]
    found = [problem for part in waiting for problem in part.problems(config.dims())]
    complete = [problem for part in waiting for problem in part.problems(config.dims(1))]
    return found[0] if found and not complete else None


def parts_of(config: LayersConfig) -> list[SchemeConfig]:
    """The schemes of every kind of layer."""
    return [part for kind in config.layer_kinds() for part in kind.parts]


def _placeholder(problem: str, depth: int) -> Positions:
    scheme: PositionScheme = Unbound(problem)
    return Positions([scheme], [scheme] * depth)


def _ends_normed(config: LayersConfig) -> bool:
    return config.norm_place != "post" if config.final_norm is None else config.final_norm


class Encoder(ConfiguredLayers):
    """Self-attention to both sides. Flags as in x-transformers, or `position=`; see docs/migration.md."""

    kind = "encoder"


class Decoder(ConfiguredLayers):
    """Causal self-attention; with cross_attend=True each block also attends to `context=`."""

    kind = "decoder"


class CrossAttender(ConfiguredLayers):
    """Cross-attention to `context=` and feedforward, no self-attention."""

    kind = "cross_attender"


LAYERS: dict[LayersKind, type[ConfiguredLayers]] = {c.kind: c for c in (Encoder, Decoder, CrossAttender)}


def layers_from_config(config: LayersConfig) -> ConfiguredLayers:
    """Encoder, Decoder or CrossAttender, by `config.kind`."""
    return LAYERS[config.kind].from_config(config)


__all__ = ["ConfiguredLayers", "CrossAttender", "Decoder", "Encoder", "layers_from_config"]
