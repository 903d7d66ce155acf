"""Entries on the command line: splitting, reading, labels, and the layers they make."""

from pathlib import Path
from typing import Any

import pytest

from x_positional.errors import ConfigError
from x_positional.evidence.comparison.entries import read_entries, read_entry, split_entries, with_layers
from x_positional.schemes.registry import REGISTRY

YARN = "{kind: rope, scaling: {kind: yarn, factor: 4}}"


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        ("rope,alibi, t5", ["rope", "alibi", "t5"]),
        (f"rope,{YARN},none", ["rope", YARN, "none"]),
        (
            "[rope, temperature],a={pattern: [{window: 8}, {}]}",
            ["[rope, temperature]", "a={pattern: [{window: 8}, {}]}"],
        ),
        ("'a,b',c", ["'a,b'", "c"]),
        ("rope,,alibi", ["rope", "", "alibi"]),
    ],
)
def test_commas_inside_brackets_do_not_split(text: str, entries: list[str]):
    assert split_entries(text) == entries


@pytest.mark.parametrize(
    ("text", "label", "layers"),
    [
        ("rope", "rope", {"position": "rope"}),
        ("alibi+rope", "alibi+rope", {"position": ["alibi", "rope"]}),
        ("[alibi, rope]", "alibi+rope", {"position": ["alibi", "rope"]}),
        (
            YARN,
            "rope(scaling=yarn(factor=4))",
            {"position": {"kind": "rope", "scaling": {"kind": "yarn", "factor": 4}}},
        ),
        (f"yarn={YARN}", "yarn", {"position": {"kind": "rope", "scaling": {"kind": "yarn", "factor": 4}}}),
        (
            "{pattern: [{window: 8, position: rope}, {position: none}]}",
            "rope window=8 | none",
            {"pattern": [{"window": 8, "position": "rope"}, {"position": "none"}]},
        ),
        ("{position: rope, window: 8}", "rope window=8", {"position": "rope", "window": 8}),
    ],
)
def test_an_entry(text: str, label: str, layers: dict[str, Any]):
    entry = read_entry(text)
    assert (entry.label, entry.layers, entry.module) == (label, layers, None)


def test_labels_are_short_and_unique():
    long = [
        f"{{kind: rope, theta: 500000, fraction: 0.5, layout: interleaved, scaling: {{kind: {k}, factor: 4}}}}"
        for k in ("ntk", "yarn")
    ]
    entries, problems = read_entries([*long, "rope"])
    assert problems == []
    labels = [entry.label for entry in entries]
    assert len(set(labels)) == 3
    assert max(map(len, labels)) <= 44
    assert labels[1] == f"{labels[0]} #2"


def test_all_problems_at_once():
    entries, problems = read_entries(
        ["rope", "", "{kind: rope", "rope", "{}", "no_such_module:Config", "alibi+", "missing.yaml"]
    )
    assert [entry.label for entry in entries] == ["rope"]
    words = [
        "an empty entry",
        "is not YAML",
        "the same as 'rope'",
        "changes nothing",
        "cannot import",
        "beside '+'",
        "No such file",
    ]
    assert len(problems) == len(words)
    for problem, word in zip(problems, words, strict=True):
        assert word in problem


def test_a_recipe_gives_its_positions_and_windows_but_no_sizes(tmp_path: Path):
    file = tmp_path / "swan.yaml"
    file.write_text(
        "model: {num_tokens: 9, layers: {dim: 8, depth: 4, pattern: [{window: 4, position: rope}, {position: none}]}}"
    )
    entry = read_entry(str(file))
    assert entry.label == "swan"
    assert entry.layers == {"pattern": [{"window": 4, "position": "rope"}, {"position": "none"}]}
    file.write_text("model: {num_tokens: 9}")
    with pytest.raises(ConfigError, match="sets none of position"):
        read_entry(str(file))


OWN = """
from typing import Literal
from x_positional.schemes.none import NoPE, NoPosition
from x_positional.schemes.registry import SchemeConfig

class Own(SchemeConfig):
    kind: Literal["own_of_entries"] = "own_of_entries"
    power: float = 1.0
    def build(self, dims):
        return NoPE().build(dims)

STEEP = Own(power=2.0)
NUMBER = 3
"""


def test_a_config_by_its_path_in_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "own_schemes_of_entries.py").write_text(OWN.replace(", NoPosition", ""))
    monkeypatch.syspath_prepend(tmp_path)
    try:
        entry = read_entry("own_schemes_of_entries:Own+rope")
        assert (entry.label, entry.module) == ("own_of_entries+rope", "own_schemes_of_entries")
        assert read_entry("own_schemes_of_entries:STEEP").layers == {
            "position": {"kind": "own_of_entries", "power": 2.0}
        }
        for path, message in (
            ("NUMBER", "is 3, which a config file"),
            ("Missing", "has no Missing"),
            ("NoPE.build", "which"),
        ):
            with pytest.raises(ConfigError, match=message):
                read_entry(f"own_schemes_of_entries:{path}")
    finally:
        REGISTRY.pop("own_of_entries", None)


def test_a_position_replaces_those_of_the_pattern():
    raw = {"model": {"layers": {"dim": 8, "position": "t5", "pattern": [{"window": 4, "position": "alibi"}, {}]}}}
    changed = with_layers(raw, read_entry("rope"))
    assert changed["model"]["layers"] == {"dim": 8, "position": "rope", "pattern": [{"window": 4}, {}]}
    assert raw["model"]["layers"]["pattern"][0]["position"] == "alibi"


def test_a_whole_pattern_replaces_the_position():
    raw = {"model": {"layers": {"dim": 8, "position": "t5"}}}
    whole = with_layers(raw, read_entry("{pattern: [{position: rope}, {position: none}]}"))
    assert "position" not in whole["model"]["layers"]
    part = with_layers(raw, read_entry("{pattern: [{position: rope}, {window: 4}]}"))
    assert part["model"]["layers"]["position"] == "t5"
