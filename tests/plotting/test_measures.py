"""What the pictures show is what the schemes do: every curve and map against its formula in float64."""

import math

import pytest
import torch
from torch import Tensor, nn

from x_positional import Alibi, Dynamic, Forgetting, Rope, XPos
from x_positional.config.layers import LayersConfig
from x_positional.config.models import ModelConfig
from x_positional.models.language import build_model
from x_positional.plotting.biases import bias_map, bias_of_distance, farthest
from x_positional.plotting.contexts import distance_grid
from x_positional.plotting.draw_embeddings import similarity, table
from x_positional.plotting.draw_products import equal_heads, products, upper_bound
from x_positional.plotting.rotation import cos_sin, find_pairs, frequencies, phasors
from x_positional.plotting.schemes import PlottedScheme, Stage, plotted_schemes
from x_positional.pretrained.rope import DynamicNtk, Linear, Proportional, Yarn

HEADS, DIM, WIDTH, LENGTH = 6, 40, 12, 37


def plotted(position, length: int = LENGTH, **layers) -> PlottedScheme:
    """One scheme, its parameters perturbed."""
    sizes = {"kind": "decoder", "dim": DIM, "depth": 2, "heads": HEADS, "head_dim": WIDTH} | layers
    found = plotted_schemes(LayersConfig(position=position, **sizes), length)[0]
    generator = torch.Generator().manual_seed(3)
    for parameter in found.scheme.parameters():
        parameter.data += 0.4 * torch.randn(parameter.shape, generator=generator)
    return found


def pair_speeds(width: int = WIDTH, theta: float = 1e4) -> Tensor:
    return theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)


def close(found: Tensor, wanted: Tensor, **bounds) -> None:
    torch.testing.assert_close(found.double(), wanted.double(), **({"rtol": 0, "atol": 2e-6} | bounds))


SLOPES = torch.tensor([2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8, 2.0**-1, 2.0**-3], dtype=torch.float64)


def test_the_map_of_alibi_is_minus_slope_times_distance_below_the_diagonal():
    added = bias_map(plotted("alibi"), 23)
    i = torch.arange(23)
    distance = i[:, None] - i
    assert torch.equal(added.values.isnan(), (distance < 0).expand(HEADS, -1, -1))
    close(added.values.nan_to_num(), torch.where(distance >= 0, -SLOPES[:, None, None] * distance, 0))
    assert not added.content_dependent
    assert not added.randomized


def test_a_window_hides_what_is_outside_it_and_an_encoder_hides_nothing():
    i = torch.arange(23)
    distance = i[:, None] - i
    hidden = bias_map(plotted("alibi", window=5), 23).values.isnan()
    assert torch.equal(hidden, ((distance < 0) | (distance >= 5)).expand(HEADS, -1, -1))
    both = bias_map(plotted(Alibi(variant="asymmetric"), kind="encoder"), 23)
    close(both.values, -SLOPES[:, None, None] * distance.abs() * torch.where(distance < 0, 0.5, 1.0))


def test_the_curves_of_alibi_reach_four_times_the_trained_length():
    found = plotted("alibi")
    distances = distance_grid(farthest(found), 1024)
    assert int(distances.max()) == 4 * LENGTH
    close(bias_of_distance(found, distances).values, -SLOPES[:, None] * distances)
    encoder = plotted("alibi", kind="encoder")
    distances = distance_grid(farthest(encoder), 50, both_sides=True)
    assert (int(distances.min()), int(distances.max()), len(distances)) == (-4 * LENGTH, 4 * LENGTH, 51)
    close(bias_of_distance(encoder, distances).values, -SLOPES[:, None] * distances.abs())


def test_the_curves_of_t5_are_rows_of_its_table():
    found = plotted({"kind": "t5", "num_buckets": 8, "max_distance": 20})
    weights = found.scheme.table.detach()
    distances = torch.arange(4 * LENGTH + 1)
    buckets = torch.tensor([_t5_bucket(d) for d in distances.tolist()])
    assert torch.equal(bias_of_distance(found, distances).values, weights.t()[:, buckets])
    below = bias_map(found, 30).values
    assert torch.equal(below[:, 29], weights.t()[:, buckets[:30]].flip(-1))


