"""What a caller can get wrong is refused on the host: the value, the reason and the way out; and nothing is lost by it."""

import numpy as np
import pytest
import torch

from tests.support.config_models import SIZES, B, L, T, V, ids, model_of
from tests.support.rounding import assert_same
from x_positional import (
    AutoregressiveWrapper,
    ContinuousTransformerWrapper,
    CrossAttender,
    Decoder,
    Encoder,
    TransformerWrapper,
    ViTransformerWrapper,
    XTransformer,
)
from x_positional.errors import FlagError, InputError, PositionError
from x_positional.models.language import TokenEncoder

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


# Types


def test_lists_and_arrays_are_tokens_masks_positions_and_documents(rope: TransformerWrapper) -> None:
    mask = torch.ones(B, T, dtype=torch.bool)
    mask[0, 3:] = False
    documents, positions = torch.tensor([[0, 0, 1, 1, 1]] * B), torch.arange(T) * 2
    with torch.no_grad():
        for options in ({"mask": mask}, {"document_ids": documents}, {"positions": positions}):
            expected = rope(ids(), **options)
            (name, value), *_ = options.items()
            for given in (value.tolist(), value.numpy()):
                assert torch.equal(rope(ids().numpy(), **{name: given}), expected)
                assert torch.equal(rope(ids().tolist(), **{name: given}), expected)
        packed = rope(ids(), document_ids=documents)
        for lens in ([2, 3], [[2, 3]] * B, np.array([2, 3]), torch.tensor([[2, 3]] * B)):
            assert torch.equal(rope(ids(), seq_lens=lens), packed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": "abc"}, "tokens must be a tensor, a numpy array or a list of numbers"),
        ({"tokens": [[1], [2, 3]]}, "tokens must be a tensor.*rows are equally long"),
        ({"tokens": [[2**70]]}, "tokens must be a tensor"),
        ({"tokens": ids().to_sparse()}, "tokens must be a dense tensor"),
        ({"mask": "abc"}, "mask must be a tensor"),
        ({"mask": {}}, "mask must be a tensor"),
        ({"mask": torch.zeros(B, T, dtype=torch.bool)}, "mask hides every token of the batch.*~mask"),
        ({"positions": torch.full((B, T), -1)}, "positions of -1 hide every token"),
        ({"positions": "abc"}, "positions must be a tensor"),
        ({"positions": torch.tensor([0.0, 1, float("nan"), 3, 4])}, r"positions\[0, 2\] is nan.*finite number"),
        ({"positions": torch.tensor([[0.0, 1, 2, float("inf"), 4]] * B)}, r"positions\[0, 3\] is inf"),
        ({"document_ids": "abc"}, "document_ids must be a tensor"),
        ({"seq_lens": "abc"}, "seq_lens must be one list of lengths"),
        ({"seq_lens": 5}, "seq_lens must be one list of lengths"),
        ({"seq_lens": [True, 4]}, r"seq_lens must be positive integers; got \[True, 4\]"),
        ({"seq_lens": [[2, 3], [True, 4]]}, r"seq_lens must be positive integers; got \[True, 4\]"),
        ({"seq_lens": torch.ones(T, dtype=torch.bool)}, "seq_lens must be positive integers"),
        ({"seq_lens": [2.0, 3.0]}, "seq_lens must be positive integers"),
        ({"seq_lens": ["a", 4]}, "seq_lens must be positive integers|seq_lens must be one list"),
        ({"seq_lens": [[2, 3], 5]}, "seq_lens must be one list of lengths"),
        ({"cache": True}, r"cache=True must be a cache from this model's new_cache\(batch_size\)"),
        ({"cache": {}}, r"cache=\{\} must be a cache"),
        ({"context": "abc"}, "no cross-attention"),
    ],
)
def test_arguments_of_a_wrong_type(rope: TransformerWrapper, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        rope(**{"tokens": ids(), **options})


@pytest.mark.parametrize("position", CONTINUOUS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_positions_that_are_not_finite_are_refused_by_every_scheme(position: str, value: float) -> None:
    positions = torch.arange(float(T)).repeat(B, 1)
    positions[1, 2] = value
    model = model_of(position)
    with pytest.raises(InputError, match=r"positions\[1, 2\] is"):
        model(ids(), positions=positions)
    layers = ContinuousTransformerWrapper(dim_in=3, attn_layers=Encoder(**SIZES, position="rope"))
    with pytest.raises(InputError, match=r"positions\[1, 2\] is"):
        layers(torch.zeros(B, T, 3), positions=positions)


def test_context_of_a_wrong_type() -> None:
    model, context = model_of(cross_attend=True), torch.randn(B, 3, 16)
    with pytest.raises(InputError, match="context must be a float tensor"):
        model(ids(), context="abc")
    with pytest.raises(InputError, match=r"context_positions\[0, 1\] is nan"):
        model(ids(), context=context, context_positions=torch.tensor([0, float("nan"), 1]))
    with pytest.raises(InputError, match="context_mask must be bool"):
        model(ids(), context=context, context_mask=torch.ones(B, 3))
    with pytest.raises(InputError, match="context_mask is on meta, but context is on cpu"):
        model(ids(), context=context, context_mask=torch.ones(B, 3, dtype=torch.bool, device="meta"))
    with torch.no_grad():
        mask = torch.tensor([[True, True, False]] * B)
        assert torch.equal(
            model(ids(), context=context, context_mask=mask.tolist()), model(ids(), context=context, context_mask=mask)
        )


@pytest.mark.parametrize("layers", [{"dim": 16, "depth": 1}, "decoder", None, Decoder, Decoder(**SIZES).config])
def test_attn_layers_that_are_no_layers(layers) -> None:
    kind = type(layers).__name__
    for build in (
        lambda: TransformerWrapper(num_tokens=V, max_seq_len=L, attn_layers=layers),
        lambda: ContinuousTransformerWrapper(max_seq_len=L, attn_layers=layers),
        lambda: ViTransformerWrapper(image_size=8, patch_size=4, attn_layers=layers),
    ):
        with pytest.raises(FlagError, match=f"attn_layers must be an Encoder, Decoder or CrossAttender; got {kind}"):
            build()


@pytest.mark.parametrize("images", [[torch.zeros(3, 8, 8), 2], None, "abc", np.zeros((1, 3, 8, 8))])
def test_images_that_are_no_tensor(images) -> None:
    model = ViTransformerWrapper(image_size=8, patch_size=4, attn_layers=Encoder(**SIZES))
    with pytest.raises(InputError, match=r"pixel_values must be a float tensor .*, or a list of tensors"):
        model(images)


def test_models_without_logits_are_not_autoregressive() -> None:
    layers = Decoder(**SIZES, position="rope")
    for net in (
        ContinuousTransformerWrapper(dim_in=3, dim_out=3, attn_layers=layers),
        layers,
        torch.nn.Linear(3, 3),
        None,
    ):
        with pytest.raises(InputError, match=f"needs a TransformerWrapper; got {type(net).__name__}.*F.mse_loss"):
            AutoregressiveWrapper(net)
    encoder = TokenEncoder.from_config(model_of().config)
    with pytest.raises(InputError, match="needs logits, but TokenEncoder has none"):
        AutoregressiveWrapper(encoder)
    for name, value in (("pad_value", "a"), ("pad_value", True), ("ignore_index", 1.5)):
        with pytest.raises(InputError, match=f"{name}={value!r}"):
            AutoregressiveWrapper(model_of(), **{name: value})


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
