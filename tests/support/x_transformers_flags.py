"""Keywords of x-transformers, part by part and at random, and models of both libraries that are built from them."""

import random
from typing import Any

import torch
from torch import Tensor

SIZES = {"num_tokens": 37, "max_seq_len": 24}

SHAPE = {"dim": 40, "depth": 2, "heads": 6, "attn_dim_head": 12}

TOKENS, CONTEXT, BATCH = 17, 11, 3

OFF = {"use_abs_pos_emb": False}
"""x-transformers keeps its absolute table beside ALiBi, CoPE, dynamic bias and forget gates; both are told to drop it."""

POSITIONS = {
    "rotary": {"rotary_pos_emb": True},
    "rotary, narrow": {"rotary_pos_emb": True, "rotary_emb_dim": 4},
    "rotary, whole head": {"rotary_pos_emb": True, "rotary_emb_dim": 12},
    "rotary, last heads": {"rotary_pos_emb": True, "rotate_num_heads": 4},
    "rotary, interpolated": {"rotary_pos_emb": True, "rotary_interpolation_factor": 3.0},
    "rotary, NTK": {"rotary_pos_emb": True, "rotary_base_rescale_factor": 4.0},
    "rotary beside absolute": {"rotary_pos_emb": True, "disable_abs_pos_emb": False},
    "xpos": {"rotary_xpos": True},
    "xpos, fast": {"rotary_xpos": True, "rotary_xpos_scale_base": 16, "rotary_emb_dim": 12},
    "polar": {"polar_pos_emb": True},
    "alibi": {"alibi_pos_bias": True, **OFF},
    "alibi beside absolute": {"alibi_pos_bias": True, "use_abs_pos_emb": True},
    "alibi, some heads": {"alibi_pos_bias": True, "alibi_num_heads": 3, **OFF},
    "alibi, slopes": {"alibi_pos_bias": True, "rel_pos_kwargs": {"slopes": [0.9, 0.5, 0.3, 0.2, 0.1, 0.05]}, **OFF},
    "t5": {"rel_pos_bias": True},
    "t5, few buckets": {"rel_pos_bias": True, "rel_pos_num_buckets": 8, "rel_pos_max_distance": 12},
    "dynamic": {"dynamic_pos_bias": True, **OFF},
    "dynamic, log": {"dynamic_pos_bias": True, "dynamic_pos_bias_log_distance": True, **OFF},
    "dynamic, norm": {"dynamic_pos_bias": True, "dynamic_pos_bias_norm": True, **OFF},
    "dynamic, shallow": {"dynamic_pos_bias": True, "dynamic_pos_bias_mlp_depth": 1, **OFF},
    "dynamic, deep": {
        "dynamic_pos_bias": True,
        "dynamic_pos_bias_log_distance": True,
        "dynamic_pos_bias_norm": True,
        "dynamic_pos_bias_mlp_depth": 3,
        **OFF,
    },
    "cope": {"attn_use_cope": True, "attn_cope_max_pos": 5, **OFF},
    "cope beside alibi": {"attn_use_cope": True, "alibi_pos_bias": True, **OFF},
    "forgetting": {"attn_data_dependent_alibi": True, **OFF},
    "forgetting beside rotary": {
        "attn_data_dependent_alibi": True,
        "attn_data_dependent_alibi_kwargs": {"bias_init": 1.0},
        "rotary_pos_emb": True,
    },
    "absolute": {},
    "absolute, unit length": {"l2norm_embed": True},
    "scaled sinusoidal": {"scaled_sinu_pos_emb": True},
    "scaled sinusoidal, narrow": {"scaled_sinu_pos_emb": True, "emb_dim": 20},
}

CAUSAL_ONLY = ("rotary_xpos", "attn_use_cope", "attn_data_dependent_alibi")

PARTS = {
    "ff_glu": {"ff_glu": True},
    "ff_glu, no bias": {"ff_glu": True, "ff_no_bias": True},
    "ff_swish": {"ff_swish": True, "ff_glu": True, "ff_mult": 2.5},
    "relu squared": {"ff_relu_squared": True},
    "no bias": {"ff_no_bias": True},
    "rmsnorm": {"use_rmsnorm": True},
    "rmsnorm, no offset": {"use_rmsnorm": True, "norm_add_unit_offset": False},
    "scalenorm": {"use_scalenorm": True},
    "simple rmsnorm": {"use_simple_rmsnorm": True},
    "layernorm, no offset": {"norm_add_unit_offset": False},
    "post norm": {"pre_norm": False},
    "sandwich norm": {"sandwich_norm": True},
    "no final norm": {"pre_norm_has_final_norm": False},
    "qk_norm": {"attn_qk_norm": True},
    "qk_norm, scale": {"attn_qk_norm": True, "attn_qk_norm_scale": 3.0},
    "qk_rmsnorm": {"attn_qk_rmsnorm": True},
    "qk_rmsnorm of small queries": {"attn_qk_rmsnorm": True, "pre_norm": False},
    "softclamp": {"attn_softclamp_logits": True, "attn_logit_softclamp_value": 0.5},
    "sinks": {"attn_head_learned_sink": True},
    "past": {"attn_max_attend_past": 4},
    "grouped": {"attn_kv_heads": 2},
    "grouped, per head": {"attn_kv_heads": 3, "attn_head_learned_sink": True, "attn_qk_rmsnorm": True},
    "one key head": {"attn_one_kv_head": True},
    "tied": {"tie_embedding": True},
    "tied, scale": {"tie_embedding": True, "tie_embedding_scale": 0.7},
    "narrow embedding": {"emb_dim": 20},
    "unit embedding": {"l2norm_embed": True},
    "normed embedding": {"post_emb_norm": True},
    "few logits": {"logits_dim": 5},
}

