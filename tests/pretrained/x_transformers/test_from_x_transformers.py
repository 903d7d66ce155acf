"""Instances of x-transformers models are converted: their flags are read correctly, and outputs are equal."""

from typing import Any

import pytest
import torch
import x_transformers as xt
from torch import Tensor

from tests.support.perturbing import perturb
from tests.support.rounding import assert_same
from tests.support.x_transformers_flags import CROSS, PARTS, POSITIONS, build, form, inputs, random_flags
from tests.support.x_transformers_models import IDS, SHAPE, moved, perturbed_model
from x_positional import from_x_transformers
from x_positional.pretrained.config_json.canonical import canonical, differences
from x_positional.pretrained.x_transformers import form_of

FLOATS = torch.randn(3, 7, 18, generator=torch.Generator().manual_seed(1))
NARROW = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(2))
KEEP = torch.arange(7) < torch.tensor([[7], [4], [6]])


@torch.no_grad()
def assert_equal(theirs: Any, *args: Tensor, **more: Tensor) -> Any:
    """The converted model, after checking that outputs are equal."""
    ours = from_x_transformers(theirs)
    expected = theirs(*args, **more)
    assert expected.std() > 0.1, "outputs this flat would hide a difference"
    assert_same(ours(*args, **more), expected)
    return ours


def all_flags() -> list[Any]:
    cases = []
    for table in (POSITIONS, PARTS, CROSS):
        for name, flags in table.items():
            cases.append(pytest.param("Decoder", flags | ({"cross_attend": True} if table is CROSS else {}), id=name))
            if table is CROSS:
                cases.append(pytest.param("CrossAttender", flags, id=f"CrossAttender: {name}"))
    return cases + [pytest.param(*random_flags(100 + seed), id=f"random {seed}") for seed in range(40)]


@pytest.mark.parametrize(("kind", "flags"), all_flags())
def test_flags_of_an_instance_are_read(kind: str, flags: dict[str, Any]) -> None:
    """Conversion of the instance and of its keywords gives the same config, and the outputs of x-transformers."""
    torch.manual_seed(5)
    theirs = moved(build(xt, kind, flags))
    tokens, more = inputs(kind == "CrossAttender" or "cross_attend" in flags)
    ours = assert_equal(theirs, tokens, **more)
    told = from_x_transformers(form(kind, flags), theirs.state_dict())
    apart = differences(canonical(ours.config), canonical(told.config))
    if "attn_data_dependent_alibi_kwargs" in flags:  # where gates start is not in the gates
        apart.pop("each.position", None)
    assert apart == {}
    assert not any(p.data_ptr() in {q.data_ptr() for q in theirs.parameters()} for p in ours.parameters()), "copies"


CONTINUOUS = {
    "table": {"max_seq_len": 9},
    "no table": {},
    "sinusoids": {"max_seq_len": 9, "scaled_sinu_pos_emb": True},
    "off": {"max_seq_len": 9, "use_abs_pos_emb": False},
    "normed": {"max_seq_len": 9, "post_emb_norm": True},
    "projected": {"dim_in": 5, "dim_out": 4},
    "out alone": {"dim_out": 18},
}


@pytest.mark.parametrize("wrapper", CONTINUOUS.values(), ids=CONTINUOUS)
@pytest.mark.parametrize("layers", [{}, {"alibi_pos_bias": True}, {"rotary_pos_emb": True}], ids=str)
def test_continuous(wrapper: dict[str, Any], layers: dict[str, Any]) -> None:
    theirs = moved(xt.ContinuousTransformerWrapper(attn_layers=xt.Decoder(**SHAPE, **layers), **wrapper))
    assert_equal(theirs, NARROW if "dim_in" in wrapper else FLOATS, mask=torch.ones(3, 7, dtype=torch.bool))


@pytest.mark.parametrize("kind", ["Encoder", "Decoder", "CrossAttender"])
def test_a_stack_alone(kind: str) -> None:
    more = {"context": FLOATS[:, :5] * 2} if kind == "CrossAttender" else {}
    ours = assert_equal(moved(getattr(xt, kind)(**SHAPE, rotary_pos_emb=True)), FLOATS, **more)
    assert type(ours).__name__ == kind


