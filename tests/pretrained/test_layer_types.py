"""What layers see and how they turn, to and from `config.json`, without a model."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from x_positional.errors import ConfigError, RopeError
from x_positional.pretrained.config_json.codecs import NULL, decimal
from x_positional.pretrained.config_json.layer_types import (
    ALPHA,
    CHUNKED,
    FULL,
    INTERLEAVE,
    PARTIAL_FACTOR,
    ROTARY_DIM,
    SLIDING,
    LayerTypesCodec,
    RopeCodec,
    RopeLayers,
    all_of,
    full_every,
    layer_types,
    no_rope_layers,
    rotary_fraction,
    sliding_from,
)
from x_positional.schemes import NoPE, NtkAlpha, Rope

DEPTH: dict[str, Any] = {"num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 4, "rope_theta": 7.0}
CHUNKS = LayerTypesCodec(default_types=full_every(4, CHUNKED), window=None, chunk="attention_chunk_size")
BOTH = LayerTypesCodec(default_types=all_of(FULL), chunk="attention_chunk_size", switch="use_sliding_window")


@pytest.mark.parametrize(
    ("unlisted", "expected"),
    [
        (all_of(SLIDING), [SLIDING] * 4),
        (full_every(3), [SLIDING, SLIDING, FULL, SLIDING]),
        (full_every("period"), [SLIDING, FULL] * 2),
        (full_every(1), [FULL] * 4),
        (sliding_from("first"), [FULL, FULL, FULL, SLIDING]),
    ],
)
def test_types_of_files_that_list_none(unlisted: Any, expected: list[str]):
    hf = DEPTH | {"period": 2, "first": 3}
    assert layer_types(hf, unlisted) == expected
    assert layer_types(hf | {"layer_types": ["attention", SLIDING] * 2}, unlisted) == [FULL, SLIDING] * 2


def test_chunks():
    fields = CHUNKS.to_fields(DEPTH | {"attention_chunk_size": 8})
    assert fields == {"each.window": [None] * 4, "each.chunk": [8, 8, 8, None]}
    assert CHUNKS.to_hf(fields) == {"layer_types": [CHUNKED] * 3 + [FULL], "attention_chunk_size": 8}


@given(st.lists(st.sampled_from([FULL, SLIDING, CHUNKED]), min_size=4, max_size=4))
def test_there_and_back(types: list[str]):
    lengths = {"sliding_window": 5, "attention_chunk_size": 8, "use_sliding_window": True}
    fields = BOTH.to_fields(DEPTH | lengths | {"layer_types": types})
    assert fields["each.window"] == [5 if kind == SLIDING else None for kind in types]
    assert fields["each.chunk"] == [8 if kind == CHUNKED else None for kind in types]
    said = BOTH.to_hf(fields)
    assert said["layer_types"] == types
    assert said["sliding_window"] == (5 if SLIDING in types else NULL)
    assert said["use_sliding_window"] == (SLIDING in types)
    assert BOTH.to_fields(DEPTH | lengths | said) == fields


def test_a_length_that_is_needed_without_windows():
    fields = {"each.window": [None] * 4, "each.chunk": [None] * 4, "max_seq_len": 64}
    assert LayerTypesCodec(default_types=all_of(FULL)).to_hf(fields)["sliding_window"] is NULL
    assert LayerTypesCodec(default_types=all_of(FULL), window_needed=True).to_hf(fields)["sliding_window"] == 64


def test_a_switch_turns_windows_off():
    hf, sliding = DEPTH | {"sliding_window": 5}, {"layer_types": [SLIDING] * 4}
    assert BOTH.to_fields(hf)["each.window"] == [None] * 4
    assert BOTH.to_fields(hf | sliding | {"use_sliding_window": True})["each.window"] == [5] * 4
    with pytest.raises(ConfigError, match="use_sliding_window=False contradicts layer_types"):
        BOTH.to_fields(hf | sliding)


def test_layers_that_do_not_turn():
    some = no_rope_layers()
    turns = RopeCodec(layers=some)
    listed = turns.to_fields(DEPTH | {"no_rope_layers": [1, 0, 0, 1], "no_rope_layer_interval": 2})
    assert listed["each.position"] == [[Rope(theta=7.0)], [NoPE()], [NoPE()], [Rope(theta=7.0)]]
    assert some.which(DEPTH | {"no_rope_layer_interval": 2}) == [True, False, True, False]
    said = turns.to_hf(listed | {"layers.head_dim": 8})
    assert said["no_rope_layers"] == [1, 0, 0, 1]
    assert said["rope_parameters"]["rope_theta"] == 7.0


def test_where_no_layer_turns_nothing_is_said_of_how():
    still = RopeCodec(layers=RopeLayers(which=lambda hf: [False] * 4, to_hf=lambda rotated: {"rotated": rotated}))
    fields = still.to_fields(DEPTH)
    assert fields["each.position"] == [[NoPE()]] * 4
    assert still.to_hf(fields | {"layers.head_dim": 8}) == {"rotated": [False] * 4}


def test_keys_that_a_family_does_not_read_are_not_read():
    hf = DEPTH | {ROTARY_DIM: 4, INTERLEAVE: True}
    assert RopeCodec().to_fields(hf)["layers.position"] == [Rope(theta=7.0)]
    channels = RopeCodec(reads=(ROTARY_DIM, INTERLEAVE))
    found = channels.to_fields(hf)["layers.position"]
    assert found == [Rope(theta=7.0, dim=4, interleaved=True)]
    said = channels.to_hf({"each.position": [found] * 4, "layers.head_dim": 8})
    assert (said[ROTARY_DIM], said[INTERLEAVE]) == (4, True)


def test_alpha_is_refused_where_it_is_not_read():
    hf = DEPTH | {"rope_scaling": {"type": "dynamic", "factor": 1.0, "alpha": 50.0}, "max_position_embeddings": 64}
    read = RopeCodec(reads=(ALPHA,)).to_fields(hf)
    assert read["layers.position"] == [Rope(theta=7.0, scaling=NtkAlpha(alpha=50.0))]
    with pytest.raises(RopeError, match="alpha: transformers ignores the key in this family"):
        RopeCodec().to_fields(hf)


@pytest.mark.parametrize("place", ["beside", "inside"])
def test_a_width_in_both_forms_is_one_width(place: str):
    codec, hf = RopeCodec(reads=(PARTIAL_FACTOR, ROTARY_DIM)), DEPTH | {"head_dim": 8, ROTARY_DIM: 6}
    given = (
        {PARTIAL_FACTOR: 0.5} if place == "beside" else {"rope_parameters": {PARTIAL_FACTOR: 0.5, "rope_theta": 7.0}}
    )
    with pytest.raises(RopeError, match=r"rotary_dim=6 contradicts .* which is 4 of 8 channels"):
        codec.to_fields(hf | given)
    assert codec.to_fields(hf | {PARTIAL_FACTOR: 0.75})["layers.position"] == [Rope(theta=7.0, dim=6)]


@given(st.integers(1, 128), st.integers(1, 256))
def test_a_share_is_read_back_as_as_many_channels(half: int, head_dim: int):
    turned = min(2 * half, head_dim)
    share = rotary_fraction(turned, head_dim)
    assert (share is None) == (turned == head_dim)
    assert int(head_dim * (1.0 if share is None else share)) == turned


@given(st.integers(1, 10**6))
def test_numbers_come_back_from_a_division_and_a_root(n: int):
    assert decimal(1 / (1 / n)) == n
    assert decimal((n**-0.5) ** -2) == n
    assert decimal(1 / (1 / (n / 8))) == n / 8
