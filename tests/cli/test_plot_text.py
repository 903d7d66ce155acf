"""`x-positional plot --text`: the attention maps of a run and of a published model, and mistakes answered in words."""

from pathlib import Path

import pytest
import torch
import yaml

from tests.support.command_line import Call
from tests.support.training_runs import raw_config
from x_positional.plotting.draw_attention import TextMaps, draw_attention, pooled, readable

pytest.importorskip("matplotlib", reason="matplotlib is not installed")


@pytest.fixture(scope="module")
def maps() -> TextMaps:
    """Two layers of two heads over seven tokens, whose later keys are hidden."""
    scores = torch.randn(2, 2, 7, 7, generator=torch.Generator().manual_seed(0))
    hidden = torch.ones(7, 7, dtype=torch.bool).triu(1)
    found = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    return TextMaps(list(found), ["A", " $x$", "\n", "  ", "你", "incomprehensibilities", "."])


def test_a_run_is_drawn(call: Call, tmp_path: Path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(raw_config(tmp_path)))
    assert call("train", "config.yaml", "--run-dir", "trained", "--steps", 3)[0] == 0
    code, out, err = call("plot", "trained", "--text", "To be", "--layer", 1, "--head", 2)
    assert (code, err) == (0, "")
    written = sorted(file.name for file in (tmp_path / "plots" / "trained").iterdir())
    assert written == ["attention-layer-1-head-2.html", "attention-layer-1-head-2.png"]
    assert all(f"plots/trained/{name}" in out for name in written)
    assert "to the first token" in (tmp_path / "plots" / "trained" / written[0]).read_text()
    for options, part in [
        (["--text", "To be", "--layer", 99], "--layer=99 must be from 1 to"),
        (["--text", " "], "--text is empty"),
        (["--text", "To be", "--depth", 3], "no key of the model can be set: --depth 3"),
        (["--head", 1], "Pass --text"),
    ]:
        code, _, err = call("plot", "trained", *options)
        assert (code, part in err, "Traceback" in err) == (2, True, False)
    code, _, err = call("plot", "config.yaml", "--text", "To be")
    assert (code, "needs trained weights" in err) == (2, True)


def test_every_choice_is_a_picture(maps: TextMaps):
    everything, one = draw_attention(maps), draw_attention(maps, 2, 2)
    assert (everything.name, everything.png[:4]) == ("attention", b"\x89PNG")
    assert (one.name, one.png[:4]) == ("attention-layer-2-head-2", b"\x89PNG")
    first = torch.stack(list(maps.maps))[:, :, 1:, 0].mean()
    assert f"gives {float(first):.0%} of its attention to the first token" in everything.caption


def test_long_texts_are_pooled_so_that_no_column_disappears():
    found = torch.full((1, 2, 300, 300), 0.001).tril()
    found[..., 150:, 7] = 0.9
    picture = draw_attention(TextMaps([*found, *found], ["a"] * 300))
    assert "the largest probability among 4 x 4 tokens" in picture.caption
    assert 0.9 in pooled(found[0, 0], 96)[0][40:, 1]


@pytest.mark.parametrize(
    ("token", "label"),
    [
        (" cat", "cat"),
        ("  ", "␣␣"),
        ("\n", "⏎"),
        ("你", "U+4F60"),
        ("incomprehensibilities", "incomprehen…"),
        ("$x$", "$x$"),
    ],
)
def test_labels_can_be_read(token: str, label: str):
    assert readable(token) == label
