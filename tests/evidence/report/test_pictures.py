"""What schemes do, as data and as charts: trained beside initial, bounded in size, every head visible."""

import json
import re

import pytest
import torch

from x_positional.config.models import ModelConfig
from x_positional.evidence.report import Pictures, pictures_of, plot_page
from x_positional.evidence.report.pictures import HEADS, ROUGH_SIDE
from x_positional.models.language import TransformerWrapper, build_model

alt = pytest.importorskip("altair", reason="altair is not installed")
pytest.importorskip("vl_convert", reason="vl-convert-python is not installed")

from x_positional.evidence.report import page as pages  # noqa: E402


def model(position: object, heads: int = 4) -> TransformerWrapper:
    layers = {"kind": "decoder", "dim": 8 * heads, "depth": 1, "heads": heads, "head_dim": 8, "position": position}
    torch.manual_seed(0)
    return build_model(ModelConfig.model_validate({"num_tokens": 8, "max_seq_len": 96, "layers": layers}))


def charts_of(pictures: Pictures, monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    monkeypatch.setattr(pages, "_bundle", lambda: "")
    found = re.search(r'id="charts">(.*?)</script>', plot_page(pictures, title="t"), re.DOTALL)
    assert found is not None
    return json.loads(found[1])["charts"]


def test_a_trained_bias_is_beside_the_initial_one(monkeypatch: pytest.MonkeyPatch):
    initial, trained = model("t5"), model("t5")
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(1.0)
    pictures = pictures_of(trained, initial=initial, when="after 5 steps")
    before, after = (picture.bias for picture in pictures.schemes)
    assert before is not None
    assert after is not None
    for one, two in zip(before.values, after.values, strict=True):
        assert [b - a for a, b in zip(one, two, strict=True)] == pytest.approx([1.0] * len(one), abs=2e-3)  # type: ignore
    charts = charts_of(pictures, monkeypatch)
    assert [c["file"] for c in charts] == [
        "bias-by-distance",
        "bias-by-query-and-key-before-training",
        "bias-by-query-and-key-after-5-steps",
    ]
    for chart in charts:
        alt.Chart.from_dict(chart["spec"], validate=True)


def test_every_head_of_alibi_fills_its_own_colour_scale(monkeypatch: pytest.MonkeyPatch):
    rows = charts_of(pictures_of(model("alibi")), monkeypatch)[1]["spec"]["datasets"]["rows"]
    assert [row["panel"].split(":")[0] for row in rows] == ["head 1", "head 2", "head 3", "head 4"]
    for row in rows:
        values = [value for value in row["values"] if value is not None]
        shares = [(value - row["first"]) / row["span"] for value in values]
        assert (min(shares), max(shares)) == pytest.approx((0.0, 1.0))


@pytest.mark.parametrize("position", ["cope", "rope", "polar", "absolute", "temperature", ["rope", "alibi"], "none"])
def test_each_kind_of_scheme_is_drawn_and_small(position: object, monkeypatch: pytest.MonkeyPatch):
    pictures = pictures_of(model(position))
    assert len(pictures.model_dump_json()) < 120_000
    assert Pictures.model_validate_json(pictures.model_dump_json()) == pictures
    for chart in charts_of(pictures, monkeypatch):
        alt.Chart.from_dict(chart["spec"], validate=True)


def test_many_heads_and_maps_of_content_are_thinned():
    bias = pictures_of(model("cope", heads=12)).schemes[0].bias
    assert bias is not None
    assert len(bias.heads) == len(bias.values) == len(bias.map.values) == HEADS
    assert bias.of_heads == 12
    assert bias.map.side <= ROUGH_SIDE
    assert not bias.map.by_distance


def test_wavelengths_are_those_of_the_formula():
    rotation = pictures_of(model({"kind": "rope", "theta": 500.0})).schemes[0].rotation
    assert rotation is not None
    assert list(rotation.wavelengths) == pytest.approx([2 * torch.pi * 500 ** (i / 4) for i in range(4)], rel=1e-3)
    assert rotation.unscaled == ()
