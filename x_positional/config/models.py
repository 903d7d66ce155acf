"""Whole models as data, and as YAML files."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import Field
from typing_extensions import Self

from x_positional.config.layers import LayersConfig, NormConfig
from x_positional.config.reading import read_yaml
from x_positional.errors import ConfigError
from x_positional.modules.feedforward import FixedActivationKind
from x_positional.schemes.registry import Config, Custom
from x_positional.schemes.values import MAX_LENGTH, MAX_ROWS, MAX_WIDTH


def plain(config: Config) -> dict[str, Any]:
    """Numbers, strings, lists and dicts that validate to an equal config. Raises ConfigError for a scheme instance."""
    if isinstance(config, Custom):
        raise ConfigError(
            f"{config.label} was given as an instance, which a file cannot hold. Register a SchemeConfig "
            "for it (a class with `kind` and `build`) and use its name."
        )
    out: dict[str, Any] = {config.tag: getattr(config, config.tag)} if config.tag else {}
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if value == field.default and not field.is_required():
            continue
        if isinstance(value, Config):
            value = plain(value)
        elif isinstance(value, tuple):
            value = [plain(v) if isinstance(v, Config) else v for v in value]
        out[name] = value
    return out


class FileConfig(Config):
    """A whole model, which a YAML file can hold."""

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """Reads a file with the model's keys, at the top or under `model:`. Raises ConfigError."""
        data = read_yaml(path)
        return cls.model_validate(data.get("model", data))

    def to_yaml(self, path: str | Path | None = None) -> str:
        """The YAML of this model, written to `path` if given. Fields at their defaults are left out."""
        text = yaml.safe_dump({"model": plain(self)}, sort_keys=False)
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text


class HeadConfig(Config):
    """BERT-style prediction head before the last projection: norm(activation(linear(x)))."""

    activation: FixedActivationKind = "gelu"
    """The nonlinearity."""
    bias: bool = True
    """Bias of the linear layer."""
    width: int | None = Field(default=None, gt=0, le=MAX_WIDTH)
    """Width after the linear layer, `emb_dim` where the logits are tied to it (ELECTRA). None is the model's width."""
    norm: NormConfig = NormConfig(bias=True, unit_offset=False)
    """The norm after the activation."""


class ModelConfig(FileConfig):
    """A language model: token embeddings, layers, head."""

    num_tokens: int = Field(gt=0, le=MAX_LENGTH)
    """Vocabulary size."""
    max_seq_len: int = Field(gt=0, le=MAX_LENGTH)
    """Trained length, and the size of a learned position table."""
    layers: LayersConfig
    """The stack."""
    emb_dim: int | None = Field(default=None, gt=0, le=MAX_WIDTH)
    """Width of the embeddings. None is the model's width; any other is projected to it."""
    emb_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout of the embeddings."""
    post_emb_norm: bool = False
    """A LayerNorm without bias after the embedding."""
    tie_embedding: bool = False
    """Logits are computed with the embedding matrix."""
    tie_embedding_scale: float | None = None
    """What tied logits are multiplied by. None is dim^-0.5."""
    l2norm_embed: bool = False
    """Token embeddings are normalised to length one."""
    logits_dim: int | None = Field(default=None, gt=0, le=MAX_LENGTH)
    """Width of the logits. None is `num_tokens`."""
    emb_scale: float | None = Field(default=None, gt=0)
    """What token embeddings are multiplied by (Gemma). None is 1."""
    emb_norm: NormConfig | None = None
    """A norm after the embedding other than that of `post_emb_norm`."""
    token_types: int | None = Field(default=None, gt=0, le=MAX_ROWS)
    """Number of token types; each has a learned vector that is added to the embedding (BERT's segments)."""
    head: HeadConfig | None = None
    """Layers before the last projection. None is none."""
    emb_proj_bias: bool = True
    """A bias of the projections between `emb_dim` and the model's width."""
    emb_proj_first: bool = False
    """Positions and the embedding norm come after the projection, at the model's width (OPT-350m)."""
    logits_proj: bool = False
    """A projection from the model's width back to `emb_dim` before the head (OPT-350m)."""
    logits_bias: bool = False
    """A bias of the logits."""
    logits_scale: float | None = Field(default=None, gt=0)
    """What logits are multiplied by (Cohere). None is 1."""
    logits_softcap: float | None = Field(default=None, gt=0)
    """After that, logits become c * tanh(logit / c), with c this value (Gemma 2). None is no cap."""

    @property
    def placed_dim(self) -> int | None:
        """The width at which positions are added. None is the model's."""
        return None if self.emb_proj_first else self.emb_dim

    @property
    def logits_width(self) -> int:
        """Width of what the last projection reads."""
        if self.head is not None and self.head.width is not None:
            return self.head.width
        return self.emb_dim or self.layers.dim if self.logits_proj else self.layers.dim

    @property
    def projected(self) -> bool:
        """Whether a projection lies between embeddings and layers."""
        return self.emb_dim not in (None, self.layers.dim)


class ContinuousConfig(Config):
    """Continuous inputs and outputs around layers."""

    layers: LayersConfig
    """The stack."""
    max_seq_len: int | None = Field(default=None, gt=0, le=MAX_LENGTH)
    """Trained length, and the size of a learned position table. None is no table."""
    dim_in: int | None = Field(default=None, gt=0, le=MAX_WIDTH)
    """Width of the input, which is projected to the model's width. None is no projection."""
    dim_out: int | None = Field(default=None, gt=0, le=MAX_WIDTH)
    """Width of the output, projected from the model's width. None is no projection."""
    emb_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout after the input projection."""
    post_emb_norm: bool = False
    """A LayerNorm without bias after the input projection."""
