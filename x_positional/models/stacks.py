"""Encoder, Decoder and CrossAttender from keyword flags; each also runs alone on embeddings [B T M]."""

from collections.abc import Mapping
from typing import Any, ClassVar

from typing_extensions import Self

from x_positional.config.flags import layers_from_flags
from x_positional.config.flags.answers import answers
from x_positional.config.layers import LayersConfig, LayersKind
from x_positional.config.validate import layers_report, require
from x_positional.errors import FlagError, PositionError
from x_positional.models.build import build_blocks, build_cross, build_final_norm, build_kinds, positions_of
from x_positional.modules.stack import AttentionLayers
from x_positional.schemes.base import Dims
from x_positional.schemes.registry import SchemeConfig


class ConfiguredLayers(AttentionLayers):
    """A stack that knows its config.

    Schemes that need a length (a table of max_seq_len rows) are built by the model around the stack; until then the stack
    cannot run.
    """

    kind: ClassVar[LayersKind]
    forward = answers("AttentionLayers.forward")(AttentionLayers.forward)

    def __init__(self, dim: int | None = None, depth: int | None = None, **flags: Any):
        given = {name: value for name, value in (("dim", dim), ("depth", depth)) if value is not None}
        fields = layers_from_flags(self.kind, {**given, **flags})
        self._stand_alone(LayersConfig.model_validate({**fields, "kind": self.kind}))

    @classmethod
    def from_config(cls, config: LayersConfig | Mapping[str, Any]) -> Self:
        """The layers of a `LayersConfig` of this kind. Raises IncompatibleConfig with every problem."""
        layers = cls.__new__(cls)
        layers._stand_alone(LayersConfig.model_validate(config))
        return layers

    def _stand_alone(self, config: LayersConfig) -> None:
        """Validate the config as it is without a model around it, and build it as far as that goes."""
        missing = missing_length(config)
        # any length will do to find the problems that do not depend on it
        require(layers_report(config, None if missing is None else 1))
        self._build_blocks(config)
        if missing is None:
            self.build_schemes(config, None, None)

    def _build_blocks(self, config: LayersConfig) -> None:
        super().__init__(
            dims=config.dims(),
            blocks=build_blocks(config),
            final_norm=build_final_norm(config),
            cross=build_cross(config),
        )
        self.config = config

    def build_schemes(self, config: LayersConfig, max_seq_len: int | None, embed_dim: int | None) -> None:
        """Build the position schemes of a validated config.

        A model calls it with its own length and embedding width, and with `config` including what its flags add. Schemes that
        the stack has built already, and that these do not change, stay.
        """
        dims = config.dims(max_seq_len, embed_dim)
        if not self._holds(config, dims):
            positions = positions_of(config, max_seq_len, embed_dim)
            self.set_positions(positions.parts, build_kinds(config, positions))
        self.dims, self.config = dims, config

    def _holds(self, config: LayersConfig, dims: Dims) -> bool:
        """Whether the schemes that are built already are those of a config and these sizes."""
        kinds = config.layer_kinds()
        chosen = all(kind.position is not None for kind in kinds)  # otherwise the length decides
        read = {name for part in parts_of(config) for name in part.model_dims()}
        same_sizes = all(getattr(dims, name) == getattr(self.dims, name) for name in read)
        return self.has_schemes and chosen and kinds == self.config.layer_kinds() and same_sizes

    def _require_schemes(self) -> None:
        if not self.has_schemes:
            raise PositionError(missing_length(self.config) or "this stack was built without its position schemes.")


def config_of(attn_layers: Any, model: str) -> LayersConfig:
    """The config of the layers given to a model. Raises FlagError for what are no layers."""
    if isinstance(attn_layers, ConfiguredLayers):
        return attn_layers.config
    problem = f"attn_layers must be an Encoder, Decoder or CrossAttender; got {type(attn_layers).__name__}."
    if isinstance(attn_layers, Mapping):
        problem += f" Build one from the fields, as in Decoder(**fields), or use {model}.from_config."
    raise FlagError(model, [problem])


def layers_of_model(
    config: LayersConfig, max_seq_len: int | None, embed_dim: int, given: ConfiguredLayers | None = None
) -> ConfiguredLayers:
    """The layers of a model that has validated its config, with their schemes. given: layers whose blocks exist already."""
    if given is None:
        given = LAYERS[config.kind].__new__(LAYERS[config.kind])
        given._build_blocks(config)
    given.build_schemes(config, max_seq_len, embed_dim)
    return given


def missing_length(config: LayersConfig) -> str | None:
    """What a scheme without a length reports, where naming a length would help; None where nothing does."""
    waiting = [part for part in parts_of(config) if part.model_dims()]
    found = [problem for part in waiting for problem in part.problems(config.dims())]
    complete = [problem for part in waiting for problem in part.problems(config.dims(1))]
    return found[0] if found and not complete else None


def parts_of(config: LayersConfig) -> list[SchemeConfig]:
    """The schemes of every kind of layer."""
    return [part for kind in config.layer_kinds() for part in kind.parts]


class Encoder(ConfiguredLayers):
    """Bidirectional self-attention. Flags as in x-transformers, or `position=`; see docs/migration.md."""

    kind = "encoder"


class Decoder(ConfiguredLayers):
    """Causal self-attention; with cross_attend=True each block also attends to `context=`."""

    kind = "decoder"


class CrossAttender(ConfiguredLayers):
    """Cross-attention to `context=` and feedforward, no self-attention."""

    kind = "cross_attender"


LAYERS: dict[LayersKind, type[ConfiguredLayers]] = {c.kind: c for c in (Encoder, Decoder, CrossAttender)}
