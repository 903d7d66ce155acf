"""The pages of reports: what they contain, that they need no network, and that every chart is a valid spec."""

import html
import json
import re
import sys
from functools import lru_cache
from pathlib import Path

import pytest

from tests.support.made_up_results import EVIL, REASON, comparison, evaluation, extension
from x_positional.errors import ArgumentError, MissingExtra
from x_positional.evidence.report import comparison_page, evaluation_page, extension_page, plot_page, write_page

alt = pytest.importorskip("altair", reason="altair is not installed")
vl_convert = pytest.importorskip("vl_convert", reason="vl-convert-python is not installed")

from x_positional.evidence.report import page as pages  # noqa: E402
from x_positional.evidence.report.answer import answers  # noqa: E402
from x_positional.evidence.report.charts import Axis  # noqa: E402
from x_positional.evidence.report.losses import frame  # noqa: E402
from x_positional.evidence.report.page import VEGA_LITE  # noqa: E402
from x_positional.evidence.report.series import of_comparison, unit_of  # noqa: E402

DATA = re.compile(r'<script type="application/json" id="charts">(.*?)</script>', re.DOTALL)
ESCAPED = html.escape(EVIL, quote=True)


@pytest.fixture(autouse=True, scope="module")
def short_bundle():
    """A stand-in for the charting library, which takes a second to collect."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages, "_bundle", lambda: "/* bundle */")
        yield


@lru_cache
def tiny_page() -> str:
    """The page of a comparison."""
    return comparison_page(comparison())


def data_of(page: str) -> dict:
    found = DATA.search(page)
    assert found is not None
    return json.loads(found[1], parse_constant=lambda name: pytest.fail(f"{name} in the data of the page"))


def test_the_page_of_a_comparison_holds_every_scheme_reason_and_number():
    page = tiny_page()
    for label in ("rope", "alibi", "absolute", ESCAPED):
        assert f'<th scope="row">{label}</th>' in page
        assert f'data-series="{label}"' in page
    assert html.escape(REASON) in page
    assert "seed 2 not finite: the loss was NaN at step 7" in page
    assert "1 cell of 12 gave no complete result" in page
    assert "35,300" in page
    assert re.search(r"\de[+-]\d", DATA.sub("", re.sub(r"<(style|script)>.*?</\1>", "", page, flags=re.DOTALL))) is None
    for title in (
        "Loss by context length",
        "Loss by position",
        "Passkey",
        "Trained tasks",
        "Cost",
        "Settings",
        "Method",
    ):
        assert title in page


def test_texts_are_escaped():
    page = tiny_page()
    assert EVIL not in page
    assert ESCAPED in page
    assert page.count("<script") == 3
    assert EVIL in data_of(page)["labels"]


def test_no_page_loads_anything():
    for page in (tiny_page(), evaluation_page([evaluation("rope")]), extension_page(extension())):
        assert re.search(r"\b(src|href|action)\s*=\s*(?![\"']?#)", page) is None
        assert re.search(r"url\(|@import|<link|<iframe|<img", page) is None
        assert "default-src 'none'" in page


BUNDLE = pages._bundle
"""The real one."""


def test_the_bundle_cannot_end_its_script():
    bundle = BUNDLE()
    assert "</script" not in bundle.lower()
    assert "vegaEmbed" in bundle
    assert VEGA_LITE in vl_convert.get_vegalite_versions()
    assert len(bundle) < 2_000_000


def test_every_chart_is_a_valid_spec_with_finite_data():
    page = comparison_page(comparison(), beside=comparison((0,), "other"))
    charts = data_of(page)["charts"]
    assert len(charts) >= 8
    shapes = {json.dumps(chart["spec"] | {"datasets": {}}) for chart in charts}
    for spec in shapes:
        alt.Chart.from_dict(json.loads(spec), validate=True)
    for chart in charts:
        json.dumps(chart["spec"]["datasets"], allow_nan=False)


def test_a_length_that_could_not_run_is_a_reason_and_no_point():
    chart = next(c for c in data_of(tiny_page())["charts"] if c["file"] == "loss-by-context-length")
    rows = chart["spec"]["datasets"]["rows"]
    assert {row["x"] for row in rows if row["series"] == "absolute"} == {32, 64}
    assert {row["x"] for row in rows if row["series"] == "rope"} == {32, 64, 128, 256}
    one = next(row for row in rows if row["series"] == "rope" and row["x"] == 64)
    assert one["y"] == pytest.approx(1 / 0.6931 / 2, rel=0.01)  # bits per byte: 2 bytes a token
    assert one["low"] < one["y"] < one["high"]


def test_the_answer_names_the_lowest_and_what_is_as_good():
    series = of_comparison(comparison())
    unit = unit_of(series)
    first, last = answers(series, 64, unit)
    assert first.startswith("At the trained length of 64 tokens, “rope” has the lowest loss: 0.72")
    assert "The next, “alibi”, is higher by" in first
    assert last.startswith("At 256 tokens, 4 times the trained length, “alibi” has the lowest loss:")
    assert "Not measured there: “absolute”; the table gives the reasons." in last


def test_every_layer_of_a_series_is_hidden_with_it_also_beside_layers_with_their_own_data():
    charts = data_of(tiny_page())["charts"]
    marked = 0
    for chart in charts:
        spec = chart["spec"]
        if not any(parameter["name"] == "shown" for parameter in spec.get("params", [])):
            continue
        own = [layer for layer in spec["layer"] if "values" in layer.get("data", {})]
        marked += bool(own)
        for layer in spec["layer"]:
            above = [] if "data" in layer else spec.get("transform", [])
            filters = [step.get("filter", "") for step in [*above, *layer.get("transform", [])]]
            assert layer in own or any("indexof(shown, datum.series)" in one for one in filters)
    assert marked >= 2


def test_one_seed_has_no_interval_and_the_answer_reports_it():
    page = comparison_page(comparison((0,)))
    assert "1 seed: no interval" in page
    assert "have no interval: that takes two seeds that both have" in page
    assert "95 % interval 0" not in page


@pytest.mark.parametrize("kept", [(), ("not finite",)], ids=["empty", "failed"])
def test_a_comparison_without_results_is_a_page(kept: tuple[str, ...]):
    whole = comparison()
    cells = tuple(cell for cell in whole.cells if cell.status in kept)
    page = comparison_page(whole.model_copy(update={"cells": cells}))
    assert "No losses were measured." in page
    assert data_of(page)["labels"] == [entry.label for entry in whole.entries]


def test_two_runs_share_a_scale_and_show_differences():
    page = comparison_page(comparison(), beside=comparison((0, 1), "other"))
    charts = [chart for chart in data_of(page)["charts"] if chart["file"] in ("tiny", "other")]
    scales = [
        layer["encoding"]["y"]["scale"]["domain"]
        for chart in charts
        for layer in chart["spec"]["layer"]
        if "domain" in layer.get("encoding", {}).get("y", {}).get("scale", {})
    ]
    assert len(charts) == 2
    assert all(scale == scales[0] for scale in scales)
    assert "difference (bits per byte)" in page


def test_evaluations_are_compared_by_window_and_equal_names_are_numbered():
    page = evaluation_page([evaluation("rope"), evaluation("rope", 1), evaluation("absolute", stops=True)])
    assert data_of(page)["labels"] == ["rope", "rope (2)", "absolute"]
    assert "3 windows" in page
    assert "the loss does not rise up to 128 tokens" in page
    with pytest.raises(ArgumentError, match="no evaluations"):
        evaluation_page([])


def test_an_extension_shows_the_collapse_the_cost_and_the_reason():
    page = extension_page(extension())
    assert "Unchanged, the loss at 256 tokens is" in page
    assert "yarn x4 has the lowest loss there" in page
    assert "longrope needs its factors" in page
    assert "yarn x4 was written to out." in page
    assert "paired by window" in page
    kept = extension_page(extension().model_copy(update={"folder": None}))
    assert "written" not in kept.split("Contents")[0]
    assert "target 256" in json.dumps(data_of(page)["charts"])


def test_a_band_far_wider_than_the_lines_does_not_flatten_them():
    rows = [{"y": 2.0, "low": 1.9, "high": 2.1}, {"y": 3.0, "low": 2.9, "high": 3.1}]
    assert frame(rows) is None
    assert frame([]) is None
    assert frame([*rows, {"y": 2.5, "low": -5.0, "high": 10.0}]) == (1.5, 3.5)
    axis = Axis("loss", frame=(1.5, 3.5), cut=2.5)
    scale = axis.channel(alt.Y, "y").to_dict()["scale"]
    assert (scale["domainMin"], scale["domainMax"]) == (1.5, {"expr": "zoom ? 2.5 : 3.5"})
    assert axis.clip is True


def test_a_page_replaces_a_file_at_once(tmp_path: Path):
    file = tmp_path / "new" / "page.html"
    write_page(file, "one")
    write_page(file, "two")
    assert file.read_text() == "two"
    assert [one.name for one in file.parent.iterdir()] == ["page.html"]


@pytest.mark.parametrize("module", ["altair", "vl_convert", "jinja2"])
def test_a_missing_extra_is_one_line(module: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, module, None)
    for draw in (lambda: comparison_page(comparison()), lambda: plot_page(None, title="")):  # pyright: ignore
        with pytest.raises(MissingExtra, match=rf"reports need {module}: pip install 'x-positional\[report\]'"):
            draw()


def test_themes_have_enough_different_colours_and_both_are_on_the_page():
    data = data_of(evaluation_page([evaluation("rope")]))
    for theme in ("light", "dark"):
        colours = data["themes"][theme]["range"]["category"]
        assert len(set(colours)) == len(colours) >= 12
    marks = data["marks"]
    looks = {
        (
            colours[i % len(colours)],
            marks["shapes"][i % len(marks["shapes"])],
            marks["dashes"][i % len(marks["dashes"])],
        )
        for i in range(60)
        for colours in [marks["colours"]["light"]]
    }
    assert len(looks) == 60
    assert set(marks["shapes"]) == set(marks["paths"])