CROSS = {
    "cross_attend": {},
    "cross, rotary": {"rotary_pos_emb": True},
    "cross, polar": {"polar_pos_emb": True},
    "cross, alibi": {"alibi_pos_bias": True, **OFF},
    "cross, t5": {"rel_pos_bias": True},
    "cross, grouped": {
        "attn_kv_heads": 3,
        "rel_pos_bias": True,
        "attn_qk_rmsnorm": True,
        "attn_head_learned_sink": True,
    },
    "cross, softclamp": {"attn_softclamp_logits": True, "attn_logit_softclamp_value": 0.5},
    "cross, post norm": {"pre_norm": False, "use_rmsnorm": True},
    "cross, sandwich norm": {"sandwich_norm": True, "use_scalenorm": True},
    "cross, qk_norm": {"attn_qk_norm": True, "ff_glu": True},
}

WRAPPER = {
    "use_abs_pos_emb",
    "scaled_sinu_pos_emb",
    "emb_dim",
    "l2norm_embed",
    "post_emb_norm",
    "tie_embedding",
    "tie_embedding_scale",
    "logits_dim",
}


def build(library: Any, kind: str, flags: dict[str, Any]) -> Any:
    wrapper = {name: value for name, value in flags.items() if name in WRAPPER}
    layers = {name: value for name, value in flags.items() if name not in WRAPPER}
    stack = getattr(library, kind)(**SHAPE, verbose=False, **layers)
    return library.TransformerWrapper(**SIZES, attn_layers=stack, **wrapper).eval()


def form(kind: str, flags: dict[str, Any]) -> dict[str, Any]:
    """The form of a model, as `from_x_transformers` takes it."""
    wrapper = {name: value for name, value in flags.items() if name in WRAPPER}
    layers = {name: value for name, value in flags.items() if name not in WRAPPER}
    return {"TransformerWrapper": {**SIZES, **wrapper, "attn_layers": {kind: {**SHAPE, **layers}}}}


def inputs(crosses: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(7)
    tokens = torch.randint(0, SIZES["num_tokens"], (BATCH, TOKENS), generator=generator)
    if not crosses:
        return tokens, {}
    context = torch.randn(BATCH, CONTEXT, SHAPE["dim"], generator=generator)
    return tokens, {"context": context, "context_mask": keep(CONTEXT, 11, 4, 7)}


def keep(length: int, *lengths: int) -> Tensor:
    """[B length] bool, True for the first so many tokens of each row."""
    return torch.arange(length) < torch.tensor(lengths)[:, None]


def random_flags(seed: int) -> tuple[str, dict[str, Any]]:
    """A random choice from each group of independent flags."""
    draw = random.Random(seed)
    kind = draw.choice(["Decoder", "Decoder", "Encoder"])
    groups = [
        [{}, {"ff_glu": True}, {"ff_swish": True, "ff_glu": True}, {"ff_relu_squared": True}, {"ff_no_bias": True}],
        [{}, {"use_rmsnorm": True}, {"use_scalenorm": True}, {"use_simple_rmsnorm": True}],
        [{}, {"pre_norm": False}, {"sandwich_norm": True}, {"pre_norm_has_final_norm": False}],
        [{}, {"attn_qk_norm": True, "attn_qk_norm_scale": 3.0}, {"attn_qk_rmsnorm": True}],
        [{}, {"attn_softclamp_logits": True, "attn_logit_softclamp_value": 0.7}],
        [{}, {"attn_head_learned_sink": True}],
        [{}, {"attn_kv_heads": 2}, {"attn_kv_heads": 3}, {"attn_one_kv_head": True}],
        [{}, {"attn_max_attend_past": 5}] if kind == "Decoder" else [{}],
        [{}, {"emb_dim": 20}, {"tie_embedding": True}],
        [{}, {"post_emb_norm": True}],
    ]
    flags = {name: value for group in groups for name, value in draw.choice(group).items()}
    grouped = "attn_kv_heads" in flags or "attn_one_kv_head" in flags
    unlike = {"alibi_num_heads", "polar_pos_emb", "rotate_num_heads"} if grouped else set()
    unlike |= set(CAUSAL_ONLY) if kind == "Encoder" else set()
    fit = [position for position in POSITIONS.values() if not unlike & set(position)]
    return kind, flags | {name: value for name, value in draw.choice(fit).items() if name != "emb_dim"}
