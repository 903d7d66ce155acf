"""A model from flags gives the logits of x-transformers' model from the same flags and weights."""

import pytest
import torch
import x_transformers as theirs
from torch import Tensor, nn

import x_positional as ours
from tests.support.rounding import assert_same

SIZE = {"dim": 48, "depth": 2, "heads": 3, "attn_dim_head": 16}
MODEL = {"num_tokens": 11, "max_seq_len": 32, "use_abs_pos_emb": False}
BOTH = [
    {"rotary_pos_emb": True},
    {"rotary_pos_emb": True, "rotary_emb_dim": 16, "use_rmsnorm": True, "norm_add_unit_offset": False},
    {"rotary_pos_emb": True, "use_rmsnorm": True, "ff_glu": True, "ff_no_bias": True, "ff_swish": True},
    {"rotary_pos_emb": True, "attn_qk_norm": True, "attn_head_learned_sink": True, "use_simple_rmsnorm": True},
    {
        "rotary_pos_emb": True,
        "rotary_base_rescale_factor": 4.0,
        "rotary_interpolation_factor": 2.0,
        "rotate_num_heads": 2,
        "pre_norm_has_final_norm": False,
        "ff_mult": 2.5,
    },
    {"alibi_pos_bias": True, "alibi_num_heads": 2, "pre_norm": False, "use_scalenorm": True},
    {"alibi_pos_bias": True, "rel_pos_kwargs": {"slopes": [0.5, 0.25, 1.0]}, "ff_glu": True},
    {
        "alibi_pos_bias": True,
        "attn_softclamp_logits": True,
        "attn_logit_softclamp_value": 1.5,
        "norm_add_unit_offset": False,
        "attn_one_kv_head": True,
    },
]
CAUSAL = [
    {"alibi_pos_bias": True, "attn_max_attend_past": 3, "ff_relu_squared": True},
    {"rotary_xpos": True, "rotary_xpos_scale_base": 128, "sandwich_norm": True, "attn_qk_rmsnorm": True},
]
CASES = [(kind, flags) for kind in ("Encoder", "Decoder") for flags in BOTH] + [("Decoder", flags) for flags in CAUSAL]


def gain_of(norm: nn.Module | None) -> Tensor | None:
    """The one parameter of a norm of theirs; None where it has none."""
    found = [] if norm is None else list(norm.parameters())
    return found[0] if found else None


def copy(target: Tensor | None, source: Tensor | None) -> None:
    """Both are there or neither is."""
    assert (target is None) == (source is None)
    if target is not None:
        target.data.copy_(source.data.reshape(target.shape))


def port(theirs: nn.Module, ours: nn.Module) -> None:
    """Their weights into our model. Whatever is not reached stays NaN and shows."""
    copy(ours.token_emb.weight, theirs.token_emb.emb.weight)
    copy(ours.to_logits.weight, theirs.to_logits.weight)
    layers = theirs.attn_layers.layers
    for i, block in enumerate(ours.attn_layers.blocks):
        (attn_norms, attn, _), (ff_norms, ff, _) = layers[2 * i], layers[2 * i + 1]
        copy(block.attn.to_qkv.weight, torch.cat([attn.to_q.weight, attn.to_k.weight, attn.to_v.weight]))
        copy(block.attn.to_out.weight, attn.to_out.weight)
        if attn.q_rmsnorm is not None:
            copy(block.attn.q_norm.gain, attn.q_rmsnorm.gamma)
            copy(block.attn.k_norm.gain, attn.k_rmsnorm.gamma)
        copy(block.attn.sinks, attn.attend.head_attn_sink)
        for norms, residual in ((attn_norms, block.attn_residual), (ff_norms, block.ff_residual)):
            for norm, mine in zip(norms, (residual.before, residual.after, residual.outer), strict=True):
                copy(None if mine is None else mine.gain, gain_of(norm))
        up, down = (module for module in ff.modules() if isinstance(module, nn.Linear))
        for mine, linear in ((block.ff.up, up), (block.ff.down, down)):
            copy(mine.weight, linear.weight)
            copy(mine.bias, linear.bias)
    final = ours.attn_layers.final_norm
    copy(None if final is None else final.gain, gain_of(theirs.attn_layers.final_norm))


@pytest.mark.parametrize(("kind", "flags"), CASES)
def test_logits_are_those_of_x_transformers(kind, flags):
    torch.manual_seed(0)
    stack = {"Encoder": theirs.Encoder, "Decoder": theirs.Decoder}[kind](**SIZE, verbose=False, **flags)
    reference = theirs.TransformerWrapper(**MODEL, attn_layers=stack).eval()
    for parameter in reference.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    stack = {"Encoder": ours.Encoder, "Decoder": ours.Decoder}[kind](**SIZE, **flags)
    model = ours.TransformerWrapper(**MODEL, attn_layers=stack).eval()
    for parameter in model.parameters():
        parameter.data.fill_(float("nan"))
    port(reference, model)
    tokens = torch.randint(0, 11, (2, 29))
    with torch.no_grad():
        expected, found = reference(tokens), model(tokens)
    assert expected.std() > 0.1
    assert_same(found, expected)
