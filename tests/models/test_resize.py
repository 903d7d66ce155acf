"""The vocabulary and the position tables of a built model, resized: old rows bit for bit, saved and read back, refused where
numbers would change."""

import copy

import pytest
import torch
import transformers
from torch import nn

from tests.support.rounding import assert_same
from tests.support.small_models import NUM_TOKENS, SIDE, decoder, ids
from x_positional import (
    Absolute,
    Alibi,
    AutoregressiveWrapper,
    Decoder,
    Rope,
    TransformerWrapper,
    XPos,
    XTransformer,
    from_pretrained,
    quantize,
)
from x_positional.errors import ArgumentError, CacheError, IncompatibleConfig, InputError
from x_positional.schemes.rotary.scaling.length import DynamicNtk
from x_positional.schemes.rotary.scaling.parts import Yarn
from x_positional.schemes.temperature import LogN

OWN = NUM_TOKENS


def language_model(**flags) -> TransformerWrapper:
    torch.manual_seed(0)
    layers = Decoder(dim=24, depth=1, heads=2, head_dim=8, position=flags.pop("position", "rope"))
    net = TransformerWrapper(num_tokens=OWN, max_seq_len=flags.pop("max_seq_len", 16), attn_layers=layers, **flags)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    return net.eval()


KINDS = {
    "own head": {},
    "tied": {"tie_embedding": True},
    "tied, biased, narrow": {"tie_embedding": True, "logits_bias": True, "emb_dim": 24},
    "biased head": {"logits_bias": True},
    "l2norm": {"l2norm_embed": True},
    "logits_dim": {"logits_dim": OWN},
}


@pytest.mark.parametrize("init", ["mean", "fresh"])
@pytest.mark.parametrize("flags", KINDS.values(), ids=KINDS)
@torch.no_grad()
def test_old_rows_stay_and_the_model_is_saved_and_read_back(flags, init, tmp_path):
    net, tokens = language_model(**flags), ids(2, 7)
    old = {name: p.clone() for name, p in net.named_parameters()}
    logits = net(tokens)
    assert net.resize_token_embeddings(OWN + 5, init=init, seed=1) is net
    assert net.num_tokens == net.config.num_tokens == OWN + 5 == net.token_emb.num_embeddings
    for name, p in net.named_parameters():
        assert torch.equal(p[: len(old[name])], old[name]), name
    got = net(tokens)
    assert got.shape == (2, 7, OWN + 5)
    assert_same(got[..., :OWN], logits)
    net.save_pretrained(tmp_path)
    back = from_pretrained(tmp_path)
    new = torch.tensor([[OWN + 4, 0, OWN]])
    assert torch.equal(back(new), net(new))
    net.resize_token_embeddings(OWN)
    assert_same(net(tokens), logits)
    assert all(torch.equal(p, old[name]) for name, p in net.named_parameters())


def test_new_rows_are_the_mean_or_those_of_a_new_model():
    net = language_model(logits_bias=True)
    emb, head, bias = net.token_emb.weight, net.to_logits.weight, net.to_logits.bias
    net.resize_token_embeddings(OWN + 3)
    for new, old in ((net.token_emb.weight, emb), (net.to_logits.weight, head), (net.to_logits.bias, bias)):
        assert_same(new[OWN:], old.mean(0, keepdim=True).expand(3, *old.shape[1:]))
    drawn = [language_model().resize_token_embeddings(4000, init="fresh", seed=seed) for seed in (1, 1, 2)]
    first, again, other = (net.token_emb.weight[OWN:] for net in drawn)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    whole = TransformerWrapper(num_tokens=4000, max_seq_len=16, attn_layers=Decoder(dim=24, depth=1, heads=2))
    for name in ("token_emb", "to_logits"):
        new, expected = getattr(drawn[0], name).weight[OWN:], getattr(whole, name).weight
        assert abs(new.std() / expected.std() - 1) < 0.05
    torch.manual_seed(5)
    want = torch.rand(1)
    torch.manual_seed(5)
    drawn[1].resize_token_embeddings(4100, init="fresh", seed=3)
    assert torch.equal(torch.rand(1), want)


def test_frozen_parameters_stay_frozen_and_dtypes_stay():
    net = language_model().bfloat16().requires_grad_(False)
    net.resize_token_embeddings(OWN + 1)
    assert {p.dtype for p in net.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in net.parameters())


@torch.no_grad()
def test_caches_made_before_are_refused_and_a_new_size_decodes():
    net = language_model()
    wrapper, cache = AutoregressiveWrapper(net), net.new_cache(1)
    net(ids(1, 4), cache=cache)
    wrapper.resize_token_embeddings(OWN + 2)
    with pytest.raises(CacheError, match="parameters of the model changed"):
        net(ids(1, 1), cache=cache)
    assert wrapper.generate(torch.tensor([OWN + 1, 3]), 4, temperature=0.0).shape == (4,)
    assert wrapper(torch.tensor([[OWN + 1, 3, 5]])).isfinite()


