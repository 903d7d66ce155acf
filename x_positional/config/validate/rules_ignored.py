"""Settings that have no effect beside others: each was meant to have one, so it is refused, never dropped silently."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel

from x_positional.config.layers import LayersConfig
from x_positional.config.models import ModelConfig
from x_positional.config.validate.case import Case
from x_positional.config.validate.rule import rule
from x_positional.config.vision import VisionConfig


class Ignored(NamedTuple):
    """One setting, and when it has no effect."""

    field: str
    """A dotted path in the config. At its default it is not checked."""
    when: Callable[[Any], bool]
    """Of the config: whether the setting has no effect."""
    why: str
    """The reason, with fields of the config in braces."""
    advice: str = "Leave it out."
    """The way out."""


def _crosses(config: LayersConfig) -> bool:
    return config.cross_attend or config.kind == "cross_attender"


def _has_no_gain(config: LayersConfig) -> bool:
    return config.norm.kind in ("simple_rms", "none") or not config.norm.gain


def _only_self_attends(config: LayersConfig) -> bool:
    return config.attn.mla is not None and not _crosses(config)


def _crosses_alone(config: LayersConfig) -> bool:
    return config.kind == "cross_attender"


def _weighs_one(config: LayersConfig) -> bool:
    return config.ff.moe is not None and config.ff.moe.top_k == 1 and config.ff.moe.renorm


_ONE_WEIGHT = (
    "moe.top_k=1 with moe.renorm=True makes the weight of the only expert 1",
    "Use renorm=False, or leave it out.",
)
_NO_SELF_ATTENTION = "it applies to self-attention, and a cross_attender has none"
_NO_QK_NORM = ("there is no norm of queries and keys", "Set attn.qk_norm, or leave it out.")
_NO_GLU = ("ff.glu is off, so there are no gates", "Set ff.glu, or leave it out.")
_NO_PROJECTION = (
    "with emb_dim={config.emb_dim} and dim={config.layers.dim} there is no projection between embeddings and layers",
    "Set emb_dim, or leave it out.",
)
_NO_TABLE = ("there is no learned table", "Put 'absolute' into position, or leave it out.")

OF_LAYERS = (
    Ignored("window", _crosses_alone, _NO_SELF_ATTENTION),
    Ignored("chunk", _crosses_alone, _NO_SELF_ATTENTION),
    Ignored("keep_first", _crosses_alone, _NO_SELF_ATTENTION),
    Ignored("attn.mla", _crosses_alone, _NO_SELF_ATTENTION),
    Ignored(
        "window",
        lambda config: config.chunk is not None and config.window >= config.chunk,
        "chunk={config.chunk} is not longer, so it decides alone",
        "Leave window out, or make it shorter than chunk.",
    ),
    Ignored(
        "norm_place",
        lambda config: _crosses_alone(config) and config.norm_place == "parallel",
        "it runs self-attention and feedforward in parallel, and a cross_attender has no self-attention",
        "Use 'pre', 'post' or 'sandwich'.",
    ),
    Ignored(
        "context_dim",
        lambda config: not _crosses(config),
        "there is no cross-attention",
        "Set cross_attend, or leave it out.",
    ),
    Ignored(
        "norm.bias",
        lambda config: config.norm.kind != "layer",
        "norm.kind={config.norm.kind!r} has no bias",
        "Use norm.kind='layer', or leave it out.",
    ),
    Ignored("norm.unit_offset", _has_no_gain, "norm.kind={config.norm.kind!r}, gain={config.norm.gain} stores no gain"),
    Ignored("norm.eps", lambda config: config.norm.kind == "none", "norm.kind='none' computes nothing"),
    Ignored("final_norm", lambda config: config.norm.kind == "none", "norm.kind='none' is no norm"),
    Ignored(
        "norm_place",
        lambda config: config.norm.kind == "none" and config.norm_place != "parallel",
        "norm.kind='none' leaves no norm to place",
    ),
    Ignored(
        "first_norm",
        lambda config: config.norm_place in ("post", "after") or _crosses_alone(config),
        "with kind={config.kind!r}, norm_place={config.norm_place!r} there is no norm before the first self-attention",
    ),
    Ignored(
        "attn.qk_norm_scale",
        lambda config: config.attn.qk_norm != "l2",
        "it scales the scores of attn.qk_norm='l2', and qk_norm is {config.attn.qk_norm!r}",
        "Use attn.scale, or qk_norm='l2'.",
    ),
    Ignored(
        "attn.scale",
        lambda config: config.attn.qk_norm == "l2",
        "attn.qk_norm='l2' scales scores by qk_norm_scale={config.attn.qk_norm_scale:g}",
        "Set qk_norm_scale instead.",
    ),
    *(
        Ignored(f"attn.{name}", lambda config: config.attn.qk_norm is None, *_NO_QK_NORM)
        for name in ("qk_norm_eps", "qk_norm_bias", "qk_norm_unit_offset", "qk_norm_after")
    ),
    *(
        Ignored(
            f"attn.{name}",
            lambda config: config.attn.qk_norm in ("rms_plain", "l2"),
            "attn.qk_norm={config.attn.qk_norm!r} has no gain and no bias",
        )
        for name in ("qk_norm_bias", "qk_norm_unit_offset")
    ),
    Ignored(
        "kv_heads",
        lambda config: _only_self_attends(config) and config.kv_heads != config.heads,
        "attn.mla makes a key for every head, and there is no cross-attention",
    ),
    Ignored("attn.qk_norm", _only_self_attends, "attn.mla has its own norms, and there is no cross-attention"),
    Ignored("attn.clip", _only_self_attends, "attn.mla clips nothing, and there is no cross-attention"),
    Ignored("ff.gate_bias", lambda config: not config.ff.glu, *_NO_GLU),
    Ignored("ff.glu_clamp", lambda config: not config.ff.glu, *_NO_GLU),
    Ignored("ff.glu_shift", lambda config: not config.ff.glu, *_NO_GLU),
    Ignored(
        "ff.mult",
        lambda config: config.ff.dim is not None,
        "ff.dim={config.ff.dim} sets the inner width",
        "Set one of them.",
    ),
    Ignored(
        "ff.swish_beta",
        lambda config: config.ff.activation != "silu",
        "it is a setting of silu, and ff.activation={config.ff.activation!r}",
    ),
    Ignored(
        "ff.moe.shared_gate",
        lambda config: config.ff.moe.shared is None,
        "there is no shared expert",
        "Set moe.shared, its inner width, or leave it out.",
    ),
    Ignored(
        "ff.moe.top_groups",
        lambda config: config.ff.moe.groups == 1,
        "the experts are in one group",
        "Set moe.groups, or leave it out.",
    ),
    Ignored(
        "ff.moe.group_best",
        lambda config: config.ff.moe.groups == 1,
        "the experts are in one group",
        "Set moe.groups, or leave it out.",
    ),
    Ignored(
        "ff.moe.groups",
        lambda config: config.ff.moe.groups == config.ff.moe.top_groups,
        "moe.top_groups={config.ff.moe.top_groups} takes experts from all of them",
        "Leave both out, or use fewer top_groups.",
    ),
    Ignored(
        "ff.moe.correction",
        lambda config: config.ff.moe.top_k == config.ff.moe.experts,
        "it changes which experts are chosen, and all {config.ff.moe.experts} are",
    ),
    Ignored(
        "ff.moe.weigh",
        lambda config: _weighs_one(config) and config.ff.moe.scale == 1,
        *_ONE_WEIGHT,
    ),
    Ignored(
        "ff.moe.score",
        lambda config: _weighs_one(config) and config.ff.moe.groups == 1 and not config.ff.moe.correction,
        *_ONE_WEIGHT,
    ),
)

OF_LANGUAGE_MODELS = (
    Ignored("emb_proj_bias", lambda config: not config.projected, *_NO_PROJECTION),
    Ignored("emb_proj_first", lambda config: not config.projected, *_NO_PROJECTION),
    Ignored("logits_proj", lambda config: not config.projected, *_NO_PROJECTION),
    Ignored(
        "tie_embedding_scale",
        lambda config: not config.tie_embedding,
        "logits are not tied to the embeddings",
        "Set tie_embedding, or leave it out.",
    ),
)

_NO_REGISTERS = ("there are no registers", "Set num_register_tokens, or leave it out.")
_NO_HEAD = ("there is no head", "Set num_classes, or leave it out.")

OF_IMAGE_MODELS = (
    Ignored("interpolation", lambda config: not config.tables, *_NO_TABLE),
    Ignored("antialias", lambda config: not config.tables, *_NO_TABLE),
    Ignored("cls_position", lambda config: config.has_cls and not config.tables, *_NO_TABLE),
    Ignored(
        "cls_position",
        lambda config: not config.has_cls,
        "pool={config.pool!r} has no cls token",
        "Use pool='cls' or 'cls_mean', or leave it out.",
    ),
    Ignored("register_position", lambda config: config.num_register_tokens and not config.tables, *_NO_TABLE),
    Ignored("register_position", lambda config: not config.num_register_tokens, *_NO_REGISTERS),
    Ignored("register_heads", lambda config: config.num_classes is None, *_NO_HEAD),
    Ignored("register_heads", lambda config: config.num_classes and not config.num_register_tokens, *_NO_REGISTERS),
    Ignored("logits_bias", lambda config: config.num_classes is None, *_NO_HEAD),
)


def _ignored(table: Sequence[Ignored], config: BaseModel) -> Iterator[str]:
    for row in table:
        *sections, name = row.field.split(".")
        section: Any = config
        for step in sections:
            section = None if section is None else getattr(section, step)
        if (
            section is None
            or getattr(section, name) == type(section).model_fields[name].default
            or not row.when(config)
        ):
            continue
        value = getattr(section, name)
        shown = row.field if isinstance(value, BaseModel) else f"{row.field}={value!r}"
        yield f"{shown} is ignored: {row.why.format(config=config)}. {row.advice}"


@rule()
def no_setting_of_a_layer_is_ignored(case: Case) -> Iterator[str]:
    """Every setting of a layer has an effect."""
    return _ignored(OF_LAYERS, case.layers)


@rule(models=ModelConfig)
def no_setting_of_a_model_is_ignored(case: Case, model: ModelConfig) -> Iterator[str]:
    """Every setting of embeddings and head has an effect."""
    return _ignored(OF_LANGUAGE_MODELS, model)


@rule(models=VisionConfig)
def no_setting_of_an_image_model_is_ignored(case: Case, image: VisionConfig) -> Iterator[str]:
    """Every setting of an image model has an effect."""
    return _ignored(OF_IMAGE_MODELS, image)