def _t5_bucket(distance: int) -> int:
    """8 buckets to 20: distance itself below 4, then k more once (distance / 4)^4 >= 5^k."""
    return distance if distance < 4 else min(7, 4 + sum(distance**4 >= 4**4 * 5**k for k in (1, 2, 3)))


def test_the_curves_of_dynamic_bias_are_its_mlp():
    found = plotted(Dynamic(dim=7, log_distance=True))
    distances = distance_grid(4 * LENGTH, 60)
    mlp = found.scheme.mlp.double()
    wanted = mlp(distances.double().log1p()[:, None]).detach().t()
    mlp.float()
    close(bias_of_distance(found, distances).values, wanted, atol=2e-5)


def test_forget_gates_of_one_openness_are_alibi():
    found = plotted(Forgetting())
    nn.init.zeros_(found.scheme.gate.weight)
    fade = -torch.nn.functional.logsigmoid(found.scheme.gate.bias.detach().double())
    distances = distance_grid(farthest(found), 40)
    added = bias_of_distance(found, distances)
    close(added.values, -fade[:, None] * distances, atol=1e-5)
    assert added.content_dependent
    close(bias_map(found, 9).values[:, 8], -fade[:, None] * torch.arange(8, -1, -1), atol=1e-5)


def test_forget_gates_add_up_along_a_text():
    values = bias_map(plotted(Forgetting()), 25).values
    close(values[:, 20, 3], values[:, 20, 11] + values[:, 11, 3], atol=1e-5)
    assert values[:, 20, 3].std() > 0.1
    assert torch.equal(values.diagonal(dim1=1, dim2=2), torch.zeros(HEADS, 25))


def test_counted_positions_with_one_vector_for_all_give_each_query_one_number():
    found = plotted("cope")
    assert not bias_map(found, 9).randomized
    found.scheme.table.data[:] = found.scheme.table.data[:1]
    values = bias_map(found, 15).values
    for row in (3, 14):
        seen = values[:, row, : row + 1]
        close(seen, seen[:, :1].expand_as(seen), atol=1e-5)
    assert values[:, 14, 0].std() > 0.1


def test_what_adds_nothing_at_the_start_is_drawn_with_random_parameters_and_says_so():
    found = plotted_schemes(LayersConfig(dim=DIM, depth=2, heads=HEADS, head_dim=WIDTH, position="cope"), LENGTH)[0]
    added = bias_map(found, 12)
    assert added.randomized
    assert added.values.nan_to_num().std() > 0.1
    assert not found.scheme.table.any()
    assert torch.equal(added.values.nan_to_num(), bias_map(found, 12).values.nan_to_num())


ASKED = torch.cat([torch.arange(60), torch.tensor([100, 4 * LENGTH])])


@pytest.mark.parametrize(
    ("position", "wanted"),
    [
        ("rope", lambda d: (d * pair_speeds()).cos().mean(-1)),
        (Rope(interleaved=True, theta=500.0), lambda d: (d * pair_speeds(theta=500.0)).cos().mean(-1)),
        (Rope(dim=4), lambda d: ((d * pair_speeds(4)).cos().sum(-1) * 2 + 8) / WIDTH),
        (Rope(scaling=Linear(factor=3)), lambda d: (d * pair_speeds() / 3).cos().mean(-1)),
        (
            Rope(scaling=Yarn(factor=1, original_max_position_embeddings=LENGTH, attention_factor=1.3)),
            lambda d: 1.69 * (d * pair_speeds()).cos().mean(-1),
        ),
        (
            XPos(scale_base=60.0),
            lambda d: (
                (d * pair_speeds()).cos() * ((torch.arange(0, 1, 2 / WIDTH).double() + 0.4) / 1.4) ** (d / 60)
            ).mean(-1),
        ),
        (
            Rope(scaling=DynamicNtk(original_max_position_embeddings=LENGTH, length_policy="recompute")),
            lambda d: (d * pair_speeds(theta=1e4 * ((d + 1) / LENGTH).clamp(min=1) ** 1.2)).cos().mean(-1),
        ),
    ],
    ids=["rope", "interleaved", "partial", "linear", "attention factor", "xpos", "dynamic NTK"],
)
def test_the_product_of_equal_queries_and_keys_is_the_mean_of_cosines(position, wanted):
    found = plotted(position)
    same = products(found.probe, ASKED).equal
    close(same, wanted(ASKED.double()[:, None]).expand(HEADS, -1))