@pytest.mark.parametrize("tied", [False, True])
def test_encoder_decoder(tied: bool) -> None:
    """Each side keeps its own table beside its own scheme, and the loss and greedy tokens are theirs."""
    theirs = moved(
        xt.XTransformer(
            dim=18,
            tie_token_emb=tied,
            pad_value=1,
            enc_num_tokens=11,
            enc_max_seq_len=9,
            enc_depth=2,
            enc_heads=4,
            enc_attn_kv_heads=2,
            enc_alibi_pos_bias=True,
            dec_num_tokens=11,
            dec_max_seq_len=20,
            dec_depth=1,
            dec_heads=3,
            dec_rotary_pos_emb=True,
            dec_attn_qk_rmsnorm=True,
        )
    )
    ours = from_x_transformers(theirs)
    assert (ours.encoder.token_emb is ours.decoder.net.token_emb) is tied
    assert ours.decoder.pad_value == 1
    with torch.no_grad():
        assert_same(ours(IDS, IDS, mask=KEEP), theirs(IDS, IDS, mask=KEEP))
    new = [model.generate(IDS, IDS[:, :2], 8, mask=KEEP, temperature=0.0) for model in (theirs, ours)]
    assert torch.equal(*new)


@pytest.mark.parametrize("name", ["rotary", "alibi", "t5", "dynamic", "cope", "absolute", "polar", "scaled sinusoidal"])
def test_greedy_tokens(name: str) -> None:
    theirs = xt.AutoregressiveWrapper(
        perturbed_model(**{k: v for k, v in POSITIONS[name].items() if k[:3] not in ("use", "sca")}), pad_value=2
    )
    ours = from_x_transformers(theirs)
    new = [model.generate(IDS[:, :5], 12, temperature=0.0) for model in (theirs, ours)]
    assert torch.equal(*new)
    assert len(new[0].unique()) > 2, "one token over and over proves little"


def test_one_head_has_no_projection_there_and_the_identity_here() -> None:
    ours = assert_equal(perturbed_model(heads=1, attn_dim_head=18, rotary_pos_emb=True), IDS)
    assert torch.equal(ours.attn_layers.blocks[0].attn.to_out.weight, torch.eye(18))
    assert_equal(perturbed_model(attn_dim_head=6, attn_project_out=False), IDS)
    cross = perturbed_model(heads=1, attn_dim_head=18, cross_attend=True)
    assert_equal(cross, IDS, context=FLOATS)


def test_other_wrappings() -> None:
    assert_equal(perturbed_model("Encoder", {"return_only_embed": True}), IDS)
    assert_equal(perturbed_model(cross_attend=True, cross_attn_dim_context=5), IDS, context=NARROW)
    assert_equal(perturbed_model(disable_abs_pos_emb=True), IDS)
    assert_equal(perturbed_model(wrapper={"tie_embedding": True, "tie_embedding_scale": 0.5}), IDS)
    stack = xt.x_transformers.AttentionLayers(**SHAPE, causal=True)
    assert_equal(moved(xt.TransformerWrapper(num_tokens=11, max_seq_len=24, attn_layers=stack)), IDS)


def test_numbers_are_those_that_were_given() -> None:
    layers = {
        "rotary_pos_emb": True,
        "rotary_base_rescale_factor": 3.7,
        "rotary_interpolation_factor": 1.5,
        "ff_mult": 2.5,
        "attn_dropout": 0.25,
        "ff_dropout": 0.125,
        "attn_max_attend_past": 0,
        "attn_flash": True,
    }
    told = form_of(perturbed_model(wrapper={"emb_dropout": 0.375}, **layers))
    shape = {name: value for name, value in SHAPE.items() if name != "verbose"}
    inner = {"num_tokens": 11, "max_seq_len": 24, "emb_dropout": 0.375, "attn_layers": {"Decoder": {**shape, **layers}}}
    assert told == {"TransformerWrapper": inner}
    fewer = {"alibi_pos_bias": True, "alibi_num_heads": 1, "rel_pos_kwargs": {"slopes": [0.7, 0.3]}}
    assert_equal(perturbed_model(**fewer), IDS)  # there slopes count, whatever alibi_num_heads says
    slopes = {"alibi_pos_bias": True, "rel_pos_kwargs": {"slopes": [0.7, 0.3, 0.1]}}
    assert form_of(perturbed_model(**slopes))["TransformerWrapper"]["attn_layers"]["Decoder"].items() >= slopes.items()


def test_dtype_training_and_gradients() -> None:
    theirs = perturbed_model(rotary_pos_emb=True).double().train()
    ours = from_x_transformers(theirs)
    assert ours.training
    assert {p.dtype for p in ours.parameters()} == {torch.float64}
    ours(IDS).sum().backward()
    assert all(p.grad is not None for p in ours.parameters())
    assert not from_x_transformers(form_of(theirs), theirs.state_dict()).training


def test_copies_do_not_follow() -> None:
    theirs = perturbed_model()
    ours = from_x_transformers(theirs)
    with torch.no_grad():
        before = ours(IDS)
        perturb(theirs, seed=1)
        torch.testing.assert_close(ours(IDS), before, atol=0, rtol=0)
