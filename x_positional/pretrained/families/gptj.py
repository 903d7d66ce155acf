"""GPT-J and CodeGen: parallel attention and feedforward with one norm, interleaved RoPE, a head with a bias."""

from typing import Any

from x_positional.pretrained.config_json.causal import CAUSAL
from x_positional.pretrained.config_json.codecs import Custom, Fields, Fixed, Hf
from x_positional.pretrained.families.gpt2 import layer_norms
from x_positional.pretrained.families.llama import tied
from x_positional.pretrained.families.sizes import OLD_ALIASES, old_sizes
from x_positional.pretrained.family import Family
from x_positional.pretrained.tensors.layouts import qkv, sharded_qkv
from x_positional.schemes import Rope


def _rope_fields(hf: Hf) -> Fields:
    return {"layers.position": [Rope(dim=hf.get("rotary_dim", 64), interleaved=True)]}


def _rope_keys(fields: Fields) -> dict[str, Any]:
    match fields.get("layers.position"):
        case (Rope(dim=dim),):
            return {"rotary_dim": dim}
        case _:
            return {}


GPTJ = Family(
    model_type="gptj",
    architecture="GPTJForCausalLM",
    prefix="transformer.",
    codecs=(
        *old_sizes({"vocab_size": 50400, "n_positions": 2048, "n_embd": 4096, "n_layer": 28, "n_head": 16}),
        *tied(False),
        *layer_norms("layer_norm_epsilon"),
        Custom(("layers.position",), ("rotary_dim",), _rope_fields, _rope_keys),
        CAUSAL,
        Fixed("layers.norm_place", "parallel"),
        Fixed("logits_bias", True),
    ),
    names={
        "token_emb": "transformer.wte",
        "blocks.{i}.attn_residual.before": "transformer.h.{i}.ln_1",
        "blocks.{i}.attn.to_qkv": qkv(*(f"transformer.h.{{i}}.attn.{p}_proj" for p in "qkv")),
        "blocks.{i}.attn.to_out": "transformer.h.{i}.attn.out_proj",
        "blocks.{i}.ff.up": "transformer.h.{i}.mlp.fc_in",
        "blocks.{i}.ff.down": "transformer.h.{i}.mlp.fc_out",
        "final_norm": "transformer.ln_f",
        "to_logits": "lm_head",
        "tied_bias": "lm_head.bias",
    },
    ignored_tensors=(r"\.attn\.(masked_)?bias$", r"\.attn\.embed_positions$"),
    aliases=OLD_ALIASES,
    ignored_keys=frozenset(("n_ctx", "rotary", "scale_attn_weights")),
)

CODEGEN = GPTJ.like(
    "codegen",
    "CodeGenForCausalLM",
    names={"blocks.{i}.attn.to_qkv": sharded_qkv("transformer.h.{i}.attn.qkv_proj")},
    ignored_tensors=(*GPTJ.ignored_tensors, r"\.attn\.causal_mask$"),
)
