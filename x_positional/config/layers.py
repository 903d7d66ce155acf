"""A stack of layers as data: validated, frozen, and the same in Python, YAML and keyword flags."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny
from typing_extensions import Self

from x_positional import schemes as _registered  # noqa: F401  (importing it registers every scheme)
from x_positional.attention.backends import BackendName
from x_positional.modules.block import NormPlace
from x_positional.modules.experts import ScoreKind, WeighKind
from x_positional.modules.feedforward import ActivationKind
from x_positional.modules.norms import NormKind
from x_positional.modules.qk_norm import QKNormKind
from x_positional.schemes.absolute import Absolute
from x_positional.schemes.base import AttentionWindow, Dims
from x_positional.schemes.compose import Chain
from x_positional.schemes.none import NoPE
from x_positional.schemes.registry import Config, SchemeConfig, scheme_config
from x_positional.schemes.values import MAX_HEAD_DIM, MAX_HEADS, MAX_LAYERS, MAX_PARTS, MAX_PATTERN, MAX_WIDTH

LayersKind = Literal["encoder", "decoder", "cross_attender"]


class NormConfig(Config):
    """A norm over the channels of the residual stream."""

    kind: NormKind = "layer"
    """Which norm; see `Norm`."""
    eps: float | None = Field(default=None, gt=0)
    """Added to the variance or the mean square. None is 1e-5 for layer and 1e-6 for the others."""
    bias: bool = False
    """A learned shift beside the gain; layer only."""
    unit_offset: bool = True
    """The gain is stored as gain - 1, so that weight decay pulls it to the identity."""
    gain: bool = True
    """A learned gain per channel. False is a norm without one (OLMo)."""


class MLAConfig(Config):
    """Multi-head latent attention (DeepSeek-V2 2024, arXiv:2405.04434, section 2.1).

    Keys and values of all heads are projected from one latent of `kv_rank` channels. A cache holds that latent and one
    rotated key that all heads share. Keys are made for every head and latents have norms, so kv_heads, qk_norm and clip
    apply to cross-attention only.
    """

    kv_rank: int = Field(gt=0, le=MAX_WIDTH)
    """Width of the latent of keys and values."""
    rope_dim: int = Field(gt=0, le=MAX_HEAD_DIM)
    """Channels of each head that may be rotated: its first ones, whose key is shared by all heads. The other
    head_dim - rope_dim channels come from the latent."""
    value_dim: int | None = Field(default=None, gt=0, le=MAX_HEAD_DIM)
    """Width of a head's values. None is head_dim - rope_dim."""
    q_rank: int | None = Field(default=None, gt=0, le=MAX_WIDTH)
    """Width of the latent of queries. None is no latent: queries are projected directly."""
    eps: float = Field(default=1e-6, gt=0)
    """Of the RMS norms of the latents."""


