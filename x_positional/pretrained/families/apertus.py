"""Apertus: Llama with norms of queries and keys, and a plain feedforward whose activation has learned slopes."""

from x_positional.pretrained.config_json.codecs import Fixed, Key
from x_positional.pretrained.families.llama import ACTIVATIONS, LLAMA, qk_norms, rms_norms, sizes
from x_positional.pretrained.tensors.layouts import Layout, Reshaped

PLACE = "model.layers.{i}."


def _scalar(name: str) -> Reshaped:
    """One number, [1] in the model."""
    return Reshaped(f"{PLACE}mlp.act_fn.{name}", ours=lambda s: (1,), theirs=lambda s: ())


SLOPES: dict[str, str | Layout] = {
    **{f"blocks.{{i}}.ff.learned.{name}": f"{PLACE}mlp.act_fn.{name}" for name in ("alpha_p", "alpha_n")},
    **{f"blocks.{{i}}.ff.learned.{name}": _scalar(name) for name in ("beta", "eps")},
}

APERTUS = LLAMA.like(
    "apertus",
    "ApertusForCausalLM",
    codecs=(
        *rms_norms(eps=1e-5),
        *qk_norms("rms", "rms_norm_eps", 1e-5),
        Fixed("layers.ff.glu", False),
        Fixed("layers.ff.bias", False),
        Key("layers.ff.activation", "hidden_act", "xielu", {"xielu": "xielu", **ACTIVATIONS}),
    ),
    names={
        **SLOPES,
        "blocks.{i}.attn_residual.before": PLACE + "attention_layernorm",
        "blocks.{i}.ff_residual.before": PLACE + "feedforward_layernorm",
        "blocks.{i}.attn.q_norm": PLACE + "self_attn.q_norm",
        "blocks.{i}.attn.k_norm": PLACE + "self_attn.k_norm",
        "blocks.{i}.ff.up": PLACE + "mlp.up_proj",
    },
    ignored_keys=frozenset({"layer_types"}),
    defaults=sizes(131072, 4096, 14336, 32, 32, 65536),
)
