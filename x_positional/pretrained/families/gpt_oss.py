"""gpt-oss: sinks, windows in every other layer, experts with biases, clamped gates and weights that are a softmax of the chosen."""

from x_positional.pretrained.families.llama import LLAMA, rms_norms
from x_positional.pretrained.families.mixtral import LAYER, TRAINING, windows_by_type
from x_positional.pretrained.fields import Fixed, Hf, Key
from x_positional.pretrained.layouts_experts import Fused, gates_between
from x_positional.pretrained.mixture import Mixture, Named


def _types(hf: Hf) -> list[str]:
    return ["full_attention" if i % 2 else "sliding_attention" for i in range(hf["num_hidden_layers"])]


GPT_OSS = LLAMA.like(
    "gpt_oss", "GptOssForCausalLM",
    fields=(
        Mixture(
            numbers={"experts": Named("num_local_experts", 128, "num_experts"), "top_k": Named("num_experts_per_tok", 4)},
            fixed={"router_bias": True}, width=Named("intermediate_size", 2880),
        ),
        *rms_norms(eps=1e-5), windows_by_type(_types, 128, used=False),
        Key("max_seq_len", "max_position_embeddings", 131072), Key("layers.kv_heads", "num_key_value_heads", 8),
        Key("layers.head_dim", "head_dim", 64), Key("layers.attn.bias", "attention_bias", True),
        Fixed("layers.attn.sinks", True), Fixed("layers.ff.bias", True), Fixed("layers.ff.activation", "silu"),
        Key("layers.ff.swish_beta", "swiglu_alpha", 1.702), Key("layers.ff.glu_clamp", "swiglu_limit", 7.0),
        Fixed("layers.ff.glu_shift", 1.0),
    ),
    names={
        "blocks.{i}.attn.sinks": LAYER + "self_attn.sinks",
        "blocks.{i}.ff.experts.up": Fused(LAYER + "mlp.experts.gate_up_proj", gates_between),
        "blocks.{i}.ff.experts.up_bias": Fused(LAYER + "mlp.experts.gate_up_proj_bias", gates_between),
        "blocks.{i}.ff.experts.down": Fused(LAYER + "mlp.experts.down_proj"),
        "blocks.{i}.ff.experts.down_bias": Fused(LAYER + "mlp.experts.down_proj_bias"),
        "blocks.{i}.ff.router": LAYER + "mlp.router",
    },
    harmless=TRAINING | {"hidden_act", "initial_context_length", "experts_per_token"},
)  # fmt: skip