class AttentionConfig(Config):
    """Self-attention and cross-attention of one layer."""

    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout of the attention weights."""
    bias: bool = False
    """Biases of the projections."""
    out_bias: bool | None = None
    """Bias of the output projection. None follows `bias`."""
    qk_norm: QKNormKind | None = None
    """Norm of queries and keys, see `HeadNorm`. None is none."""
    qk_norm_scale: float = Field(default=10.0, gt=0)
    """What scores are multiplied by after qk_norm="l2"."""
    qk_norm_eps: float | None = Field(default=None, gt=0)
    """eps of that norm. None is the default of its kind."""
    qk_norm_bias: bool = False
    """A learned shift beside the gains of that norm."""
    qk_norm_unit_offset: bool = True
    """The gains of that norm are stored as gain - 1."""
    qk_norm_after: bool = False
    """The norm comes after rotation rather than before."""
    softcap: float | None = Field(default=None, gt=0)
    """Scores become c * tanh(score / c), with c this value (Gemma 2). None is no cap."""
    sinks: bool = False
    """A learned logit per head that takes part in the softmax and has no value (gpt-oss)."""
    scale: float | None = Field(default=None, gt=0)
    """What scores are multiplied by. None is head_dim^-0.5."""
    clip: float | None = Field(default=None, gt=0)
    """Queries, keys and values are clamped to [-clip, clip], after a norm that comes before rotation."""
    mla: MLAConfig | None = None
    """Keys and values from a latent, in self-attention."""
    position_projections: bool = False
    """Separate query and key projections for positions, for schemes that read them (deberta)."""

    def features(self, window: AttentionWindow | None = None) -> frozenset[str]:
        """What this attention needs that some backends lack. window: of self-attention."""
        on = {
            "softcap": self.softcap is not None,
            "sinks": self.sinks,
            "dropout": self.dropout > 0,
            "chunk": window is not None and window.chunk is not None,
            "keep_first": window is not None and window.keep_first > 0,
        }
        return frozenset(name for name, is_on in on.items() if is_on)


class MoEConfig(Config):
    """A mixture of experts: each token goes through `top_k` of `experts` feedforwards, each built from the settings of `ff`."""

    experts: int = Field(gt=0, le=MAX_WIDTH)
    """How many experts there are."""
    top_k: int = Field(gt=0)
    """Experts per token."""
    score: ScoreKind = "softmax"
    """How router logits become scores: a softmax over all experts, or a sigmoid of each."""
    renorm: bool = True
    """The weights of the chosen experts are divided by their sum. With softmax that equals a softmax over the chosen
    experts alone, so top-k before the softmax gives the same."""
    scale: float = Field(default=1.0, gt=0)
    """What the weights are multiplied by after that."""
    router_bias: bool = False
    """A bias of the router's logits."""
    correction: bool = False
    """A number per expert that is added to its score for the choice and not for the weight. It gets no gradient: the
    training loop updates it to balance the load (Wang et al. 2024, arXiv:2408.15664, section 3)."""
    groups: int = Field(default=1, gt=0)
    """Groups that the experts are split into."""
    top_groups: int = Field(default=1, gt=0)
    """Experts are chosen only from this many groups, those with the largest sum of their best scores (DeepSeek-V3 2024,
    arXiv:2412.19437, section 2.1.2)."""
    group_best: int = Field(default=2, gt=0)
    """How many of its best scores rank a group: 2 in DeepSeek-V3, 1 in DeepSeek-V2."""
    weigh: WeighKind = "output"
    """Whether the weight multiplies the expert's output or its input (Llama 4)."""
    shared: int | None = Field(default=None, gt=0, le=MAX_WIDTH)
    """Inner width of a shared expert, which every token goes through. None is none."""
    shared_gate: bool = False
    """The shared expert's output is multiplied by the sigmoid of a learned projection (Qwen 2 MoE)."""


class FeedForwardConfig(Config):
    """The feedforward of one layer."""

    mult: float = Field(default=4.0, gt=0, le=1024)
    """Inner width as a multiple of the model's width."""
    dim: int | None = Field(default=None, gt=0, le=MAX_WIDTH)
    """Inner width. None is int(model dim * mult)."""
    activation: ActivationKind = "gelu"
    """The nonlinearity. xielu has learned slopes (Apertus)."""
    glu: bool = False
    """Gated: value * activation(gate)."""
    bias: bool = True
    """Biases of the projections."""
    gate_bias: bool | None = None
    """Bias of the gated projection. None follows `bias`."""
    swish_beta: float = 1.0
    """silu is x * sigmoid(beta x)."""
    glu_clamp: float | None = Field(default=None, gt=0)
    """Before the activation, gates are clamped to at most this, values to [-glu_clamp, glu_clamp] (gpt-oss)."""
    glu_shift: float = 0.0
    """Added to the values (gpt-oss: 1)."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout of the inner activations."""
    moe: MoEConfig | None = None
    """A mixture of experts, each a feedforward with these settings. None is a single feedforward."""


def _as_list(value: Any) -> Any:
    """One scheme or several -> a list. A Chain becomes its parts, which are checked and built one by one."""
    return None if value is None else _parts(value)


def _parts(value: Any) -> list[Any]:
    if isinstance(value, Chain):
        value = list(value.parts)
    return [part for item in value for part in _parts(item)] if isinstance(value, list | tuple) else [value]


OneScheme = Annotated[SerializeAsAny[SchemeConfig], BeforeValidator(scheme_config)]
Position = Annotated[tuple[OneScheme, ...] | None, BeforeValidator(_as_list)]


class LayerConfig(Config):
    """What may differ between the layers of a stack: one entry of `pattern`."""

    position: Position = Field(default=None, max_length=MAX_PARTS)
    """Position schemes of this layer. None is the stack's."""
    window: int | None = Field(default=None, gt=0)
    """Sliding window: a query sees the last `window` tokens, itself included. None is all."""
    chunk: int | None = Field(default=None, gt=0)
    """Chunked attention: a sequence is cut every `chunk` tokens and a query sees its own chunk (Llama 4)."""
    keep_first: int = Field(default=0, ge=0)
    """Beside a window, the first tokens stay visible, at distances that stop growing (StreamingLLM)."""
    attn: AttentionConfig | None = None
    """Attention of this layer. None is the stack's."""
    ff: FeedForwardConfig | None = None
    """Feedforward of this layer. None is the stack's."""

    @property
    def parts(self) -> tuple[SchemeConfig, ...]:
        """The schemes that were chosen."""
        return self.position or ()

    @property
    def attention_window(self) -> AttentionWindow:
        """Window, chunk and kept tokens as one value."""
        return AttentionWindow(size=self.window, chunk=self.chunk, keep_first=self.keep_first)


