"""GPT-2: learned positions, pre-norm with LayerNorm, weights stored as [in, out]."""

from x_positional.pretrained.config_json.causal import CAUSAL
from x_positional.pretrained.config_json.codecs import Codec, Custom, Fields, Fixed, Hf, Key, Only, head_dim, quotient
from x_positional.pretrained.families.llama import ACTIVATIONS, tied
from x_positional.pretrained.families.sizes import OLD_ALIASES
from x_positional.pretrained.family import Family
from x_positional.pretrained.tensors.layouts import Same, Transposed
from x_positional.schemes import Absolute

TABLE = Fixed("layers.position", [Absolute(scale=1.0)])


def layer_norms(key: str, eps: float = 1e-5) -> tuple[Codec, ...]:
    """LayerNorm with gain and bias."""
    return (
        Fixed("layers.norm.kind", "layer"),
        Fixed("layers.norm.bias", True),
        Fixed("layers.norm.unit_offset", False),
        Key("layers.norm.eps", key, eps),
    )


def _scale_fields(hf: Hf) -> Fields:
    """Scores are optionally divided by sqrt(head_dim), and optionally by the layer's number."""
    scale = (hf["n_embd"] // hf["n_head"]) ** -0.5 if hf.get("scale_attn_weights", True) else 1.0
    by_layer = hf.get("scale_attn_by_inverse_layer_idx", False)
    return {"each.attn.scale": [scale / (i + 1 if by_layer else 1) for i in range(hf["n_layer"])]}


def _scale_keys(fields: Fields) -> dict[str, bool]:
    scales = fields["each.attn.scale"]
    return {"scale_attn_weights": scales[0] != 1.0, "scale_attn_by_inverse_layer_idx": len(set(scales)) > 1}


GPT2 = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    prefix="transformer.",
    codecs=(
        Key("num_tokens", "vocab_size", 50257),
        Key("max_seq_len", "n_positions", 1024),
        Key("layers.dim", "n_embd", 768),
        Key("layers.depth", "n_layer", 12),
        Key("layers.heads", "n_head", 12),
        head_dim(quotient("n_embd", "n_head")),
        Key("layers.ff.dim", "n_inner", lambda hf: 4 * hf["n_embd"]),
        Key("layers.ff.activation", "activation_function", "gelu_new", ACTIVATIONS),
        Custom(
            ("each.attn.scale",), ("scale_attn_weights", "scale_attn_by_inverse_layer_idx"), _scale_fields, _scale_keys
        ),
        *tied(True),
        *layer_norms("layer_norm_epsilon"),
        TABLE,
        CAUSAL,
        Fixed("layers.attn.bias", True),
        Only("add_cross_attention", (False,), "GPT-2 with cross-attention is unsupported."),
    ),
    names={
        "token_emb": "transformer.wte",
        "schemes.0": "transformer.wpe",
        "blocks.{i}.attn_residual.before": "transformer.h.{i}.ln_1",
        "blocks.{i}.attn.to_qkv": Transposed(Same("transformer.h.{i}.attn.c_attn")),
        "blocks.{i}.attn.to_out": Transposed(Same("transformer.h.{i}.attn.c_proj")),
        "blocks.{i}.ff_residual.before": "transformer.h.{i}.ln_2",
        "blocks.{i}.ff.up": Transposed(Same("transformer.h.{i}.mlp.c_fc")),
        "blocks.{i}.ff.down": Transposed(Same("transformer.h.{i}.mlp.c_proj")),
        "final_norm": "transformer.ln_f",
        "to_logits": "lm_head",
    },
    ignored_tensors=(r"\.attn\.(masked_)?bias$",),
    aliases=OLD_ALIASES,
)
