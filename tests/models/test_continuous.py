"""Continuous inputs: widths, caches, timestamps as positions, and what is refused."""

import pytest
import torch
from torch import Tensor

from tests.support.generation_models import SCHEMES, equal, perturbed
from x_positional import ContinuousTransformerWrapper, Decoder, Encoder
from x_positional.config.models import ContinuousConfig
from x_positional.errors import FlagError, InputError, PositionError

CONTINUOUS = ["rope", "xpos", "polar", "alibi", "dynamic", "sinusoidal", "scaled_sinusoidal"]
LAYERS = {"dim": 26, "depth": 2, "heads": 3, "attn_kv_heads": 1, "attn_dim_head": 12}


def build(position="rope", layers=Decoder, **wrapper) -> ContinuousTransformerWrapper:
    torch.manual_seed(0)
    options = {"dim_in": 5, "dim_out": 3, "max_seq_len": 40, **wrapper}
    model = ContinuousTransformerWrapper(attn_layers=layers(**LAYERS, position=position), **options)
    perturbed(model)
    return model


def series(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def timestamps(batch: int, length: int, seed: int = 3) -> Tensor:
    """Irregular, increasing, fractional."""
    return torch.rand(batch, length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).cumsum(-1) * 3


@pytest.mark.parametrize(
    ("dims", "width_in", "width_out"),
    [
        ({}, 5, 3),
        ({"dim_in": None}, 26, 3),
        ({"dim_out": None}, 5, 26),
        ({"dim_in": None, "dim_out": None}, 26, 26),
        ({"post_emb_norm": True}, 5, 3),
    ],
)
def test_widths(dims: dict, width_in: int, width_out: int) -> None:
    model, x = build(**dims), series(2, 7, width_in)
    assert model(x).shape == (2, 7, width_out)
    embeddings = model(x, return_embeddings=True)
    assert embeddings.shape == (2, 7, 26)
    equal(embeddings if model.project_out is None else model.project_out(embeddings), model(x))


def test_the_projection_in_is_applied_and_the_norm_after_it() -> None:
    model, bare = build(post_emb_norm=True), build(dim_in=None, dim_out=None)
    x = series(2, 7, 5)
    bare.attn_layers.load_state_dict(model.attn_layers.state_dict())
    projected = torch.nn.functional.layer_norm(x @ model.project_in.weight.t(), (26,), model.emb_norm.gain)
    equal(model(x), bare(projected) @ model.project_out.weight.t())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_cached_equals_full_for_every_scheme(scheme: str) -> None:
    model, x = build(scheme), series(2, 13, 5)
    full = model(x)
    for chunk in (1, 4):
        for cache in (model.new_cache(2), model.new_cache(2, max_len=13)):
            equal(torch.cat([model(part, cache=cache) for part in x.split(chunk, 1)], 1), full)


@pytest.mark.parametrize("scheme", CONTINUOUS)
def test_timestamps_change_the_output_and_decode_as_in_one_pass(scheme: str) -> None:
    model, x, times = build(scheme), series(2, 13, 5), timestamps(2, 13)
    full = model(x, positions=times)
    assert (full - model(x)).abs().max() > 1e-4
    moved = times.clone()
    moved[:, 6:] += 0.25  # what comes before does not see it
    later = model(x, positions=moved)
    equal(later[:, :6], full[:, :6])
    assert (later - full)[:, 6:].abs().max() > 1e-5
    for chunk in (1, 4):
        cache = model.new_cache(2)
        parts = zip(x.split(chunk, 1), times.split(chunk, 1), strict=True)
        equal(torch.cat([model(part, positions=when, cache=cache) for part, when in parts], 1), full)


@pytest.mark.parametrize("scheme", CONTINUOUS)
def test_whole_number_timestamps_are_the_positions(scheme: str) -> None:
    model, x = build(scheme), series(2, 9, 5)
    equal(model(x, positions=torch.arange(9).double()), model(x), 1e-5)


@pytest.mark.parametrize("scheme", ["rope", "alibi", "dynamic"])
def test_only_time_differences_matter_to_relative_schemes(scheme: str) -> None:
    model, x, times = build(scheme), series(2, 9, 5), timestamps(2, 9)
    equal(model(x, positions=times + 7.5), model(x, positions=times), 1e-5)


@pytest.mark.parametrize("left", [False, True])
def test_a_padded_series_equals_itself_alone(left: bool) -> None:
    model, rows = build(layers=Encoder), [series(n, 5, seed=n) for n in (8, 3, 5)]
    x, mask = series(3, 8, 5) * 50, torch.zeros(3, 8, dtype=torch.bool)
    places = [slice(8 - len(r), 8) if left else slice(0, len(r)) for r in rows]
    for i, (row, place) in enumerate(zip(rows, places, strict=True)):
        x[i, place], mask[i, place] = row, True
    out = model(x, mask=mask)
    for i, (row, place) in enumerate(zip(rows, places, strict=True)):
        equal(out[i, place], model(row[None])[0])


def test_packed_series_do_not_see_each_other() -> None:
    model, x = build("alibi"), series(1, 9, 5)
    out = model(x, document_ids=torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1]))
    equal(out, torch.cat([model(x[:, :4]), model(x[:, 4:])], 1))


