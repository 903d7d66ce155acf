"""What a model is, as data: validated, frozen, and the same in Python, YAML and keyword flags."""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, SerializeAsAny, TypeAdapter
from typing_extensions import Self

from x_positional import schemes as _registered  # noqa: F401  (importing it registers every scheme)
from x_positional.config.experts import MoEConfig
from x_positional.config.latent import MLAConfig
from x_positional.errors import ConfigError
from x_positional.schemes.base import AttentionWindow, Dims
from x_positional.schemes.compose import Chain
from x_positional.schemes.registry import Config, Custom, SchemeConfig, scheme_config

LayersKind = Literal["encoder", "decoder", "cross_attender"]


class NormConfig(Config):
    """eps: None is 1e-5 for layer and 1e-6 for the others. unit_offset: gains are stored as gain - 1. gain: False is a norm
    without one (OLMo)."""

    kind: Literal["layer", "rms", "scale", "simple_rms", "none"] = "layer"
    eps: float | None = Field(default=None, gt=0)
    bias: bool = False
    unit_offset: bool = True
    gain: bool = True


QKNormKind = Literal["rms", "rms_plain", "rms_whole", "rms_per_head", "layer", "layer_per_head", "l2"]


class AttentionConfig(Config):
    """bias: of the projections; out_bias: of the last one, None follows bias. scale: None is head_dim^-0.5. softcap:
    c * tanh(score / c). sinks: a learned logit per head with no value. clip: queries, keys and values are clamped to
    [-clip, clip], after a norm that comes before rotation. mla: keys and values from a latent, see `MLAConfig`.
    position_projections: positions have projections of their own to queries and keys, for a scheme that asks (deberta).

    qk_norm: of queries and keys, see `HeadNorm`; after "l2" scores are scaled by qk_norm_scale. qk_norm_eps: None is that
    of the kind. qk_norm_bias: beside the gains. qk_norm_unit_offset: gains are stored as gain - 1. qk_norm_after: after rotation.
    """

    dropout: float = Field(default=0.0, ge=0, lt=1)
    bias: bool = False
    out_bias: bool | None = None
    qk_norm: QKNormKind | None = None
    qk_norm_scale: float = Field(default=10.0, gt=0)
    qk_norm_eps: float | None = Field(default=None, gt=0)
    qk_norm_bias: bool = False
    qk_norm_unit_offset: bool = True
    qk_norm_after: bool = False
    softcap: float | None = Field(default=None, gt=0)
    sinks: bool = False
    scale: float | None = Field(default=None, gt=0)
    clip: float | None = Field(default=None, gt=0)
    mla: MLAConfig | None = None
    position_projections: bool = False


ActivationKind = Literal["gelu", "gelu_tanh", "quick_gelu", "silu", "relu", "relu2"]


class FeedForwardConfig(Config):
    """dim: inner width, None is int(model dim * mult). gate_bias: of the gated projection, None follows bias. swish_beta:
    silu is x * sigmoid(beta x). glu_clamp: gates are held below it and values between -glu_clamp and it, before the activation;
    glu_shift: is added to the values (gpt-oss: 1). moe: a mixture of experts like this, see `MoEConfig`."""

    mult: float = Field(default=4.0, gt=0)
    dim: int | None = Field(default=None, gt=0)
    activation: ActivationKind = "gelu"
    glu: bool = False
    bias: bool = True
    gate_bias: bool | None = None
    swish_beta: float = 1.0
    glu_clamp: float | None = Field(default=None, gt=0)
    glu_shift: float = 0.0
    dropout: float = Field(default=0.0, ge=0, lt=1)
    moe: MoEConfig | None = None


class HeadConfig(Config):
    """What stands before the last projection of a head: norm(activation(linear(x))), as in BERT. bias: of the linear."""

    activation: ActivationKind = "gelu"
    bias: bool = True
    norm: NormConfig = NormConfig(bias=True, unit_offset=False)


def _as_list(value: Any) -> Any:
    """One scheme or several -> a list; a Chain is its parts, so that each is judged and built by itself."""
    return None if value is None else _parts(value)