def test_a_logits_dim_of_its_own_stays():
    net = language_model(logits_dim=5).resize_token_embeddings(OWN + 2)
    assert net(torch.tensor([[OWN + 1]])).shape == (1, 1, 5)


@pytest.mark.parametrize("tie", [True, False])
@torch.no_grad()
def test_an_encoder_decoder_resizes_both_sides_or_one(tie, tmp_path):
    sides = {f"{side}_{name}": value for side in ("enc", "dec") for name, value in SIDE.items()}
    model = XTransformer(dim=24, tie_token_emb=tie, **sides).eval()
    src, tgt = ids(2, 5), ids(2, 4)
    want = model.logits(src, tgt)
    model.resize_token_embeddings(OWN + 3)
    assert (model.encoder.token_emb is model.decoder.net.token_emb) == tie
    assert_same(model.logits(src, tgt)[..., :OWN], want)
    model.resize_positions(40)
    model.save_pretrained(tmp_path)
    back = from_pretrained(tmp_path)
    assert back.config == model.config
    assert back.config.encoder.max_seq_len == 40
    assert torch.equal(back.logits(src, tgt), model.logits(src, tgt))
    if tie:
        with pytest.raises(ArgumentError, match="side='encoder' resizes one side, but tie_token_emb=True"):
            model.resize_token_embeddings(OWN, side="encoder")
    else:
        model.resize_token_embeddings(OWN, side="encoder")
        assert model.logits(src, tgt).shape[-1] == OWN + 3
    with pytest.raises(ArgumentError, match="unknown side='left'"):
        model.resize_positions(50, side="left")


def two_sides(tie: bool) -> XTransformer:
    sides = {f"{side}_{name}": value for side in ("enc", "dec") for name, value in SIDE.items()}
    return XTransformer(dim=24, tie_token_emb=tie, **sides).eval()


def test_one_side_of_a_shared_embedding_resized_alone_is_refused():
    model, tokens = two_sides(True), ids(2, 5)
    model.encoder.resize_token_embeddings(OWN - 4)  # the decoder would look up rows that are gone
    with pytest.raises(InputError, match=f"num_tokens={OWN - 4} and the decoder {OWN}: one side was resized alone"):
        model(tokens % (OWN - 4), tokens)
    assert model.resize_token_embeddings(OWN + 2)(tokens, tokens).isfinite()


def test_tables_that_two_sides_share_by_hand_stay_shared():
    model = two_sides(False)
    model.decoder.net.token_emb.weight = model.encoder.token_emb.weight
    model.resize_token_embeddings(OWN + 3, init="fresh")
    assert model.decoder.net.token_emb.weight is model.encoder.token_emb.weight


def test_resized_in_inference_mode_a_model_can_be_trained():
    net = language_model(position="absolute")
    with torch.inference_mode():
        net.resize_token_embeddings(OWN + 3).resize_positions(20, "fresh")
    AutoregressiveWrapper(net)(ids(2, 5)).backward()
    assert net.token_emb.weight.grad is not None


def test_what_cannot_be_resized_is_refused_and_nothing_changes():
    net = language_model(tie_embedding=True)
    before = {name: p.clone() for name, p in net.named_parameters()}
    for size, reason in (
        (0, "num_tokens=0 must be an integer of at least 1"),
        (2.5, "num_tokens=2.5"),
        (True, "num_tokens=True"),
    ):
        with pytest.raises(ArgumentError, match=reason):
            net.resize_token_embeddings(size)
    with pytest.raises(ArgumentError, match="unknown init='zeros'"):
        net.resize_token_embeddings(20, init="zeros")
    with pytest.raises(IncompatibleConfig, match="num_tokens"):
        net.resize_token_embeddings(10**12)
    with pytest.raises(ArgumentError, match=r"cannot be resized to 3 tokens:\n  - pad_value=7 is fed to the model"):
        AutoregressiveWrapper(net, pad_value=7).resize_token_embeddings(3)
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())
    with pytest.raises(ArgumentError, match=r"Int8Embedding holds int8 rows. Resize the model before quantize"):
        quantize(copy.deepcopy(net)).resize_token_embeddings(20)
    wrapped = copy.deepcopy(net)
    wrapped.token_emb = nn.Sequential(wrapped.token_emb)
    with pytest.raises(
        ArgumentError, match=r"a torch\.nn\.modules\.container\.Sequential holds its rows, which wraps a table"
    ):
        wrapped.resize_token_embeddings(20)
    hooked = language_model()
    hooked.to_logits.register_forward_hook(lambda *_: None)
    with pytest.raises(ArgumentError, match="a modified Linear holds its rows"):
        hooked.resize_token_embeddings(20)