def test_a_decoder_reads_a_context() -> None:
    torch.manual_seed(0)
    layers = Decoder(**LAYERS, position="rope", cross_attend=True)
    model = perturbed(ContinuousTransformerWrapper(attn_layers=layers, dim_in=5, dim_out=3))
    x, context, mask = series(2, 6, 5), series(2, 4, 26, seed=2), torch.tensor([[True] * 4, [True] * 2 + [False] * 2])
    out = model(x, context=context, context_mask=mask)
    equal(out[1:], model(x[1:], context=context[1:, :2]))
    assert (out - model(x, context=context * 2, context_mask=mask)).abs().max() > 1e-4
    cache = model.new_cache(2)
    pieces = [
        model(part, context=None if i else context, context_mask=None if i else mask, cache=cache)
        for i, part in enumerate(x.split(2, 1))
    ]
    equal(torch.cat(pieces, 1), out)


def test_without_max_seq_len_there_is_no_table_and_with_it_a_learned_one() -> None:
    layers = {"dim": 26, "depth": 1, "heads": 1}
    free = ContinuousTransformerWrapper(attn_layers=Decoder(**layers), dim_in=5)
    assert [type(s).__name__ for s in free.attn_layers.position_schemes] == ["NoPosition"]
    table = ContinuousTransformerWrapper(attn_layers=Decoder(**layers), dim_in=5, max_seq_len=12)
    assert [type(s).__name__ for s in table.attn_layers.position_schemes] == ["LearnedAbsolute"]
    with pytest.raises(PositionError, match=r"12 rows"):
        table(torch.zeros(1, 13, 5))
    with pytest.raises(ValueError, match="no length is set"):
        ContinuousTransformerWrapper(attn_layers=Decoder(**layers, position="absolute"), dim_in=5)


def test_its_config_makes_it_again() -> None:
    model = build("t5", emb_dropout=0.25)
    config = ContinuousConfig.model_validate(model.config.model_dump())
    assert config == model.config
    assert (config.dim_in, config.dim_out, config.max_seq_len, config.emb_dropout) == (5, 3, 40, 0.25)
    assert "t5" in model.describe().lower()


@pytest.mark.parametrize(
    ("x", "options", "error", "message"),
    [
        (series(2, 7, 6), {}, InputError, r"\[batch, tokens, 5\]; got \[2, 7, 6\]"),
        (series(7, 5), {}, InputError, r"got \[7, 5\]"),
        (series(2, 7, 5).long(), {}, InputError, "torch.int64"),
        (series(2, 7, 5), {"mask": torch.ones(2, 7)}, InputError, "must be bool"),
        (series(2, 7, 5), {"positions": timestamps(2, 6)}, InputError, "positions must have shape"),
        (series(2, 7, 5), {"context": series(2, 3, 26)}, InputError, "no cross-attention"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(x: Tensor, options: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        build()(x, **options)


@pytest.mark.parametrize("scheme", ["t5", "absolute"])
def test_timestamps_are_refused_where_a_table_is_looked_up(scheme: str) -> None:
    with pytest.raises(PositionError, match=r"needs integers.*continuous scheme: rope"):
        build(scheme)(series(2, 7, 5), positions=timestamps(2, 7))


@pytest.mark.parametrize("scheme", ["none", "cope", "forgetting"])
def test_positions_that_nothing_reads_are_refused(scheme: str) -> None:
    with pytest.raises(PositionError, match="would be ignored"):
        build(scheme)(series(2, 7, 5), positions=timestamps(2, 7))


def test_flags_that_it_has_not_are_refused() -> None:
    with pytest.raises(FlagError, match="did you mean"):
        build(dim_ni=5)
    with pytest.raises(FlagError, match="tie_embedding"):
        build(tie_embedding=True)
