"""The same keyword flags and the same weights give the same logits in x-transformers' ViTransformerWrapper and here."""

import pytest
import torch
import x_transformers as xt

from tests.support.perturbing import perturb
from tests.support.rounding import assert_same
from x_positional import from_x_transformers

LAYERS = {"dim": 40, "depth": 2, "heads": 6, "attn_dim_head": 12}
SIZE, PATCH, CLASSES = (16, 16), 4, 7
"""4 x 4 patches: x-transformers supports squares only."""

CASES = {
    "the table alone": ({}, {}),
    "registers": ({}, {"num_register_tokens": 3}),
    "normed embedding": ({}, {"post_emb_norm": True, "num_register_tokens": 1}),
    "one channel": ({}, {"channels": 1}),
    "no head": ({}, {"num_classes": None}),
    "rotary": ({"rotary_pos_emb": True}, {}),
    "alibi": ({"alibi_pos_bias": True}, {}),
    "t5": ({"rel_pos_bias": True}, {}),
    "dynamic": ({"dynamic_pos_bias": True}, {}),
    "other layers": ({"ff_glu": True, "use_rmsnorm": True, "attn_qk_norm": True, "sandwich_norm": True}, {}),
    "grouped heads, sinks": ({"attn_kv_heads": 2, "attn_head_learned_sink": True}, {"num_register_tokens": 2}),
}


def pair(layers: dict, wrapper: dict):
    """The x-transformers model, perturbed, and its conversion. It always adds the position table, also with a scheme."""
    torch.manual_seed(3)
    settings = {"num_classes": CLASSES, **wrapper}
    theirs = xt.ViTransformerWrapper(
        image_size=16, patch_size=PATCH, attn_layers=xt.Encoder(**LAYERS, **layers), **settings
    ).eval()
    perturb(theirs)
    ours = from_x_transformers(theirs)
    return theirs, ours


@pytest.mark.parametrize(("layers", "wrapper"), CASES.values(), ids=CASES)
def test_ported_weights_give_the_same_logits_and_embeddings(layers: dict, wrapper: dict) -> None:
    theirs, ours = pair(layers, wrapper)
    x = torch.randn(3, wrapper.get("channels", 3), *SIZE, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        expected, found = theirs(x), ours(x)
        if ours.to_logits is None:
            expected = expected.mean(1) if expected.ndim == 3 else expected
        assert found.shape == expected.shape
        assert expected.std() > 0.1
        assert_same(found, expected)
        patches, theirs_of = ours(x, return_embeddings=True), theirs(x, return_embeddings=True)
        assert_same(patches, theirs_of)


@pytest.mark.parametrize("layers", [{}, {"rotary_pos_emb": True}, {"alibi_pos_bias": True}], ids=str)
def test_the_table_counts(layers: dict) -> None:
    theirs, ours = pair(layers, {})
    x = torch.randn(3, 3, *SIZE, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        ours.patch_table.table.zero_()
        assert (ours(x) - theirs(x)).abs().max() > 0.01