def _parts(value: Any) -> list[Any]:
    if isinstance(value, Chain):
        value = list(value.parts)
    return [part for item in value for part in _parts(item)] if isinstance(value, list | tuple) else [value]


OneScheme = Annotated[SerializeAsAny[SchemeConfig], BeforeValidator(scheme_config)]
Position = Annotated[tuple[OneScheme, ...] | None, BeforeValidator(_as_list)]
POSITION: TypeAdapter[tuple[SchemeConfig, ...] | None] = TypeAdapter(Position)


class LayerConfig(Config):
    """What may differ between the layers of a stack. position, attn, ff: None is that of the stack. window: see the last
    `window` tokens. chunk: see the tokens of the own chunk, where texts are cut every `chunk` tokens (Llama 4).
    keep_first: beside a window, see the first tokens too, at distances that stop growing (StreamingLLM)."""

    position: Position = None
    window: int | None = Field(default=None, gt=0)
    chunk: int | None = Field(default=None, gt=0)
    keep_first: int = Field(default=0, ge=0)
    attn: AttentionConfig | None = None
    ff: FeedForwardConfig | None = None

    @property
    def parts(self) -> tuple[SchemeConfig, ...]:
        """The schemes that were chosen."""
        return self.position or ()

    @property
    def attention_window(self) -> AttentionWindow:
        """The same as attention reads it."""
        return AttentionWindow(size=self.window, chunk=self.chunk, keep_first=self.keep_first)


class LayersConfig(Config):
    """A stack of layers. position: a name, a config, a scheme, or a list (combined); None is not chosen: a wrapper then
    adds learned absolute embeddings. window, chunk, keep_first: as in `LayerConfig`, for every layer; pattern: what differs
    between layers, entry i for layer i, and over again. flash: ask for a path that never holds the whole score matrix.
    final_norm: None is yes, except after norm_place="post", which ends in a norm already. first_norm: False leaves out the
    norm before the attention of the first layer, as the embedding ends in one (ModernBERT). residual_scale: what each branch is
    multiplied by (Granite). layer_scale: a learned gain per channel of each branch, from this value (LayerScale)."""

    kind: LayersKind = "decoder"
    dim: int = Field(gt=0)
    depth: int = Field(gt=0)
    heads: int = Field(default=8, gt=0)
    kv_heads: int | None = Field(default=None, gt=0)
    head_dim: int = Field(default=64, gt=0)
    position: Position = None
    cross_attend: bool = False
    context_dim: int | None = Field(default=None, gt=0)
    window: int | None = Field(default=None, gt=0)
    chunk: int | None = Field(default=None, gt=0)
    keep_first: int = Field(default=0, ge=0)
    pattern: tuple[LayerConfig, ...] = ()
    backend: Literal["auto", "eager", "blockwise", "sdpa", "flex", "varlen"] = "auto"
    flash: bool = False
    norm: NormConfig = NormConfig()
    norm_place: Literal["pre", "post", "after", "sandwich", "entry", "parallel", "parallel_two"] = "pre"
    final_norm: bool | None = None
    first_norm: bool = True
    residual_scale: float = Field(default=1.0, gt=0)
    layer_scale: float | None = Field(default=None, gt=0)
    attn: AttentionConfig = AttentionConfig()
    ff: FeedForwardConfig = FeedForwardConfig()

    def dims(self, max_seq_len: int | None = None, embed_dim: int | None = None) -> Dims:
        """The sizes that schemes are built with."""
        return Dims(
            dim=self.dim,
            heads=self.heads,
            kv_heads=self.kv_heads or self.heads,
            head_dim=self.head_dim,
            causal=self.kind == "decoder",
            embed_dim=embed_dim or self.dim,
            max_seq_len=max_seq_len,
        )

    def layer_kinds(self) -> tuple[LayerConfig, ...]:
        """The kinds of layers: layer i is of kind i, and over again."""
        if not self.pattern:
            own = {name: getattr(self, name) for name in LayerConfig.model_fields}
            return (LayerConfig(**own),)
        return tuple(
            k.model_copy(update={n: getattr(self, n) for n in ("position", "attn", "ff") if getattr(k, n) is None})
            for k in self.pattern
        )

    def with_position(self, position: Any) -> Self:
        """The same layers with another position scheme, in any form that `position=` takes."""
        return self.model_copy(update={"position": POSITION.validate_python(position)})

    def to_flags(self) -> dict[str, Any]:
        """Keyword arguments that make the same layers: `Decoder(**config.to_flags())`."""
        values = {name: getattr(self, name) for name in type(self).model_fields if name != "kind"}
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        return {name: value for name, value in values.items() if value != defaults[name]}


