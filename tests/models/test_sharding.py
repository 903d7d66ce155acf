"""A model built on the meta device gets the values of the ordinary construction, bit by bit, one block at a time."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.allocated import Allocated
from tests.support.generation_models import PAIRS_OF_AXES, SCHEMES
from x_positional import (
    ContinuousTransformerWrapper,
    Decoder,
    Encoder,
    TransformerWrapper,
    ViTransformerWrapper,
    XTransformer,
)
from x_positional.errors import ArgumentError
from x_positional.models.sharding import materialize

LAYERS: dict[str, Any] = {"dim": 24, "depth": 3, "heads": 2, "attn_dim_head": 8}


def scheme_model(name: str) -> nn.Module:
    layers = Decoder(**LAYERS | {"attn_dim_head": 12 if name in PAIRS_OF_AXES else 8}, position=name)
    return TransformerWrapper(num_tokens=32, max_seq_len=16, attn_layers=layers)


def text_model(**options: Any) -> nn.Module:
    layers = Decoder(**LAYERS, **options)
    return TransformerWrapper(num_tokens=32, max_seq_len=16, attn_layers=layers)


KINDS: dict[str, Callable[[], nn.Module]] = {
    **{name: lambda name=name: scheme_model(name) for name in SCHEMES},
    "learned slopes": lambda: text_model(position={"kind": "alibi", "learned": True}),
    "experts": lambda: text_model(position="rope", ff={"moe": {"experts": 3, "top_k": 2, "shared": 8}}),
    "latent": lambda: text_model(position={"kind": "rope", "dim": 4}, attn={"mla": {"kv_rank": 10, "rope_dim": 4}}),
    "a pattern": lambda: text_model(pattern=[{"position": "cope"}, {"position": "t5"}]),
    "learned frequencies": lambda: text_model(position={"kind": "rope", "learned": True}),
    "tied, l2norm": lambda: TransformerWrapper(
        num_tokens=32, max_seq_len=16, tie_embedding=True, l2norm_embed=True, attn_layers=Decoder(**LAYERS)
    ),
    "encoder": lambda: TransformerWrapper(num_tokens=32, max_seq_len=16, attn_layers=Encoder(**LAYERS, position="t5")),
    "seq2seq": lambda: XTransformer(
        dim=24,
        enc_num_tokens=32,
        enc_depth=2,
        enc_heads=2,
        enc_max_seq_len=16,
        dec_num_tokens=40,
        dec_depth=3,
        dec_heads=2,
        dec_max_seq_len=12,
    ),
    "vision": lambda: ViTransformerWrapper(
        image_size=16, patch_size=8, num_classes=5, attn_layers=Encoder(**LAYERS, position="alibi")
    ),
    "floats": lambda: ContinuousTransformerWrapper(
        dim_in=4, dim_out=3, max_seq_len=16, attn_layers=Decoder(**LAYERS, position="rope")
    ),
    "a stack": lambda: Decoder(**LAYERS, position="dynamic"),
}


@pytest.mark.parametrize("name", KINDS)
def test_meta_init_is_the_ordinary_init(name: str):
    torch.manual_seed(7)
    ordinary = KINDS[name]()
    after = torch.get_rng_state()
    with torch.device("meta"):
        model = KINDS[name]()
    torch.manual_seed(7)
    materialize(model, KINDS[name])
    expected = dict(ordinary.named_parameters())
    for parameter, value in model.named_parameters():
        assert torch.equal(value, expected[parameter]), parameter
    assert torch.equal(torch.get_rng_state(), after)


def test_another_model_is_refused():
    with torch.device("meta"):
        model = KINDS["rope"]()
    for build in (KINDS["seq2seq"], KINDS["tied, l2norm"], lambda: text_model(position="rope", ff_mult=2)):
        with pytest.raises(ArgumentError, match=r"build\(\) gives another model"):
            materialize(model, build)


def test_no_more_than_one_block_is_built_at_once():
    def build() -> nn.Module:
        return TransformerWrapper(num_tokens=8, max_seq_len=16, attn_layers=Decoder(**LAYERS | {"depth": 12}))

    with torch.device("meta"):
        model = build()
    parameters = list(model.parameters())
    total = 4 * sum(p.numel() for p in parameters)
    block = 4 * sum(p.numel() for p in model.attn_layers.blocks[0].parameters())  # type: ignore[union-attr]
    with Allocated() as ordinary:
        kept = build()
    with Allocated() as drawn:
        materialize(model, build)
    assert total <= ordinary.live <= ordinary.peak
    assert drawn.peak < total + 2 * block < 1.2 * total
    del kept