def test_the_product_of_polar_is_a_sum_of_positive_lengths_times_cosines():
    found = plotted("polar", kv_heads=3)
    delta = found.scheme.delta.detach().double().clamp(-2 * math.pi, 0)[:, 0].repeat_interleave(2, 0)
    speed = 1e4 ** (-torch.arange(WIDTH, dtype=torch.float64) / WIDTH)
    length = math.log1p(math.exp(WIDTH**-0.5))
    wanted = length**2 * (ASKED.double()[:, None] * speed - delta[:, None]).cos().sum(-1)
    close(products(found.probe, ASKED).equal, wanted, atol=1e-5)


def test_heads_that_do_not_turn_are_a_group_of_their_own():
    found = plotted(Rope(heads=2))
    same = products(found.probe, ASKED).equal
    assert equal_heads(same) == [[0, 1, 2, 3], [4, 5]]
    close(same[:4], torch.ones(4, len(ASKED)))
    pairs = find_pairs(found.probe, LENGTH)
    assert pairs is not None
    assert pairs.head == 5


def test_random_products_spread_around_nothing():
    found = plotted("rope", head_dim=64, heads=3)
    got = products(found.probe, ASKED, samples=16_000)
    close(got.mean, torch.zeros_like(got.mean), atol=0.01)
    close(got.high, torch.full_like(got.high, 1.2816 / 8), atol=0.01)  # a unit vector's channel, over the root of 64
    close(got.low, torch.full_like(got.low, -1.2816 / 8), atol=0.01)


def test_the_bound_is_the_mean_of_partial_sums():
    found = plotted("rope")
    pairs = find_pairs(found.probe, LENGTH)
    assert pairs is not None
    turns = torch.polar(torch.ones(len(ASKED), 6, dtype=torch.float64), ASKED.double()[:, None] * pair_speeds())
    limit = upper_bound(found.probe, pairs, ASKED, LENGTH)
    close(limit, turns.cumsum(-1).abs().mean(-1))
    assert float(limit[0]) == pytest.approx(3.5)


def scaled(position) -> Tensor:
    found = plotted(position)
    pairs = find_pairs(found.probe, 4 * LENGTH)
    assert pairs is not None
    return frequencies(found.probe, pairs, 4 * LENGTH)


@pytest.mark.parametrize(
    ("position", "wanted"),
    [
        ("rope", pair_speeds()),
        (Rope(interleaved=True), pair_speeds()),
        (Rope(theta=0.01), pair_speeds(theta=0.01)),
        (Rope(fraction=0.7), pair_speeds(8)),
        (Rope(heads=2, theta=1e8), pair_speeds(theta=1e8)),
        (Rope(scaling=Linear(factor=8)), pair_speeds() / 8),
        (Rope(scaling=Proportional(fraction=0.5)), pair_speeds()[:3]),
        ("xpos", pair_speeds()),
        ("polar", 1e4 ** (-torch.arange(12, dtype=torch.float64) / 12)),
        (
            Rope(scaling=DynamicNtk(original_max_position_embeddings=LENGTH, length_policy="recompute")),
            pair_speeds(theta=1e4 * 4**1.2),
        ),
    ],
    ids=str,
)
def test_speeds_are_found_whatever_the_layout(position, wanted: Tensor):
    torch.testing.assert_close(scaled(position), wanted, rtol=2e-6, atol=0)