class FileConfig(Config):
    """A whole model, which a YAML file can hold."""

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """Reads a file with the model's keys, at the top or under `model:`. Raises ConfigError, ValidationError."""
        try:
            data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"cannot read {path}: {error}") from error
        if not isinstance(data, dict):
            raise ConfigError(f"{path} holds {type(data).__name__}, not keys and values of a model.")
        return cls.model_validate(data.get("model", data))

    def to_yaml(self, path: str | Path | None = None) -> str:
        """The YAML of this model, written to `path` if given. Only what differs from the defaults is said."""
        text = yaml.safe_dump({"model": plain(self)}, sort_keys=False)
        if path is not None:
            Path(path).write_text(text)
        return text


class ModelConfig(FileConfig):
    """A language model: embeddings, layers, head. emb_scale: token embeddings are multiplied by it. emb_norm: the norm after
    the embedding where it is not the bias-free LayerNorm of post_emb_norm. token_types: how many kinds of tokens have a
    learned vector of their own, added to the embedding (BERT's segments). head: what stands before the last projection.
    logits_bias: of the head. logits_scale: logits are multiplied by it, then capped to c * tanh(logit / c) by
    logits_softcap.

    Where emb_dim is not dim, a projection lies between: emb_proj_bias: it has a bias. emb_proj_first: positions and norm come
    after it, as wide as the model. logits_proj: another one leads back to emb_dim before the head (all as in OPT-350m)."""

    num_tokens: int = Field(gt=0)
    max_seq_len: int = Field(gt=0)
    layers: LayersConfig
    emb_dim: int | None = Field(default=None, gt=0)
    emb_dropout: float = Field(default=0.0, ge=0, lt=1)
    post_emb_norm: bool = False
    tie_embedding: bool = False
    tie_embedding_scale: float | None = None
    l2norm_embed: bool = False
    logits_dim: int | None = Field(default=None, gt=0)
    emb_scale: float | None = Field(default=None, gt=0)
    emb_norm: NormConfig | None = None
    token_types: int | None = Field(default=None, gt=0)
    head: HeadConfig | None = None
    emb_proj_bias: bool = True
    emb_proj_first: bool = False
    logits_proj: bool = False
    logits_bias: bool = False
    logits_scale: float | None = Field(default=None, gt=0)
    logits_softcap: float | None = Field(default=None, gt=0)

    @property
    def placed_dim(self) -> int | None:
        """The width at which positions are added; None is that of the model."""
        return None if self.emb_proj_first else self.emb_dim

    @property
    def projected(self) -> bool:
        """Whether embeddings have a width of their own."""
        return self.emb_dim not in (None, self.layers.dim)


class ContinuousConfig(Config):
    """Continuous inputs and outputs around layers. max_seq_len: None is no table; dim_in, dim_out: None is no
    projection."""

    layers: LayersConfig
    max_seq_len: int | None = Field(default=None, gt=0)
    dim_in: int | None = Field(default=None, gt=0)
    dim_out: int | None = Field(default=None, gt=0)
    emb_dropout: float = Field(default=0.0, ge=0, lt=1)
    post_emb_norm: bool = False


def plain(config: Config) -> dict[str, Any]:
    """Numbers, strings, lists and dicts that validate to an equal config. Raises ConfigError for a scheme instance."""
    if isinstance(config, Custom):
        raise ConfigError(
            f"{type(config.scheme).__name__} was given as an instance, which a file cannot hold. Register a SchemeConfig "
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
