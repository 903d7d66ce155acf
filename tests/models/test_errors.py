"""What a caller can get wrong is refused on the host: the value, the reason and the way out; and nothing is lost by it."""

import pytest
import torch

from tests.support.config_models import SIZES, B, L, T, V, ids, model_of
from tests.support.rounding import assert_same
from x_positional import (
    ContinuousTransformerWrapper,
    CrossAttender,
    Decoder,
    Encoder,
    TransformerWrapper,
    XTransformer,
)
from x_positional.errors import FlagError, InputError, PositionError

CONTINUOUS = ("rope", "xpos", "polar", "alibi", "dynamic", "sinusoidal", "scaled_sinusoidal")


@pytest.fixture(scope="module")
def rope() -> TransformerWrapper:
    return model_of()


# Tokens


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (
            torch.tensor([[1, V]]),
            r"token id 11 is outside 0\.\.10 \(num_tokens=11\)\. Pad with a valid id and pass mask=",
        ),
        (torch.tensor([[1, 99], [2, 3]]), r"token id 99 is outside 0\.\.10"),
        (torch.tensor([[-1, 3]]), r"token id -1 is outside 0\.\.10"),
        (torch.tensor([[-100, V]]), r"token id -100"),
        (torch.tensor([[1.0, 2.0]]), r"integer ids; got torch\.float32\. Use tokens\.long\(\)"),
        (torch.tensor([[1.0, 2.0]]).half(), r"integer ids; got torch\.float16"),
        (torch.tensor([[True, False]]), r"integer ids; got torch\.bool"),
        (torch.tensor([[1j, 2]]), r"integer ids; got torch\.complex"),
        (torch.tensor([1, 2]), r"shape \[batch, tokens\].*got \[2\]"),
        (torch.tensor(1), r"shape \[batch, tokens\].*got \[\]"),
        (ids().unsqueeze(-1), r"got \[2, 5, 1\]"),
        (ids()[:, :0], r"neither of them empty; got \[2, 0\]"),
        (ids()[:0], r"neither of them empty; got \[0, 5\]"),
    ],
)
def test_tokens_that_are_no_tokens(rope: TransformerWrapper, tokens: torch.Tensor, message: str) -> None:
    cache = rope.new_cache(max(1, len(tokens)) if tokens.ndim else 1)
    for given in (None, cache):
        with pytest.raises(InputError, match=message):
            rope(tokens, cache=given)
    assert cache.span == 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_ids_of_every_integer_type_are_read(rope: TransformerWrapper, dtype: torch.dtype) -> None:
    with torch.no_grad():
        assert torch.equal(rope(ids().to(dtype)), rope(ids()))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(B, T, 15), r"expected float embeddings \[batch, tokens, dim=16\]; got \[2, 5, 15\]"),
        (torch.zeros(B, T, 16).long(), r"got \[2, 5, 16\] of torch\.int64"),
        (torch.zeros(T, 16), r"got \[5, 16\]"),
    ],
)
def test_embeddings_of_the_wrong_shape(x: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Decoder(**SIZES)(x)


def test_continuous_inputs_of_the_wrong_width() -> None:
    model = ContinuousTransformerWrapper(dim_in=3, attn_layers=Encoder(**SIZES, position="rope"))
    with pytest.raises(InputError, match=r"expected floats \[batch, tokens, 3\]; got \[2, 5, 4\]"):
        model(torch.zeros(B, T, 4))


# Masks


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(B, T), r"mask must be bool, True = keep; got torch\.float32\. Use mask\.bool\(\)"),
        (torch.ones(B, T, dtype=torch.long), r"mask must be bool.*torch\.int64"),
        (torch.ones(B, T + 1, dtype=torch.bool), r"\[batch, tokens\] = \[2, 5\]; got \[2, 6\]"),
        (torch.ones(1, T, dtype=torch.bool), r"got \[1, 5\]"),
        (torch.ones(T, dtype=torch.bool), r"got \[5\]"),
        (torch.ones(B, 1, T, T, dtype=torch.bool), r"got \[2, 1, 5, 5\]"),
    ],
)
def test_masks_of_the_wrong_shape_or_dtype(rope: TransformerWrapper, mask: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        rope(ids(), mask=mask)


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        (torch.zeros(B, T), r"document_ids must be integers, one per token; got torch\.float32"),
        (torch.zeros(B, T, dtype=torch.bool), r"document_ids must be integers"),
        (torch.zeros(B, T + 1, dtype=torch.long), r"\[batch, tokens\] = \[2, 5\]; got \[2, 6\]"),
    ],
)
def test_documents_of_the_wrong_shape_or_dtype(rope: TransformerWrapper, documents: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        rope(ids(), document_ids=documents)


# Positions


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        (torch.zeros(B, T, dtype=torch.bool), r"positions must be integers or floats; got torch\.bool"),
        (torch.zeros(B, T, dtype=torch.complex64), r"positions must be integers or floats; got torch\.complex64"),
        (torch.zeros(B, T + 1), r"with batch=2 and tokens=5; got \[2, 6\]"),
        (torch.zeros(3, T), r"got \[3, 5\]"),
        (torch.tensor(3), r"\[tokens\], \[batch, tokens\] or \[batch, tokens, axes\].*got \[\]"),
        (torch.zeros(B, 1, T, 1), r"got \[2, 1, 5, 1\]"),
    ],
)
def test_positions_of_the_wrong_dtype_or_rank(rope: TransformerWrapper, positions: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        rope(ids(), positions=positions)


def test_more_axes_than_a_scheme_has(rope: TransformerWrapper) -> None:
    with pytest.raises(
        PositionError, match=r"positions have 2 axes, but RopeEmbedding takes 1\. Pass \[batch, tokens\]"
    ):
        rope(ids(), positions=torch.zeros(B, T, 2))


@pytest.mark.parametrize("position", ["absolute", "t5"])
def test_fractions_are_refused_by_tables(position: str) -> None:
    with pytest.raises(
        PositionError, match=r"torch\.float32, but .* indexes a table with them.*positions\.long\(\), or use a cont"
    ):
        model_of(position)(ids(), positions=torch.arange(T) / 2)


@pytest.mark.parametrize("position", CONTINUOUS)
def test_fractions_work_where_positions_are_continuous(position: str) -> None:
    model, halves = model_of(position), torch.arange(T) / 2
    with torch.no_grad():
        whole, half = model(ids()), model(ids(), positions=halves)
        assert half.isfinite().all()
        assert not torch.allclose(whole, half, atol=1e-6)
        assert_same(whole, model(ids(), positions=halves * 2))  # whole floats are integers


@pytest.mark.parametrize("position", ["none", "cope", "forgetting"])
def test_positions_that_would_change_nothing_are_refused(position: str) -> None:
    with pytest.raises(PositionError, match=r"positions would be ignored: .* does not read them\. Leave positions out"):
        model_of(position)(ids(), positions=torch.arange(T) + 1)


@pytest.mark.parametrize("position", ["absolute", ["absolute", "t5"]])
def test_positions_below_zero_have_no_row(position) -> None:
    model = model_of(position)
    with pytest.raises(PositionError, match=r"position -3 is out of range: the rows of LearnedAbsolute start at 0"):
        model(ids(), positions=torch.arange(T) - 3)
    with torch.no_grad():
        padded = model(ids(), positions=torch.tensor([-1, -1, 0, 1, 2]))  # -1 is no token
        assert_same(padded[:, 2:], model(ids()[:, 2:]))


# Lengths


@pytest.mark.parametrize("position", ["absolute", ["alibi", "absolute"]])
def test_longer_than_the_table(position) -> None:
    model = model_of(position)
    message = (
        r"position 9 is out of range: LearnedAbsolute has 9 rows \(0 to 8\)\. Pass at most 9 tokens, build the model"
    )
    with pytest.raises(PositionError, match=message):
        model(ids(length=L + 1))
    with pytest.raises(PositionError, match=message):
        model(ids(), positions=torch.arange(T) + 5)
    assert model(ids(length=L)).isfinite().all()


def test_padding_does_not_count_towards_the_length() -> None:
    model = model_of("absolute")
    mask = torch.ones(B, L + 2, dtype=torch.bool)
    mask[:, :2] = False
    assert model(ids(length=L + 2), mask=mask)[:, 2:].isfinite().all()


# Context


def test_context_where_there_is_none_to_read_and_none_where_there_is() -> None:
    context = torch.zeros(B, 3, 16)
    with pytest.raises(InputError, match=r"no cross-attention\. Build it with cross_attend=True"):
        model_of()(ids(), context=context)
    crossing = model_of(cross_attend=True)
    with pytest.raises(InputError, match=r"pass context=\[batch, tokens, dim=16\]"):
        crossing(ids())
    for wrong in (torch.zeros(3, 3, 16), torch.zeros(B, 16), torch.zeros(B, 3, 15), torch.zeros(B, 0, 16)):
        with pytest.raises(
            InputError, match=r"context must have shape \[batch=2, tokens, dim=16\], with at least one token; got"
        ):
            crossing(ids(), context=wrong)
    with pytest.raises(InputError, match="document_ids cannot be combined with a context"):
        crossing(ids(), context=context, document_ids=torch.zeros(B, T, dtype=torch.long))
    with pytest.raises(PositionError, match="context_positions were given, but CopeScores needs a causal mask"):
        model_of("cope", cross_attend=True)(ids(), context=context, context_positions=torch.arange(3))


# Flags


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Decoder(**SIZES, rotary_pos_em=True), r"rotary_pos_em is not a flag; did you mean rotary_pos_emb\?"),
        (lambda: Decoder(**SIZES, flash=True, attn_flsh=True), r"did you mean attn_flash\?"),
        (lambda: Encoder(**SIZES, kv_head=2), r"did you mean kv_heads\?"),
        (lambda: CrossAttender(**SIZES, rope=True), "rope is not a flag"),
        (
            lambda: TransformerWrapper(num_tokens=V, max_seq_len=L, attn_layers=Decoder(**SIZES), emb_drpout=0.1),
            r"did you mean emb_dropout\?",
        ),
        (lambda: ContinuousTransformerWrapper(attn_layers=Decoder(**SIZES), dimin=3), r"did you mean dim_in\?"),
        (
            lambda: XTransformer(dim=16, enc_num_tokens=V, enc_dpth=1),
            r"enc_dpth is not a flag; did you mean enc_depth\?",
        ),
        (
            lambda: XTransformer(dim=16, num_tokens=V),
            "num_tokens is not a flag of XTransformer; use enc_num_tokens, dec_num",
        ),
        (lambda: Decoder(**SIZES, macaron=True), r"macaron=True is refused\. .*Use a wider feedforward"),
    ],
)
def test_mistyped_flags_answer_with_the_nearest(build, message: str) -> None:
    with pytest.raises(FlagError, match=message):
        build()