@torch.no_grad()
def test_a_resized_model_of_transformers_is_written_for_it(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2}
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=11, **sizes)).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = from_pretrained(tmp_path / "theirs").resize_token_embeddings(14)
    ours.resize_positions(77)
    ours.save_pretrained(tmp_path / "ours", format="hf")
    back = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "ours").eval()
    assert (back.config.vocab_size, back.config.max_position_embeddings) == (14, 77)
    tokens = torch.tensor([[13, 2, 5]])
    assert_same(back(tokens).logits, ours(tokens))


@pytest.mark.parametrize("offset", [0, 2])
@torch.no_grad()
def test_a_learned_table_is_sliced_grown_or_interpolated(offset, tmp_path):
    net, tokens = language_model(position=Absolute(offset=offset)), ids(1, 9)
    scheme = net.attn_layers.position_schemes[0]
    old, logits = scheme.table.clone(), net(tokens)
    net.resize_positions(24, "fresh", seed=3)
    assert scheme.limit == net.max_seq_len == net.attn_layers.dims.max_seq_len == 24
    assert torch.equal(scheme.table[: 16 + offset], old)
    assert scheme.table[16 + offset :].std() > 0.5
    assert torch.equal(net(tokens), logits)
    net(ids(1, 24))
    net.save_pretrained(tmp_path)
    assert torch.equal(from_pretrained(tmp_path)(ids(1, 24)), net(ids(1, 24)))
    net.resize_positions(16, "slice")
    assert torch.equal(scheme.table, old)
    net.resize_positions(31, "interpolate")
    rows = scheme.table[offset:]
    assert torch.equal(scheme.table[:offset], old[:offset])
    assert_same(rows[::2], old[offset:])
    assert_same(rows[1::2], (old[offset:-1] + old[offset + 1 :]) / 2)
    net.resize_positions(16, "interpolate")
    assert_same(scheme.table, old)


@torch.no_grad()
def test_a_table_with_rows_of_its_own_and_beside_other_schemes_follows(tmp_path):
    net = language_model(position=[Absolute(max_seq_len=16), Alibi()])
    cache = net.new_cache(1)
    net(ids(1, 4), cache=cache)
    net.resize_positions(20, "fresh")
    with pytest.raises(CacheError, match="parameters of the model changed"):
        net(ids(1, 1), cache=cache)
    net.save_pretrained(tmp_path)
    assert torch.equal(from_pretrained(tmp_path)(ids(1, 20)), net(ids(1, 20)))


EXACT = [
    Rope(),
    Alibi(),
    Rope(scaling=Yarn(factor=2.0, original_max_position_embeddings=8)),
    XPos(center=8),
    LogN(trained=8),
]


@pytest.mark.parametrize("position", EXACT, ids=lambda part: part.kind)
@torch.no_grad()
def test_without_a_table_the_length_alone_changes(position, tmp_path):
    net, tokens = language_model(position=["rope", position] if position.kind == "log_n" else position), ids(1, 12)
    want, cache = net(tokens), net.new_cache(1)
    net(tokens[:, :8], cache=cache)
    net.resize_positions(64)
    assert torch.equal(net(tokens), want)
    assert_same(net(tokens[:, 8:], cache=cache), want[:, 8:])
    net.save_pretrained(tmp_path)
    back = from_pretrained(tmp_path)
    assert back.max_seq_len == 64
    assert torch.equal(back(tokens), want)


DEPENDENT = [Rope(scaling=DynamicNtk(original_max_position_embeddings=8)), XPos(), LogN()]


@pytest.mark.parametrize("position", DEPENDENT, ids=lambda part: part.kind)
def test_schemes_that_are_built_for_the_length_are_refused(position):
    net = language_model(position=["rope", position] if position.kind == "log_n" else position)
    with pytest.raises(
        ArgumentError, match=f"{position.kind} is built for max_seq_len=16, and would compute other numbers"
    ):
        net.resize_positions(64)
    assert net.max_seq_len == 16


def test_a_table_that_how_does_not_fit_is_refused():
    net = decoder("absolute", max_seq_len=16)
    for size, how, reason in (
        (20, None, r"the position table has 16 rows, and how= is not set. Use 'fresh'"),
        (8, None, "Use 'slice'"),
        (20, "slice", "how='slice' keeps the first rows, but the position table has only 16"),
        (8, "fresh", "how='fresh' adds rows, but the position table has 16 already"),
        (8, "crop", "unknown how='crop'"),
        (0, "slice", "max_seq_len=0 must be an integer"),
    ):
        with pytest.raises(ArgumentError, match=reason):
            net.resize_positions(size, how)
    assert net.max_seq_len == 16
    net.resize_positions(16)