def test_cosines_and_sines_stand_at_their_channels():
    positions = torch.arange(50)
    angle = positions.double()[:, None] * pair_speeds(8)
    for interleaved, firsts, seconds in ((False, [0, 1, 2, 3], [4, 5, 6, 7]), (True, [0, 2, 4, 6], [1, 3, 5, 7])):
        found = plotted(Rope(dim=8, interleaved=interleaved))
        pairs = find_pairs(found.probe, LENGTH)
        assert pairs is not None
        assert pairs.unrotated == (8, 9, 10, 11)
        assert pairs.inputs == tuple(zip(firsts, seconds, strict=True))
        cos, sin = cos_sin(found.probe, pairs, positions, LENGTH)
        for columns, sign in ((firsts, 1), (seconds, -1)):
            close(cos[:, columns], angle.cos())
            close(sin[:, columns], sign * angle.sin())
        assert torch.equal(cos[:, 8:], torch.ones(50, 4))
        assert not sin[:, 8:].any()


def test_a_path_of_xpos_shrinks_as_it_turns():
    found = plotted(XPos(scale_base=60.0))
    pairs = find_pairs(found.probe, LENGTH)
    assert pairs is not None
    stands = phasors(found.probe, pairs, torch.tensor([30]), LENGTH)[0]
    shrinks = ((torch.arange(0, 1, 2 / WIDTH).double() + 0.4) / 1.4) ** 0.5
    close(stands.abs(), shrinks)
    close(stands.real, shrinks * (30 * pair_speeds()).cos())


def test_what_does_not_turn_in_planes_has_no_pairs():
    found = plotted("alibi")
    assert find_pairs(found.probe, LENGTH) is None


def test_the_table_of_sinusoidal_and_how_alike_its_rows_are():
    rows = table(plotted("sinusoidal"), 50)
    speed = 1e4 ** (-torch.arange(0, DIM, 2, dtype=torch.float64) / DIM)
    angle = torch.arange(50).double()[:, None] * speed
    close(rows[:, 0::2], angle.sin())
    close(rows[:, 1::2], angle.cos())
    i = torch.arange(50).double()
    close(similarity(rows), ((i[:, None] - i)[..., None] * speed).cos().mean(-1))


def test_the_table_of_absolute_is_its_parameter():
    found = plotted({"kind": "absolute", "offset": 2, "scale": 0.5})
    assert torch.equal(table(found, LENGTH), found.scheme.table.detach()[2:] * 0.5)


@pytest.mark.parametrize(
    ("position", "horizon", "marks"),
    [
        ("rope", 4 * LENGTH, [(37, "trained length 37")]),
        ("absolute", LENGTH - 1, [(37, "trained length 37")]),
        (XPos(scale_base=1.0), 62, [(37, "trained length 37")]),
        (Rope(scaling=Linear(factor=2)), 4 * LENGTH, [(37, "max_seq_len 37")]),
        (
            Rope(scaling=Yarn(factor=9, original_max_position_embeddings=5)),
            LENGTH,
            [(5, "trained length 5"), (37, "max_seq_len 37")],
        ),
        (Rope(scaling=Yarn(factor=4, original_max_position_embeddings=37)), 4 * LENGTH, [(37, "trained length 37")]),
    ],
    ids=str,
)
def test_how_far_pictures_go_and_what_they_mark(position, horizon: int, marks: list):
    found = plotted(position)
    assert (found.horizon, found.marks) == (horizon, marks)


def test_parts_are_the_same_at_every_call_and_have_names_of_their_own():
    layers = LayersConfig(dim=DIM, depth=2, heads=HEADS, head_dim=WIDTH, position=["t5", "absolute", "t5"])
    first, second = plotted_schemes(layers, LENGTH), plotted_schemes(layers, LENGTH)
    assert [p.name for p in first] == ["t5", "absolute", "t5-2"]
    for a, b in zip(first, second, strict=True):
        assert torch.equal(next(a.scheme.parameters()), next(b.scheme.parameters()))
    state = torch.get_rng_state()
    plotted_schemes(layers, LENGTH)
    assert torch.equal(torch.get_rng_state(), state)


