"""Embeddings of a width of their own: where the projection stands, what it has, and the way back before the head."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.support.rounding import assert_same
from x_positional import Decoder, TransformerWrapper, check
from x_positional.errors import IncompatibleConfig

LAYERS = {"dim": 32, "depth": 2, "heads": 4, "head_dim": 8, "position": {"kind": "absolute", "offset": 2, "scale": 1.0}}
TOKENS = torch.randint(0, 67, (2, 11), generator=torch.Generator().manual_seed(0))


def model(**wrapper: Any) -> TransformerWrapper:
    torch.manual_seed(1)
    built = TransformerWrapper(num_tokens=67, max_seq_len=20, attn_layers=Decoder(**LAYERS), **wrapper).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return built


@torch.no_grad()
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_where_positions_and_norm_stand(first: bool, bias: bool):
    net = model(emb_dim=24, emb_proj_first=first, emb_proj_bias=bias, post_emb_norm=True)
    table = net.attn_layers.schemes[0].table
    assert table.shape == (22, 32 if first else 24)
    assert (net.project_emb.bias is not None) == bias
    x = F.embedding(TOKENS, net.token_emb.weight)
    x = net.project_emb(x) if first else x
    x = net.emb_norm(x + table[2:13])
    x = x if first else net.project_emb(x)
    stack = net.attn_layers
    bare = stack.run(x, stack.layout(2, 11, x.device))
    assert_same(net(TOKENS, return_embeddings=True), bare)


@torch.no_grad()
@pytest.mark.parametrize("tied", [False, True])
def test_the_way_back_before_the_head(tied: bool):
    net = model(emb_dim=24, emb_proj_first=True, emb_proj_bias=False, logits_proj=True, tie_embedding=tied)
    hidden = net(TOKENS, return_embeddings=True)
    assert hidden.shape == (2, 11, 32)
    head = net.token_emb.weight * 32**-0.5 if tied else net.to_logits.weight
    expected = F.linear(F.linear(hidden, net.project_out.weight), head)
    expected = expected if tied else expected + (0 if net.to_logits.bias is None else net.to_logits.bias)
    assert_same(net(TOKENS), expected)
    cache = net.new_cache(2)
    parts = torch.cat([net(TOKENS[:, :4], cache=cache), net(TOKENS[:, 4:], cache=cache)], 1)
    assert_same(parts, expected)


def test_a_config_says_it_and_a_file_holds_it(tmp_path):
    net = model(emb_dim=24, emb_proj_first=True, emb_proj_bias=False, logits_proj=True, tie_embedding=True)
    net.config.to_yaml(tmp_path / "model.yaml")
    again = TransformerWrapper.from_config(type(net.config).from_yaml(tmp_path / "model.yaml")).eval()
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(TOKENS), net(TOKENS))


@pytest.mark.parametrize("idle", [{"emb_proj_bias": False}, {"emb_proj_first": True}, {"logits_proj": True}])
@pytest.mark.parametrize("width", [{}, {"emb_dim": 32}])
def test_a_projection_that_is_not_there_has_no_settings(idle: dict[str, Any], width: dict[str, Any]):
    with pytest.raises(IncompatibleConfig, match="no projection between embeddings and layers"):
        model(**idle, **width)


def test_a_tied_head_needs_the_way_back():
    report = check(num_tokens=67, max_seq_len=20, dim=32, depth=2, emb_dim=24, tie_embedding=True)
    assert any("Set logits_proj" in error for error in report.errors)
    assert check(num_tokens=67, max_seq_len=20, dim=32, depth=2, emb_dim=24, tie_embedding=True, logits_proj=True).ok
