"""What is peculiar to the decoders before Llama: orders of fused projections, names of keys, roundings, what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers.models.falcon.modeling_falcon import build_alibi_tensor
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

from tests.support.published.compare import Published, both, ids, left_padded, perturb, quietly, their_logits
from tests.support.published.decoders_oldies import CASES
from tests.support.rounding import assert_same
from x_positional import PretrainedError, TransformerWrapper, from_pretrained
from x_positional.config.layers import LayersConfig
from x_positional.models.language import TokenEncoder
from x_positional.pretrained import FAMILIES
from x_positional.pretrained.families.gpt_neox import rotary_pct
from x_positional.pretrained.families.mpt import mpt_slopes
from x_positional.pretrained.model_kinds import model_config
from x_positional.pretrained.tensors.layouts import Sizes, grouped_qkv, sharded_qkv
from x_positional.schemes import Alibi, Rope, RoundedAlibiBias, alibi_slopes
from x_positional.schemes.base import AttentionContext

BY_NAME = {case.name: case for case in CASES}
ALIASES = {"hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"}


def edited(case: Published, folder: Path, **changes: Any) -> Path:
    """The case's folder with another config.json; a value of None takes the key away."""
    source = both(case)[2]
    config = json.loads((source / "config.json").read_text()) | changes
    kept = {key: value for key, value in config.items() if key not in changes or value is not None}
    (folder / "config.json").write_text(json.dumps(kept))
    (folder / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    return folder


def differ(one: torch.nn.Module, other: torch.nn.Module, length: int = 23) -> float:
    tokens = ids(2, length)
    with torch.no_grad():
        return (one(tokens) - other(tokens)).abs().max().item()


@pytest.mark.parametrize("name", ["gpt_bigcode", "gptj", "codegen", "gpt_neo", "bloom", "mpt"])
def test_the_usual_names_of_sizes_are_read_too(name: str, tmp_path: Path):
    case = BY_NAME[name]
    family = FAMILIES[type(both(case)[0].config).model_type]
    config = json.loads((both(case)[2] / "config.json").read_text())
    names = {theirs: alias for alias, theirs in family.aliases.items() if theirs in config and alias in ALIASES}
    assert len(names) >= 2
    moved: dict[str, Any] = {alias: config[theirs] for theirs, alias in names.items()}
    assert differ(from_pretrained(edited(case, tmp_path, **dict.fromkeys(names), **moved)), both(case)[1]) == 0.0


@pytest.mark.parametrize("name", ["bloom", "falcon, as 7b"])
def test_n_embed_wins(name: str, tmp_path: Path):
    """As in transformers, where it is the older name of hidden_size."""
    case = BY_NAME[name]
    width = both(case)[1].config.layers.dim
    folder = edited(case, tmp_path, hidden_size=8, n_embed=width)
    assert type(both(case)[0].config).from_pretrained(folder).hidden_size == width
    assert differ(from_pretrained(folder), both(case)[1]) == 0.0


def test_an_override_wins_under_either_name():
    case = BY_NAME["bloom"]
    by_old, by_new = (from_pretrained(both(case)[2], **{key: 5}) for key in ("n_head", "num_attention_heads"))
    assert by_old.config.layers.heads == by_new.config.layers.heads == 5
    assert differ(by_old, both(case)[1]) > 1e-3
    assert differ(by_old, by_new) == 0.0


@pytest.mark.parametrize("pct", [0.5, None])
def test_older_rotary_keys_of_gpt_neox(pct: float | None, tmp_path: Path):
    """rotary_pct is a quarter where it is not said."""
    case = BY_NAME["gpt_neox, a quarter turned"]
    folder = edited(case, tmp_path, rope_parameters=None, rotary_pct=pct, rotary_emb_base=500)
    ours = from_pretrained(folder)
    theirs = quietly(transformers.AutoModelForCausalLM.from_pretrained, folder)
    tokens = ids(2, 23)
    with torch.no_grad():
        assert_same(ours(tokens), their_logits(theirs, tokens))


OLDER = {  # what differs in older files -> (config, what it must come to)
    "pythia": (
        {
            "model_type": "gpt_neox",
            "hidden_size": 512,
            "num_attention_heads": 8,
            "num_hidden_layers": 6,
            "intermediate_size": 2048,
            "rotary_emb_base": 10000,
            "rotary_pct": 0.25,
            "vocab_size": 50304,
            "use_parallel_residual": True,
            "attention_probs_dropout_prob": 0,
            "tie_word_embeddings": False,
        },
        {"norm_place": "parallel_two", "position": (Rope(fraction=0.25),)},
    ),
    "gpt-neo": (
        {
            "model_type": "gpt_neo",
            "hidden_size": 768,
            "num_heads": 12,
            "num_layers": 4,
            "intermediate_size": None,
            "attention_layers": ["global", "local"] * 2,
            "window_size": 256,
            "gradient_checkpointing": False,
        },
        {"pattern": 2, "head_dim": 64},
    ),
    "gpt-j": (
        {
            "model_type": "gptj",
            "n_embd": 4096,
            "n_head": 16,
            "n_layer": 28,
            "n_inner": None,
            "rotary": True,
            "rotary_dim": 64,
            "scale_attn_weights": True,
            "gradient_checkpointing": False,
        },
        {"norm_place": "parallel", "head_dim": 256, "position": (Rope(dim=64, interleaved=True),)},
    ),
    "codegen": (
        {
            "model_type": "codegen",
            "n_ctx": 2048,
            "n_embd": 1024,
            "n_head": 16,
            "n_layer": 20,
            "rotary_dim": 32,
            "scale_attn_weights": True,
            "n_inner": None,
        },
        {"head_dim": 64},
    ),
    "starcoder": (
        {
            "model_type": "gpt_bigcode",
            "n_embd": 6144,
            "n_head": 48,
            "n_layer": 40,
            "n_inner": 24576,
            "multi_query": True,
            "inference_runner": 0,
            "pad_key_length": True,
            "pre_allocate_kv_cache": False,
            "validate_runner_input": True,
            "attention_softmax_in_fp32": True,
        },
        {"kv_heads": 1, "head_dim": 128},
    ),
    "opt-350m": (
        {
            "model_type": "opt",
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "ffn_dim": 4096,
            "word_embed_proj_dim": 512,
            "do_layer_norm_before": False,
            "activation_dropout": 0.0,
            "layerdrop": 0.0,
            "init_std": 0.02,
            "prefix": "</s>",
        },
        {"norm_place": "post", "final_norm": False},
    ),
    "bloom": (
        {
            "model_type": "bloom",
            "n_embed": 1024,
            "num_attention_heads": 16,
            "n_layer": 24,
            "offset_alibi": 100,
            "masked_softmax_fusion": True,
            "bias_dropout_fusion": True,
            "skip_bias_add": True,
            "skip_bias_add_qkv": False,
            "attention_softmax_in_fp32": True,
            "pretraining_tp": 1,
            "unk_token_id": 0,
        },
        {"dim": 1024, "position": (Alibi(),)},
    ),
    "mpt": (
        {
            "model_type": "mpt",
            "d_model": 4096,
            "n_heads": 32,
            "n_layers": 32,
            "expansion_ratio": 4,
            "no_bias": True,
            "attn_config": {
                "alibi": True,
                "alibi_bias_max": 8,
                "attn_impl": "triton",
                "clip_qkv": None,
                "softmax_scale": None,
                "prefix_lm": False,
                "qk_ln": False,
            },
            "learned_pos_emb": True,
            "embedding_fraction": 1.0,
            "init_config": {"name": "kaiming_normal_"},
            "init_device": "cpu",
            "verbose": 0,
            "logit_scale": None,
            "norm_type": "low_precision_layernorm",
            "tokenizer_name": "x",
            "emb_pdrop": 0,
        },
        {"head_dim": 128},
    ),
    "falcon-40b": (
        {
            "model_type": "falcon",
            "hidden_size": 8192,
            "num_attention_heads": 128,
            "num_hidden_layers": 60,
            "num_kv_heads": 8,
            "new_decoder_architecture": True,
            "multi_query": True,
            "parallel_attn": True,
            "alibi": False,
            "bias": False,
            "apply_residual_connection_post_layernorm": False,
        },
        {"kv_heads": 8, "norm_place": "parallel_two", "position": (Rope(),)},
    ),
    "falcon-rw": (
        {
            "model_type": "falcon",
            "hidden_size": 2048,
            "num_attention_heads": 32,
            "num_hidden_layers": 24,
            "multi_query": False,
            "parallel_attn": False,
            "alibi": True,
            "bias": True,
        },
        {"kv_heads": 32, "norm_place": "pre", "position": (Alibi(rounding="bfloat16", scale=0.125),)},
    ),
}


@pytest.mark.parametrize("name", OLDER)
def test_older_files(name: str):
    hf, expected = OLDER[name]
    family = FAMILIES[hf["model_type"]]
    fields, problems = family.to_fields(hf)
    assert not problems
    assert not family.unknown_keys(hf)
    layers = model_config(fields).layers
    for field, value in expected.items():
        found = getattr(layers, field)
        assert (len(found) if field == "pattern" else found) == value


def test_positions_of_opt_follow_the_mask():
    """Without position_ids too: theirs counts the tokens of the mask, as ours does."""
    theirs, ours, _ = both(BY_NAME["opt, as 350m"])
    tokens, mask, _ = left_padded(ids(3, 23), [23, 18, 4])
    with torch.no_grad():
        assert_same(ours(tokens, mask=mask)[mask], their_logits(theirs, tokens, mask)[mask])


@pytest.mark.parametrize("heads", [1, 2, 3, 5, 6, 7, 12, 16, 20, 40, 71, 112])
def test_rounded_products_of_falcon(heads: int):
    """Every product to the bit, past where bfloat16 counts every position, as seen from position 0."""
    theirs = build_alibi_tensor(torch.ones(1, 700, dtype=torch.long), heads, torch.float32).reshape(heads, 700)
    keys, query = torch.arange(700)[None], torch.zeros(1, 1, dtype=torch.long)
    ctx = AttentionContext(
        q_index=query, kv_index=keys, q_positions=query, kv_positions=keys, batch=1, heads=heads, span=700, causal=False
    )
    scheme = RoundedAlibiBias(heads, alibi_slopes(heads), None, "bfloat16")
    ours = -scheme.bias(ctx).dense(ctx, ctx.every_row, ctx.every_key)[0, :, 0]
    torch.testing.assert_close(ours, theirs, atol=0, rtol=0)


def test_falcon_needs_the_rounding_and_the_scale():
    case = BY_NAME["falcon, as rw, 12 heads"]
    ours = both(case)[1]
    tokens = ids(2, case.length)
    with torch.no_grad():
        expected = their_logits(both(case)[0], tokens)
        for position in (Alibi(scale=6**-0.5), Alibi(rounding="bfloat16")):
            other = TransformerWrapper.from_config(
                ours.config.model_copy(
                    update={"layers": ours.config.layers.model_copy(update={"position": (position,)})}
                )
            ).eval()
            other.load_state_dict(ours.state_dict())
            assert (other(tokens) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("heads", [1, 2, 3, 5, 6, 7, 12, 16, 24, 40, 71, 112])
def test_slopes_of_mpt(heads: int):
    theirs = build_mpt_alibi_tensor(heads, 2)[:, 0, 0]  # the key one position before the query
    torch.testing.assert_close(-torch.tensor(mpt_slopes(heads)), theirs, atol=0, rtol=1e-6)
    assert mpt_slopes(heads, 16) == pytest.approx([s**2 for s in mpt_slopes(heads)])


def test_the_steepness_of_mpt_is_followed_and_cannot_be_written(tmp_path: Path):
    """MPT-StoryWriter was trained with alibi_bias_max=16; transformers reads the key and computes with 8."""
    case = BY_NAME["mpt"]
    ours = from_pretrained(edited(case, tmp_path, attn_config={"alibi_bias_max": 16}))
    assert ours.config.layers.position == (Alibi(slopes=mpt_slopes(4, 16)),)
    assert differ(ours, both(case)[1]) > 1e-3
    with pytest.raises(PretrainedError, match=r"position="):
        ours.save_pretrained(tmp_path / "written", format="hf", model_type="mpt")


REFUSED = [
    (
        "mpt",
        {"attn_config": {"qk_ln": True, "prefix_lm": True}},
        ["attn_config.qk_ln=True", "attn_config.prefix_lm=True"],
    ),
    ("mpt", {"attn_config": {"alibi": False}}, ["attn_config.alibi=False"]),
    (
        "mpt",
        {"expansion_ratio": 2, "no_bias": False, "logit_scale": 0.5, "norm_type": "rmsnorm"},
        ["expansion_ratio=2", "no_bias=False", "logit_scale=0.5", "norm_type='rmsnorm'"],
    ),
    ("gpt_neo", {"attention_types": [[["global"], 2]]}, ["attention_types: ['global', 'global'] for 3 layers"]),
    ("gpt_neo", {"attention_types": [[["strided"], 3]]}, ["must give 'global' or 'local'"]),
    (
        "falcon, as 7b",
        {"apply_residual_connection_post_layernorm": True},
        ["apply_residual_connection_post_layernorm=True"],
    ),
    ("falcon, as 7b", {"activation": "tanh"}, ["activation='tanh'"]),
    ("gptj", {"rotary_dim": 12}, ["rotary width is 12"]),
    ("gpt_bigcode", {"add_cross_attention": True}, ["add_cross_attention=True"]),
    ("xglm", {"pad_token_id": 3}, ["pad_token_id=3"]),
]


@pytest.mark.parametrize(("name", "changes", "words"), REFUSED)
def test_refused(name: str, changes: dict[str, Any], words: list[str], tmp_path: Path):
    with pytest.raises(ValueError, match=r"config\.json|problem|rotary width") as error:
        from_pretrained(edited(BY_NAME[name], tmp_path, **changes))
    for word in words:
        assert word in str(error.value)


BODIES = {
    "gpt_bigcode": "GPTBigCodeModel",
    "gpt_neo": "GPTNeoModel",
    "gptj": "GPTJModel",
    "codegen": "CodeGenModel",
    "gpt_neox": "GPTNeoXModel",
    "opt": "OPTModel",
    "opt, as 350m": "OPTModel",
    "bloom": "BloomModel",
    "mpt": "MptModel",
    "falcon, as 40b": "FalconModel",
}


@pytest.mark.parametrize("name", BODIES)
def test_bodies_without_a_head(name: str, tmp_path: Path):
    """Files without the prefix, and hidden states as wide as theirs."""
    case, cls = BY_NAME[name], getattr(transformers, BODIES[name])
    torch.manual_seed(1)
    theirs = quietly(cls, quietly(cls.config_class, **{"attn_implementation": case.attention, **case.config})).eval()
    perturb(theirs)
    quietly(theirs.save_pretrained, tmp_path)
    ours = from_pretrained(tmp_path)
    assert isinstance(ours, TokenEncoder)
    tokens = ids(2, 19)
    with torch.no_grad():
        expected = theirs(tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state
        assert_same(ours(tokens), expected)


def sizes(heads: int, kv_heads: int) -> Sizes:
    return Sizes(LayersConfig(kind="decoder", dim=8, depth=1, heads=heads, kv_heads=kv_heads, head_dim=1))


def test_orders_of_fused_projections():
    """Which of their rows each of ours is, one channel a head."""
    orders = {
        "q k v of each head": (grouped_qkv("x"), sizes(3, 3), [0, 3, 6, 1, 4, 7, 2, 5, 8]),
        "one group": (grouped_qkv("x"), sizes(3, 1), [0, 1, 2, 3, 4]),
        "two groups": (grouped_qkv("x"), sizes(4, 2), [0, 1, 4, 5, 2, 6, 3, 7]),
        "four shards of q v k": (sharded_qkv("x"), sizes(4, 4), [0, 3, 6, 9, 2, 5, 8, 11, 1, 4, 7, 10]),
    }
    for name, (layout, shape, rows) in orders.items():
        tensor = torch.arange(len(rows))
        assert layout.load([tensor], shape).tolist() == rows, name
        assert torch.equal(layout.store(layout.load([tensor], shape), shape)[0], tensor), name


def test_what_is_on_disk_is_what_hub_files_hold():
    """GPT-NeoX's head is called embed_out there; a head with a bias keeps it, tied or not."""
    assert "embed_out.weight" in load_file(both(BY_NAME["gpt_neox"])[2] / "model.safetensors")
    assert both(BY_NAME["gptj, tied"])[1].tied_bias is not None
    assert both(BY_NAME["gptj"])[1].to_logits.bias is not None


@pytest.mark.parametrize(("dim", "head_dim"), [(d, h) for h in (6, 10, 49, 80, 96) for d in range(2, h + 1, 2)])
def test_the_share_of_a_head_is_counted_as_it_is_written(dim: int, head_dim: int):
    assert int(rotary_pct(dim, head_dim) * head_dim) == dim
    assert rotary_pct(dim, head_dim) <= 1
