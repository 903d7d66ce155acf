"""Published forms of config.json, shrunk: equal to transformers on the same folder, or refused by name."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from tests.support.draws import draws
from tests.support.published.compare import Published, both, ids, left_padded, perturb, quietly, their_logits
from tests.support.published.config_keys import CASES, ONE_EACH, changed, load_theirs
from tests.support.published.decoders_llama import LLAMA
from tests.support.rounding import assert_same
from x_positional import Decoder, PretrainedError, TransformerWrapper, from_pretrained
from x_positional.models.language import TokenEncoder

WIDTHS = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 67,
}
STEP = {
    "factor": 16.0,
    "high_freq_factor": 1.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 32,
    "rope_type": "llama3",
}
OLD_BERT = {
    "activation_function": "swiglu",
    "attn_pdrop": 0.0,
    "causal": False,
    "dense_seq_output": True,
    "fused_bias_fc": True,
    "fused_dropout_add_ln": True,
    "layer_norm_epsilon": 1e-12,
    "max_trained_positions": 2048,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "n_embd": 64,
    "n_head": 4,
    "n_inner": 256,
    "n_layer": 3,
    "n_positions": 384,
    "pad_vocab_size_multiple": 64,
    "parallel_block": False,
    "parallel_block_tied_norm": False,
    "prenorm": False,
    "qkv_proj_bias": False,
    "rotary_emb_base": 1000,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "rotary_scaling_factor": None,
    "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True,
    "use_flash_attn": True,
    "use_rms_norm": False,
    "use_xentropy": True,
    "summary_type": "cls_index",
}
PUBLISHED: dict[str, tuple[str, Mapping[str, Any]]] = {
    "llama3 with equal factors": ("LlamaForCausalLM", {**WIDTHS, "rope_theta": 5e5, "rope_scaling": STEP}),
    "llama4 with equal factors": (
        "Llama4ForCausalLM",
        {
            **WIDTHS,
            "num_hidden_layers": 5,
            "head_dim": 16,
            "attention_chunk_size": 16,
            "interleave_moe_layer_step": 1,
            "intermediate_size_mlp": 96,
            "num_experts_per_tok": 1,
            "num_local_experts": 4,
            "floor_scale": 16,
            "rope_theta": 5e5,
            "rope_scaling": STEP,
        },
    ),
    "yarn with equal betas": (
        "LlamaForCausalLM",
        {
            **WIDTHS,
            "max_position_embeddings": 512,
            "rope_theta": 5e5,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 32.0,
                "beta_fast": 1.0,
                "beta_slow": 1.0,
                "original_max_position_embeddings": 32,
            },
        },
    ),
    "yarn, finetuned": (
        "LlamaForCausalLM",
        {
            **WIDTHS,
            "max_position_embeddings": 512,
            "pretraining_tp": 1,
            "rope_scaling": {
                "factor": 16.0,
                "finetuned": True,
                "original_max_position_embeddings": 32,
                "type": "yarn",
            },
        },
    ),
    "stablelm with a scaling factor of 1": (
        "StableLmForCausalLM",
        {
            **WIDTHS,
            "qk_layernorm": True,
            "use_parallel_residual": True,
            "partial_rotary_factor": 0.25,
            "rotary_scaling_factor": 1.0,
            "rope_pct": 0.25,
        },
    ),
    "nomic_bert with keys of its first code": (
        "NomicBertModel",
        {**OLD_BERT, **{key: value for key, value in WIDTHS.items() if key != "num_key_value_heads"}}
        | {"num_hidden_layers": 3, "intermediate_size": 256, "hidden_act": "silu", "type_vocab_size": 2},
    ),
    "seed_oss with the name of no scaling": (
        "SeedOssForCausalLM",
        {
            **WIDTHS,
            "attention_bias": True,
            "attention_out_bias": False,
            "attention_dropout": 0.1,
            "head_dim": 16,
            "mlp_bias": False,
            "residual_dropout": 0.1,
            "rope_scaling": {"rope_type": "default"},
            "rope_theta": 1e7,
        },
    ),
    "exaone4 with a pattern in letters": (
        "Exaone4ForCausalLM",
        {
            **WIDTHS,
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
            "rope_scaling": {**STEP, "high_freq_factor": 4.0},
            "rope_theta": 1e6,
            "sliding_window": 16,
            "sliding_window_pattern": "LLLG",
        },
    ),
    "exaone4 without windows": (
        "Exaone4ForCausalLM",
        {
            **WIDTHS,
            "layer_types": ["full_attention"] * 2,
            "rope_theta": 1e6,
            "sliding_window": None,
            "sliding_window_pattern": None,
            "tie_word_embeddings": True,
        },
    ),
    "ernie4_5": (
        "Ernie4_5ForCausalLM",
        {
            **WIDTHS,
            "head_dim": 24,
            "rms_norm_eps": 1e-5,
            "rope_theta": 5e5,
            "tie_word_embeddings": True,
            "use_bias": False,
        },
    ),
    "glm4_moe with a fraction at the top": (
        "Glm4MoeForCausalLM",
        {
            **WIDTHS,
            "attention_bias": True,
            "first_k_dense_replace": 1,
            "head_dim": 24,
            "moe_intermediate_size": 24,
            "n_group": 1,
            "n_routed_experts": 8,
            "n_shared_experts": 1,
            "norm_topk_prob": True,
            "num_experts_per_tok": 3,
            "num_nextn_predict_layers": 1,
            "partial_rotary_factor": 0.5,
            "rope_scaling": None,
            "rope_theta": 1e6,
            "routed_scaling_factor": 1.0,
            "topk_group": 1,
            "use_qk_norm": False,
        },
    ),
    "deepseek_v2 in groups": (
        "DeepseekV2ForCausalLM",
        {
            **WIDTHS,
            "num_key_value_heads": 4,
            "aux_loss_alpha": 0.001,
            "ep_size": 1,
            "first_k_dense_replace": 1,
            "kv_lora_rank": 16,
            "max_position_embeddings": 1280,
            "moe_intermediate_size": 24,
            "moe_layer_freq": 1,
            "n_group": 4,
            "n_routed_experts": 16,
            "n_shared_experts": 2,
            "norm_topk_prob": False,
            "num_experts_per_tok": 6,
            "q_lora_rank": 24,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 8,
            "rope_scaling": {
                "beta_fast": 32,
                "beta_slow": 1,
                "factor": 40,
                "mscale": 0.707,
                "mscale_all_dim": 0.707,
                "original_max_position_embeddings": 32,
                "type": "yarn",
            },
            "rope_theta": 10000,
            "routed_scaling_factor": 16.0,
            "scoring_func": "softmax",
            "seq_aux": True,
            "topk_group": 2,
            "topk_method": "group_limited_greedy",
            "v_head_dim": 16,
        },
    ),
    "ministral3 with yarn and a temperature": (
        "Ministral3ForCausalLM",
        {
            **WIDTHS,
            "head_dim": 32,
            "max_position_embeddings": 256,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "factor": 16.0,
                "llama_4_scaling_beta": 0.1,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "original_max_position_embeddings": 16,
                "rope_theta": 1e6,
                "rope_type": "yarn",
                "type": "yarn",
            },
            "sliding_window": None,
        },
    ),
    "minimax_m2 with a rotary width": (
        "MiniMaxM2ForCausalLM",
        {
            **WIDTHS,
            "head_dim": 16,
            "num_experts_per_tok": 2,
            "num_local_experts": 6,
            "rope_theta": 5e6,
            "rotary_dim": 8,
        },
    ),
    "a body under the name of the class with a head": (
        "Qwen3ForCausalLM",
        {**WIDTHS, "head_dim": 16, "tie_word_embeddings": False, "max_window_layers": 3, "use_sliding_window": False},
    ),
    "an encoder made of a decoder": (
        "Qwen2ForCausalLM",
        {**WIDTHS, "is_causal": False, "sliding_window": 96, "max_window_layers": 3, "use_sliding_window": False},
    ),
}


def publish(name: str, folder: Path, body: bool = False) -> nn.Module:
    """Save a random model under its published config.json, which is then read back by transformers."""
    model, config = PUBLISHED[name]
    cls = getattr(transformers, model)
    torch.manual_seed(1)
    theirs = quietly(cls, quietly(cls.config_class, **config)).eval()
    perturb(theirs)
    quietly((theirs.model if body else theirs).save_pretrained, folder)
    written = {**config, "architectures": [model], "model_type": cls.config_class.model_type}
    (folder / "config.json").write_text(json.dumps(written))
    return quietly((transformers.AutoModel if body else cls).from_pretrained, folder).eval()


@pytest.mark.parametrize("name", PUBLISHED)
@torch.no_grad()
def test_published_configs_are_followed(name: str, tmp_path: Path):
    body = name.startswith("a body")
    theirs = publish(name, tmp_path, body)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = from_pretrained(tmp_path)
    tokens = ids(2, 48)
    out = theirs(tokens, attention_mask=torch.ones_like(tokens))
    expected = out.logits if hasattr(out, "logits") else out.last_hidden_state
    assert expected.std() > 0.1
    assert_same(model(tokens), expected)
    assert isinstance(model, TokenEncoder) == (body or name.startswith("nomic"))


FEW = ("llama", "mistral", "gemma2")
MORE = (
    *FEW,
    "gpt2",
    "qwen2",
    "qwen3",
    "gpt_oss",
    "opt",
    "phi",
    "cohere2",
    "mixtral",
    "gpt_neox",
    "granite",
    "deepseek_v3",
)
BIDIRECTIONAL = [case for case in CASES if case.kind == "decoder" and case.published.name in draws(FEW, MORE)]


@pytest.mark.parametrize("case", BIDIRECTIONAL, ids=lambda case: case.published.name)
@torch.no_grad()
def test_is_causal_false_is_bidirectional(case: Any, tmp_path: Path):
    """Also padded, through windows, and written back."""
    with changed(case, {"is_causal": False}) as folder:
        theirs, model = load_theirs(case, folder), from_pretrained(folder)
        causal = both(case.published)[1]
    tokens, mask, positions = left_padded(ids(3, 23), [23, 18, 4])
    given = None if case.family.model_type == "opt" else positions
    assert_same(model(tokens, mask=mask)[mask], their_logits(theirs, tokens, mask, given)[mask])
    assert (model(tokens, mask=mask)[0, 0] - causal(tokens, mask=mask)[0, 0]).abs().max() > 1e-3
    for origin in (model.origin, None):
        model.origin = origin
        model.save_pretrained(tmp_path, format="hf", model_type=case.family.model_type)
        assert json.loads((tmp_path / "config.json").read_text())["is_causal"] is False
        assert torch.equal(from_pretrained(tmp_path)(tokens, mask=mask), model(tokens, mask=mask))


REFUSED = {
    "bidirectional ALiBi": ("bloom", {"is_causal": False}, "is_causal=False: ALiBi"),
    "bidirectional chunks": ("llama4_text", {"is_causal": False}, "chunked layers stay causal"),
    "only with padding": ("nemotron", {"is_causal": False}, "only where a row has padding"),
    "another head_dim": ("gpt_neox", {"head_dim": 6}, "head_dim=6"),
    "another rotated fraction": ("phi", {"rope_pct": 0.3}, "rope_pct=0.3: transformers ignores this key"),
    "another theta": ("mistral", {"rotary_emb_base": 77}, "rotary_emb_base=77: transformers ignores this key"),
    "another scaling factor": ("stablelm", {"rotary_scaling_factor": 2.0}, "rotary_scaling_factor=2.0"),
    "scores of another code": ("nomic_bert", {"prenorm": True}, "prenorm=True: transformers ignores this key"),
    "a factor of another code": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4, "attn_factor": 2.0}},
        "attn_factor=2.0: transformers ignores this key",
    ),
    "windows in one implementation": ("olmoe", {"sliding_window": 4}, "flash attention alone"),
    "windows on and off": (
        "qwen2",
        {"use_sliding_window": False},
        "use_sliding_window=False contradicts layer_types",
    ),
    "layers of their own": ("llama", {"per_layer_config": {"0": {"num_key_value_heads": 1}}}, "per_layer_config"),
    "biases that are omitted": ("bloom", {"slow_but_exact": True, "pretraining_tp": 2}, "slow_but_exact=True"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_keys_refused_by_name(name: str):
    family, changes, text = REFUSED[name]
    case = next(case for case in ONE_EACH if case.family.model_type == family)
    with changed(case, changes) as folder, pytest.raises(PretrainedError, match=text):
        from_pretrained(folder)


QUANTISED: dict[str, tuple[dict[str, Any], str]] = {
    "fp8": ({"quantization_config": {"quant_method": "fp8"}}, r"FineGrainedFP8Config\(dequantize=True\)"),
    "mxfp4": ({"quantization_config": {"quant_method": "mxfp4"}}, r"Mxfp4Config\(dequantize=True\)"),
    "gptq": ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "unquantised checkpoint"),
    "bitsandbytes": ({"quantization_config": {"quant_method": "bitsandbytes"}}, r"model.dequantize\(\)"),
    "mlx": ({"quantization": {"bits": 4, "group_size": 64}}, "unquantised checkpoint"),
    "inside a multimodal model": (
        {"model_type": "gemma3", "text_config": {"quantization_config": {"quant_method": "fp8"}}},
        "text_config.quantization_config",
    ),
}


@pytest.mark.parametrize("name", QUANTISED)
def test_quantised_weights_are_refused_before_tensors_are_opened(name: str, tmp_path: Path):
    changes, text = QUANTISED[name]
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "model_type": "llama", **changes}))
    with pytest.raises(PretrainedError, match=text):
        from_pretrained(tmp_path)  # the folder has no tensors at all


def llama(folder: Path, **changes: Any) -> Path:
    source = both(
        Published(name="llama tied", model="LlamaForCausalLM", config={**LLAMA, "tie_word_embeddings": True})
    )[2]
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    save_file(load_file(source / "model.safetensors"), folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8])
@pytest.mark.parametrize("scales", [False, True])
def test_quantised_tensors_are_refused(dtype: torch.dtype, scales: bool, tmp_path: Path):
    tensors = load_file(llama(tmp_path) / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    tensors[name] = tensors[name].to(dtype)
    if scales:
        tensors[f"{name}_scale_inv"] = torch.ones(1)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(PretrainedError) as caught:
        from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert f"{name} {str(dtype).removeprefix('torch.')}: quantised tensors are unsupported" in caught.value.problems[0]


def test_ignored_keys_by_the_caller(tmp_path: Path):
    plain = from_pretrained(llama(tmp_path))
    changes = {
        "quantization_config": {"quant_method": "fp8"},
        "pretraining_tp": 3,
        "attention_gate_kind": "twice",
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "beta_fest": 2.0},
    }
    llama(tmp_path, **changes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = from_pretrained(
            tmp_path, ignore=("quantization_config", "pretraining_tp", "attention_gate_kind", "beta_fest")
        )
    assert torch.equal(model(ids(2, 9)), plain(ids(2, 9)))
    assert "quantization_config" not in model.origin.config
    with pytest.raises(PretrainedError, match="beta_fest is unknown"):
        from_pretrained(tmp_path, ignore=("quantization_config", "pretraining_tp"))


def test_an_unknown_ignored_key_is_an_error(tmp_path: Path):
    llama(tmp_path, is_causal=False)
    with pytest.raises(PretrainedError, match="'is_casual'; did you mean 'is_causal'"):
        from_pretrained(tmp_path, ignore=("is_casual",))
    assert from_pretrained(tmp_path, ignore="is_causal").config.layers.kind == "decoder"


def test_published_keys_do_not_apply_to_own_folders(tmp_path: Path):
    from_pretrained(llama(tmp_path)).save_pretrained(tmp_path / "own")
    for given in ({"ignore": ("is_causal",)}, {"rope_theta": 5.0}):
        with pytest.raises(PretrainedError, match="own format"):
            from_pretrained(tmp_path / "own", **given)


@pytest.mark.parametrize(
    ("given", "named"),
    [({"backend": "eager"}, "backend"), ({"ignore": ["dim"]}, "dim"), ({"rope_theta": 5.0}, "rope_theta")],
)
def test_an_own_folder_takes_no_options_of_published_ones(given: dict[str, Any], named: str, tmp_path: Path) -> None:
    layers = Decoder(dim=16, depth=1, heads=2, position="rope")
    TransformerWrapper(num_tokens=8, max_seq_len=8, attn_layers=layers).save_pretrained(tmp_path)
    with pytest.raises(PretrainedError, match=f"unsupported options.*\n- {named}"):
        from_pretrained(tmp_path, **given)
