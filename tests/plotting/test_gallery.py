"""The pictures: every scheme has them, their pixels and lines are the measured values, and the page stands alone."""

import re
import sys
from pathlib import Path

import pytest
import torch

from tests.support.draws import draws
from x_positional import Rope
from x_positional.config.layers import LayersConfig
from x_positional.errors import MissingExtra
from x_positional.plotting import Gallery, canvas, draw, draw_biases, draw_embeddings, draw_products, draw_rotation
from x_positional.plotting.biases import bias_map, bias_of_distance
from x_positional.plotting.draw_products import products
from x_positional.plotting.gallery import NOTHING
from x_positional.plotting.schemes import PlottedScheme, plotted_schemes
from x_positional.pretrained.rope import Linear, LongRope, NtkByParts, Proportional, Yarn
from x_positional.schemes.base import PositionScheme
from x_positional.schemes.registry import REGISTRY

pytest.importorskip("matplotlib", reason="matplotlib is not installed")

LENGTH = 21
DATA = re.compile(r'src="data:image/png;base64,[A-Za-z0-9+/=]+"')
OWN = sorted(
    name
    for name, config in REGISTRY.items()
    if config.__module__.startswith("x_positional.schemes") and name != "custom"
)


def layers(position, **changes) -> LayersConfig:
    sizes = {"kind": "decoder", "dim": 24, "depth": 2, "heads": 3, "head_dim": 8} | changes
    return LayersConfig(position=position, **sizes)


def drawn(folder: Path, position, length: int = LENGTH, **changes) -> tuple[Gallery, str]:
    gallery = draw(layers(position, **changes), length, folder, title="a <title>")
    return gallery, gallery.page.read_text("utf-8")


def one(position, **changes) -> PlottedScheme:
    return plotted_schemes(layers(position, **changes), LENGTH)[0]