def of_axes(position, name: str) -> PlottedScheme:
    layers = LayersConfig(dim=DIM, depth=2, heads=HEADS, head_dim=WIDTH, position=position)
    return next(p for p in plotted_schemes(layers, LENGTH) if p.name == name)


@pytest.mark.parametrize(
    ("name", "share"),
    [("rope", [1, 1, 1]), ("rope-axis-1", [1, 0, 0]), ("rope-axis-2", [0, 1, 0]), ("rope-axis-3", [0, 0, 1])],
)
def test_a_scheme_of_several_axes_is_measured_along_each(name: str, share: list[int]):
    found = of_axes(Rope(sections=(3, 1, 2)), name)
    turns = torch.tensor(share).repeat_interleave(torch.tensor([3, 1, 2])) * pair_speeds()
    close(products(found.probe, ASKED).equal, (ASKED.double()[:, None] * turns).cos().mean(-1).expand(HEADS, -1))
    pairs = find_pairs(found.probe, LENGTH)
    assert pairs is not None
    torch.testing.assert_close(frequencies(found.probe, pairs, LENGTH), turns[turns > 0], rtol=2e-6, atol=0)
    assert len(pairs.unrotated) == 2 * int((turns == 0).sum())


def test_rates_learned_for_each_head_are_found():
    found = of_axes("mixed", "mixed-axis-2")
    rate = found.scheme.rate.detach().double()[:, :, 1]
    close(products(found.probe, ASKED).equal, (ASKED.double()[:, None, None] * rate).cos().mean(-1).t(), atol=1e-5)
    pairs = find_pairs(found.probe, LENGTH)
    assert pairs is not None
    torch.testing.assert_close(frequencies(found.probe, pairs, LENGTH), rate[pairs.head].abs(), rtol=2e-6, atol=0)


def test_axes_in_channels_of_their_own_are_found():
    found = of_axes("axial", "axial-axis-2")
    pairs = find_pairs(found.probe, LENGTH)
    assert pairs is not None
    assert pairs.inputs == ((3, 9), (4, 10), (5, 11))
    torch.testing.assert_close(frequencies(found.probe, pairs, LENGTH), pair_speeds(6), rtol=2e-6, atol=0)


def test_stages_have_the_parameters_of_their_models() -> None:
    """Of the layer where a scheme is first; what adds nothing at first is shown as it is."""
    config = LayersConfig(
        dim=DIM,
        depth=2,
        heads=HEADS,
        head_dim=WIDTH,
        pattern=[{"position": ["absolute", "rope"]}, {"position": ["absolute", "cope"]}],
    )
    nets = [build_model(ModelConfig(num_tokens=9, max_seq_len=LENGTH, layers=config)) for _ in range(2)]
    with torch.no_grad():
        for parameter in nets[1].parameters():
            parameter.add_(1.0)
    stages = [Stage(str(i), f"at {i}", net.attn_layers) for i, net in enumerate(nets)]
    found = {plotted.name: plotted for plotted in plotted_schemes(config, LENGTH, stages=stages)}
    assert list(found) == ["absolute-0", "absolute-1", "rope", "cope-0", "cope-1"]
    rows = [table(found[f"absolute-{i}"], LENGTH) for i in range(2)]
    assert not torch.equal(*rows)
    for row, net in zip(rows, nets, strict=True):
        own = next(s for s in net.attn_layers.position_schemes if s.overrides("embed"))
        assert torch.equal(row, own.embed(torch.zeros(1, LENGTH, DIM), torch.arange(LENGTH)[None])[0])
    assert [one.name for one in found["cope-0"].beside] == ["cope-0", "cope-1"]
    first = bias_map(found["cope-0"], 8)
    assert not first.randomized
    assert not first.values.nan_to_num().any()
    assert bias_map(found["cope-1"], 8).values.nan_to_num().any()
