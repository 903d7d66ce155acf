"""Hunyuan: Llama with norms of queries and keys after rotation, and a theta scaled by alpha."""

from x_positional.pretrained.config_json.codecs import Fixed
from x_positional.pretrained.config_json.layer_types import ALPHA, RopeCodec
from x_positional.pretrained.families.llama import LLAMA, qk_norms, rms_norms, sizes

HUNYUAN_V1_DENSE = LLAMA.like(
    "hunyuan_v1_dense",
    "HunYuanDenseV1ForCausalLM",
    codecs=(
        *rms_norms(eps=1e-5),
        RopeCodec(reads=(ALPHA,)),
        *qk_norms("rms", "rms_norm_eps", 1e-5),
        Fixed("layers.attn.qk_norm_after", True),
        Fixed("layers.ff.bias", False),
    ),
    names={
        "blocks.{i}.attn.q_norm": "model.layers.{i}.self_attn.query_layernorm",
        "blocks.{i}.attn.k_norm": "model.layers.{i}.self_attn.key_layernorm",
    },
    ignored_keys=frozenset({"eod_token_id"}),
    defaults=sizes(290943, 4096, 11008, 32, 32, 2048),
)