@pytest.fixture(autouse=True)
def margins(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fitting margins takes half of the time of a picture: by default only chains, which have every kind of picture, do it."""
    if request.node.originalname != "test_a_chain_is_drawn_part_by_part":
        monkeypatch.setattr(canvas, "LAYOUT", draws(None, canvas.LAYOUT))


@pytest.fixture
def figure(monkeypatch: pytest.MonkeyPatch):
    """The last figure that a picture was made of."""
    seen = []

    def keep(figure) -> bytes:
        seen.append(figure)
        return b""

    for module in (draw_biases, draw_embeddings, draw_products, draw_rotation):
        monkeypatch.setattr(module, "png", keep)
    return lambda: seen[-1]


@pytest.mark.parametrize(
    ("name", "kind"),
    [*((name, "decoder") for name in OWN), *((name, "encoder") for name in ("alibi", "t5", "absolute"))],
)
def test_every_registered_scheme_is_drawn(tmp_path: Path, name: str, kind: str):
    gallery, page = drawn(tmp_path / "new", name, kind=kind)
    assert page.count("<figure>") == page.count("<figcaption>") == len(gallery.pictures)
    assert (NOTHING in page) == (gallery.pictures == []) == (name == "none")
    for file in gallery.pictures:
        assert file.parent == tmp_path / "new"
        assert file.read_bytes().startswith(b"\x89PNG\r\n")


@pytest.mark.parametrize("chain", [["absolute", "cope"], ["xpos", "alibi", "forgetting"]], ids=" + ".join)
def test_a_chain_is_drawn_part_by_part(tmp_path: Path, chain: list[str]):
    gallery, page = drawn(tmp_path, chain)
    assert re.findall(r"<h2>(.*)</h2>", page) == list(chain)
    parts = {file.name.split("-")[0] for file in gallery.pictures}
    assert parts == set(chain)


@pytest.mark.parametrize(
    ("position", "changes"),
    [
        (Rope(scaling=Yarn(factor=3, original_max_position_embeddings=7)), {}),
        (Rope(scaling=Proportional(fraction=0.0)), {}),
        (Rope(dim=2), {}),
        (
            Rope(
                scaling=LongRope(
                    original_max_position_embeddings=15,
                    length_policy="recompute",
                    short_factor=(1.0,) * 4,
                    long_factor=(2.0,) * 4,
                    factor=2.0,
                )
            ),
            {},
        ),
        (Rope(heads=1), {}),
        ("polar", {"heads": 6, "kv_heads": 2}),
        ("alibi", {"heads": 17}),
        ("t5", {"window": 5}),
        ("cope", {"heads": 1}),
    ],
    ids=lambda value: str(value)[:60],
)
def test_unusual_settings_are_drawn(tmp_path: Path, position, changes: dict):
    gallery, _ = drawn(tmp_path, position, **changes)
    assert len(gallery.pictures) >= 1


@pytest.mark.parametrize("length", [1, 2])
@pytest.mark.parametrize("name", ["rope", "alibi", "absolute"])
def test_the_shortest_texts_are_drawn(tmp_path: Path, name: str, length: int):
    assert drawn(tmp_path, name, length)[0].pictures


def test_a_scheme_of_ones_own_is_drawn_by_the_hooks_it_overrides(tmp_path: Path):
    class Lift(PositionScheme):
        def embed(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
            return x + positions[..., None]

    gallery, _ = drawn(tmp_path, [Lift(), "alibi"])
    names = [file.name for file in gallery.pictures]
    assert names == ["Lift-table.png", "Lift-similarity.png", "alibi-bias-map.png", "alibi-bias-distance.png"]


def test_the_page_stands_alone(tmp_path: Path):
    _, page = drawn(tmp_path, ["rope", "alibi", "absolute"])
    assert len(DATA.findall(page)) == page.count("<img ") == 8
    rest = DATA.sub("", page)
    for foreign in ("http", "//", "src=", "<script", "<link", "@import", "url("):
        assert foreign not in rest
    assert "a &lt;title&gt;" in rest
    assert "prefers-color-scheme: dark" in rest
    for caption in re.findall(r"<figcaption>(.*)</figcaption>", rest):
        assert caption.endswith(".")
        assert len(caption) > 40


def test_the_same_config_gives_the_same_files(tmp_path: Path):
    first, page = drawn(tmp_path / "a", ["absolute", "t5"])
    second, again = drawn(tmp_path / "b", ["absolute", "t5"])
    assert page == again
    assert [f.read_bytes() for f in first.pictures] == [f.read_bytes() for f in second.pictures]


def test_the_map_shows_the_values_and_hides_the_future(figure):
    found = one("alibi")
    picture = draw_biases.draw_map(found)
    panels = [axes for axes in figure().axes if axes.get_title().startswith("head")]
    values = bias_map(found, LENGTH).values
    assert [axes.get_title() for axes in panels] == ["head 1", "head 2", "head 3"]
    for axes, head in zip(panels, values, strict=True):
        shown = axes.images[0].get_array()
        assert (torch.tensor(shown.mask) == head.isnan()).all()
        assert (torch.tensor(shown.filled(7.0)) == head.nan_to_num(7.0)).all()
    assert "-5 to 0 logits; masked keys are grey" in picture.caption


def test_every_head_of_a_map_fills_its_own_colours(figure):
    """On one scale for all, the heads of alibi with small slopes are one flat colour."""
    found = one("alibi", heads=4, dim=32)
    draw_biases.draw_map(found)
    panels = [axes for axes in figure().axes if axes.get_title().startswith("head")]
    for axes, head in zip(panels, bias_map(found, LENGTH).values, strict=True):
        assert axes.images[0].get_clim() == (float(head[head.isfinite()].min()), 0.0)


def test_heads_of_both_signs_are_coloured_around_nothing():
    stages = torch.tensor([[-1.0, 4.0], [0.0, 0.5]]), torch.tensor([[-6.0, 0.0], [0.25, 0.5]])
    assert canvas.colour_ranges(*stages) == (canvas.DIVERGING, [(-6.0, 6.0), (-0.5, 0.5)])


def test_the_lines_show_every_head_and_the_trained_length(figure):
    found = one("alibi")
    picture = draw_biases.draw_curves(found)
    for axes, far in zip(figure().axes, (LENGTH, 4 * LENGTH), strict=True):
        values = bias_of_distance(found, torch.arange(far + 1)).values
        for line, head in zip(axes.lines[:3], values, strict=True):
            assert list(line.get_xdata()) == list(range(far + 1))
            assert torch.equal(torch.tensor(line.get_ydata()), head)
    mark = figure().axes[1].lines[3]
    assert list(mark.get_xdata()) == [LENGTH, LENGTH]
    assert mark.get_label() == f"trained length {LENGTH}"
    assert "-5.25 to -0.0820 logits" in picture.caption.replace("-0.082 ", "-0.0820 ")


def test_a_bias_that_stops_changing_is_said_to(figure):
    found = one({"kind": "t5", "num_buckets": 8, "max_distance": 20})
    assert "It is constant from distance 14" in draw_biases.draw_curves(found).caption
    assert "constant" not in draw_biases.draw_curves(one("alibi")).caption


def test_products_are_drawn_per_group_of_heads(figure):
    found = one(Rope(heads=1))
    draw_products.draw_products(found)
    for axes, far in zip(figure().axes, (LENGTH, 4 * LENGTH), strict=True):
        equal = products(found.probe, torch.arange(far + 1)).equal
        labels = {line.get_label(): torch.tensor(line.get_ydata()) for line in axes.lines}
        assert torch.equal(labels["q = k, equal in every channel, heads 1 to 2"], equal[0])
        assert torch.equal(labels["q = k, equal in every channel, head 3"], equal[2])


def test_wavelengths_are_sorted_by_the_trained_length(figure):
    found = one(Rope(theta=500.0, scaling=Linear(factor=2)))
    picture = draw_rotation.draw_wavelengths(found)
    assert picture is not None
    before, whole, less = (points.get_offsets()[:, 1] for points in figure().axes[0].collections)
    waves = 2 * torch.pi * 500 ** (torch.arange(4) / 4)
    assert list(before) == pytest.approx(waves.tolist(), rel=1e-5)
    assert [*whole, *less] == pytest.approx((2 * waves).tolist(), rel=1e-5)
    assert max(whole, default=0) <= LENGTH < min(less)
    assert f"Within {LENGTH} positions, 1 of 4 pairs completed a turn before scaling, 1 after." in picture.caption
    assert figure().axes[0].get_yscale() == "log"


def test_pairs_are_judged_by_how_they_were_trained(figure):
    """theta 500 over 4 pairs: waves of 6.3, 29.7, 140, 664; trained on 7, then read to 21."""
    for factor, new in ((2.0, 3), (3.0, 0)):  # of the three that had not rotated within 7, who goes past their angles
        scaling = NtkByParts(factor=factor, original_max_position_embeddings=7, alpha=1.0, beta=1.01)
        picture = draw_rotation.draw_wavelengths(one(Rope(theta=500.0, scaling=scaling)))
        assert picture is not None
        assert (
            "Before scaling, 1 of 4 pairs complete a turn within the trained length of 7 positions. "
            f"Of the others, {new} reach" in (picture.caption)
        )
        _, whole, less = (points.get_offsets()[:, 1] for points in figure().axes[0].collections)
        assert list(whole) == pytest.approx([2 * torch.pi], rel=1e-5)
        assert list(less) == pytest.approx([2 * torch.pi * 500 ** (i / 4) * factor for i in (1, 2, 3)], rel=1e-5)
    plain = draw_rotation.draw_wavelengths(one(Rope(theta=500.0)))
    assert plain is not None
    assert "1 of 4 pairs complete a turn within 21 positions; beyond that" in plain.caption


def test_a_scaling_that_stops_all_pairs_has_no_pictures_of_pairs(tmp_path: Path):
    gallery, _ = drawn(tmp_path, Rope(scaling=Proportional(fraction=0.0)))
    assert [file.name for file in gallery.pictures] == ["rope-products.png"]


def test_colours_are_around_nothing_where_there_are_both_signs():
    assert canvas.colour_range(torch.tensor([-1.0, 3.0, torch.nan])) == (canvas.DIVERGING, -3.0, 3.0)
    assert canvas.colour_range(torch.tensor([-2.0, -1.0])) == (canvas.SEQUENTIAL, -2.0, -1.0)
    assert canvas.colour_range(torch.tensor([1.0])) == (canvas.SEQUENTIAL, 1.0, 2.0)


def test_some_of_many_heads_are_spread_over_all():
    assert canvas.evenly_spaced(3, 12) == [0, 1, 2]
    assert canvas.evenly_spaced(33, 12) == [0, 3, 6, 9, 12, 15, 17, 20, 23, 26, 29, 32]


def test_without_matplotlib_it_says_what_to_install_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtra, match=r"plots need matplotlib: pip install 'x-positional\[train\]'"):
        drawn(tmp_path / "new", "rope")
    assert not (tmp_path / "new").exists()


def test_a_scheme_of_several_axes_is_drawn_along_each(tmp_path: Path):
    gallery, page = drawn(tmp_path, "mixed")
    assert re.findall(r"<h2>(.*)</h2>", page) == ["mixed", "mixed-axis-1", "mixed-axis-2"]
    assert len(gallery.pictures) == 12
    for words in (
        "along all 2 axes together",
        "along axis 2 of 2; the others are 0",
        "Every layer has its own parameters",
    ):
        assert words in page
