"""OLMo: norms without gains, clipped projections; OLMo 2: post-branch norms, norms over all heads; OLMo 3: windows."""

from x_positional.pretrained.config_json.codecs import Fixed, Nullable
from x_positional.pretrained.config_json.layer_types import LayerTypesCodec, RopeCodec, full_every
from x_positional.pretrained.families.llama import LLAMA, qk_norms, rms_norms, sizes
from x_positional.pretrained.tensors.layouts import head_gains

OLMO = LLAMA.like(
    "olmo",
    "OlmoForCausalLM",
    codecs=(
        Fixed("layers.norm.kind", "layer"),
        Fixed("layers.norm.gain", False),
        Fixed("layers.norm.unit_offset", True),
        Fixed("layers.norm.eps", 1e-5),
        Fixed("layers.ff.bias", False),
        Nullable("layers.attn.clip", "clip_qkv"),
    ),
    names={"blocks.{i}.attn_residual.before": None, "blocks.{i}.ff_residual.before": None, "final_norm": None},
    defaults=sizes(50304, 4096, 11008, 32, 32, 2048),
)

OLMO2 = LLAMA.like(
    "olmo2",
    "Olmo2ForCausalLM",
    codecs=(
        *rms_norms(eps=1e-5),
        *qk_norms("rms_whole", "rms_norm_eps", 1e-5),
        Fixed("layers.norm_place", "after"),
        Fixed("layers.ff.bias", False),
    ),
    names={
        "blocks.{i}.attn_residual.before": None,
        "blocks.{i}.attn_residual.after": "model.layers.{i}.post_attention_layernorm",
        "blocks.{i}.ff_residual.before": None,
        "blocks.{i}.ff_residual.after": "model.layers.{i}.post_feedforward_layernorm",
        "blocks.{i}.attn.q_norm": head_gains("model.layers.{i}.self_attn.q_norm", lambda s: s.heads, flat=True),
        "blocks.{i}.attn.k_norm": head_gains("model.layers.{i}.self_attn.k_norm", lambda s: s.kv_heads, flat=True),
    },
    defaults=sizes(50304, 4096, 11008, 32, 32, 2048),
)

OLMO3 = OLMO2.like(
    "olmo3",
    "Olmo3ForCausalLM",
    codecs=(LayerTypesCodec(default_types=full_every(4), window_needed=True), RopeCodec(default_types=full_every(4))),
    defaults={"sliding_window": 4096},
)
