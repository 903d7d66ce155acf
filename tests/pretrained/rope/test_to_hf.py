"""`Rope` configs written as Hugging Face's, and read back."""

import random
from typing import Any

import pytest
import torch

from tests.support.hf_rope_configs import EACH, LLAMA, LONG, YARN
from x_positional import Decoder, TransformerWrapper
from x_positional.errors import RopeError
from x_positional.pretrained.rope import from_hf, inverse_frequencies, to_hf
from x_positional.schemes import (
    DynamicNtk,
    Linear,
    Llama3,
    NoPE,
    Ntk,
    NtkAlpha,
    NtkByParts,
    Proportional,
    Rope,
    XPos,
    Yarn,
    YarnPaper,
)

Dict = dict[str, Any]


ROPES = {
    "plain": Rope(),
    "theta": Rope(theta=5e5),
    "interleaved": Rope(interleaved=True),
    "dim": Rope(dim=32, theta=1e3),
    "fraction": Rope(fraction=0.25, scaling=Linear(factor=3)),
    "ntk": Rope(scaling=Ntk(factor=2)),
    "ntk_alpha": Rope(scaling=NtkAlpha(alpha=1000)),
    "proportional": Rope(scaling=Proportional(fraction=0.25)),
    "proportional, slower": Rope(scaling=Proportional(fraction=0.25, factor=2)),
    "dynamic": Rope(scaling=DynamicNtk(factor=2, original_max_position_embeddings=64, **EACH)),
    "longrope": Rope(scaling=LONG),
    "llama3": Rope(scaling=Llama3(factor=32), theta=5e5),
    "phimoe": Rope(scaling=LONG.model_copy(update={"short_mscale": 1.1, "long_mscale": 1.2})),
    "by parts": Rope(scaling=NtkByParts(factor=2, original_max_position_embeddings=64, alpha=2.0, beta=9.0)),
    "yarn_paper": Rope(scaling=YarnPaper(factor=2, original_max_position_embeddings=64)),
    "yarn": Rope(
        scaling=Yarn(factor=2, original_max_position_embeddings=64, truncate=False, mscale=0.5, mscale_all_dim=1.0)
    ),
}


@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES)
def test_there_and_back(rope: Rope) -> None:
    written = to_hf(rope)
    assert from_hf(written) == rope
    assert to_hf(from_hf(written)) == written
    assert all(isinstance(value, str | int | float | bool | list) for value in written["rope_parameters"].values())


def test_a_fixed_length_is_named_again() -> None:
    scaling = DynamicNtk(factor=2, original_max_position_embeddings=64, length=100)
    assert from_hf(to_hf(Rope(scaling=scaling)), length=100).scaling == scaling


def test_layer_types_there_and_back() -> None:
    parts = {"full_attention": ROPES["yarn"], "sliding_attention": Rope(), "linear_attention": NoPE()}
    assert from_hf(to_hf(parts)) == parts
    assert to_hf(parts)["rope_parameters"]["linear_attention"] is None


def test_old_fields_become_scalings() -> None:
    assert from_hf(to_hf(Rope(interpolation_factor=4.0))) == Rope(scaling=Linear(factor=4))
    assert from_hf(to_hf(Rope(base_rescale_factor=4.0))) == Rope(scaling=Ntk(factor=4))


@pytest.mark.parametrize(
    ("rope", "words"),
    [
        (XPos(), "position='xpos' cannot be written"),
        (Rope(heads=2), "heads=2"),
        (Rope(interpolation_factor=2.0, base_rescale_factor=2.0), "holds only one"),
        (Rope(base_rescale_factor=0.5), "below 1"),
        (Rope(fraction=0.5, scaling=Proportional(fraction=0.5)), "both are partial_rotary_factor"),
        (
            {"full_attention": Rope(interleaved=True), "sliding_attention": Rope()},
            "rope_interleave is one key for all layer types",
        ),
        ({"full_attention": Rope(dim=2), "sliding_attention": Rope()}, "rotary_dim is one key for all layer types"),
    ],
)
def test_what_has_no_such_form(rope: Rope, words: str) -> None:
    with pytest.raises(RopeError, match=words):
        to_hf(rope)


def test_random_parameters_there_and_back() -> None:
    """Frequencies are the same after a round trip, whichever keys were left out."""
    draw = random.Random(0)
    for _ in range(100):
        parameters: Dict = {"rope_type": "yarn", "factor": draw.choice([None, draw.uniform(1, 40)])}
        parameters |= {"original_max_position_embeddings": draw.choice([256, 4096])} if draw.random() < 0.5 else {}
        parameters |= (
            {"mscale": draw.uniform(0.1, 2), "mscale_all_dim": draw.choice([0, 1.0])} if draw.random() < 0.5 else {}
        )
        again = to_hf(from_hf(parameters | {"max_position_embeddings": 8192}))["rope_parameters"]
        ours, back = inverse_frequencies(parameters, 64, 8192), inverse_frequencies(again, 64)
        assert torch.equal(ours[0], back[0])
        assert ours[1] == back[1]


def test_a_model_of_what_was_read() -> None:
    layers = Decoder(dim=32, depth=1, heads=2, attn_dim_head=16, position=from_hf(LLAMA | {"rope_scaling": YARN}))
    model = TransformerWrapper(num_tokens=7, max_seq_len=32, attn_layers=layers)
    scheme = model.attn_layers.position_schemes[0]
    inv_freq, factor = inverse_frequencies(YARN, 16)
    table = scheme.tables(torch.tensor([[3]]))
    assert torch.allclose(table.q_cos[0, 0, 0, :8], (3 * inv_freq).cos() * factor, atol=1e-6)
    assert model(torch.zeros(1, 5, dtype=torch.long)).isfinite().all()