class LayersConfig(Config):
    """A stack of layers."""

    kind: LayersKind = "decoder"
    """Causal (decoder), bidirectional (encoder), or cross-attention only (cross_attender)."""
    dim: int = Field(gt=0, le=MAX_WIDTH)
    """Model width."""
    depth: int = Field(gt=0, le=MAX_LAYERS)
    """Number of layers."""
    heads: int = Field(default=8, gt=0, le=MAX_HEADS)
    """Query heads."""
    kv_heads: int | None = Field(default=None, gt=0, le=MAX_HEADS)
    """Key and value heads. None is `heads`."""
    head_dim: int = Field(default=64, gt=0, le=MAX_HEAD_DIM)
    """Width of a head."""
    position: Position = Field(default=None, max_length=MAX_PARTS)
    """A scheme by name, config or instance, or a list of schemes that are combined. None: a wrapper with a trained length
    adds learned absolute embeddings; without one there are no positions."""
    cross_attend: bool = False
    """Cross-attention in every layer, between self-attention and feedforward."""
    context_dim: int | None = Field(default=None, gt=0, le=MAX_WIDTH)
    """Width of the context that cross-attention reads. None is `dim`."""
    window: int | None = Field(default=None, gt=0)
    """As in `LayerConfig`, for every layer."""
    chunk: int | None = Field(default=None, gt=0)
    """As in `LayerConfig`, for every layer."""
    keep_first: int = Field(default=0, ge=0)
    """As in `LayerConfig`, for every layer."""
    pattern: tuple[LayerConfig, ...] = Field(default=(), max_length=MAX_PATTERN)
    """What differs between layers. Entry i applies to layer i; the pattern repeats."""
    backend: BackendName = "auto"
    """The attention backend. auto takes the fastest that supports the layer."""
    flash: bool = False
    """Refuse backends that hold the whole score matrix."""
    norm: NormConfig = NormConfig()
    """The norms of the stack."""
    norm_place: NormPlace = "pre"
    """Where norms sit around attention and feedforward, see `Block`."""
    final_norm: bool | None = None
    """A norm after the last layer. None is yes, except for norm_place="post", whose layers end in a norm."""
    first_norm: bool = True
    """False leaves out the norm before the attention of the first layer, as the embedding ends in one (ModernBERT)."""
    residual_scale: float = Field(default=1.0, gt=0)
    """What the output of each branch is multiplied by (Granite)."""
    layer_scale: float | None = Field(default=None, gt=0)
    """A learned gain per channel of each branch, initialised to this value (LayerScale). None is none."""
    attn: AttentionConfig = AttentionConfig()
    """Attention of every layer."""
    ff: FeedForwardConfig = FeedForwardConfig()
    """Feedforward of every layer."""

    @property
    def value_dim(self) -> int:
        """Width of a head's values in self-attention."""
        mla = self.attn.mla
        return self.head_dim if mla is None else mla.value_dim or self.head_dim - mla.rope_dim

    @property
    def ends_normed(self) -> bool:
        """Whether a norm follows the last block. By default one does, unless norm_place="post", which ends in a norm."""
        return self.norm_place != "post" if self.final_norm is None else self.final_norm

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
        """The distinct layers as written: entry i applies to layer i; they repeat. Position is None where none was chosen."""
        if not self.pattern:
            own = {name: getattr(self, name) for name in LayerConfig.model_fields}
            return (LayerConfig(**own),)
        return tuple(
            k.model_copy(update={n: getattr(self, n) for n in ("position", "attn", "ff") if getattr(k, n) is None})
            for k in self.pattern
        )

    def resolved_layers(self, max_seq_len: int | None) -> tuple[LayerConfig, ...]:
        """The same with the default position filled in: a learned table where a length is known, nothing elsewhere."""
        default: tuple[SchemeConfig, ...] = (NoPE(),) if max_seq_len is None else (Absolute(),)
        return tuple(
            k.model_copy(update={"position": default}) if k.position is None else k for k in self.layer_kinds()
        )

    def with_position(self, position: Any) -> Self:
        """The same layers with another position scheme, in any form that `position=` takes."""
        return self.model_copy(update={"position": LayerConfig(position=position).position})

    def to_flags(self) -> dict[str, Any]:
        """Keyword arguments that make the same layers: `Decoder(**config.to_flags())`."""
        values = {name: getattr(self, name) for name in type(self).model_fields if name != "kind"}
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        return {name: value for name, value in values.items() if value != defaults[name]}
