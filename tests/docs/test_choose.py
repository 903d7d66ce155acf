"""The page of recommendations follows what was measured."""

import re

import pytest

from benchmarks.evidence.store import read
from tests.support.doc_pages import ROOT, generator
from tests.support.measured import evidence
from x_positional.schemes.registry import REGISTRY

choose = generator("choose")
PAGE = ROOT / "docs" / "choose.md"
FOLKLORE = {"none": (2.6, 3.5), "absolute": (2.6, 9.0), "rope": (2.5, 3.0), "alibi": (2.5, 2.5), "cope": (2.6, 2.7)}
"""What one would expect: bits per byte at the trained length, and past it."""


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == choose.render(read()), "run make docs"


def test_no_recommendation_contradicts_what_was_measured() -> None:
    measured = read()
    assert measured is None or choose.contradicted(measured) == [], "change the line in docs/generate/choose.py"


def test_what_supports_a_recommendation_is_shown_with_it() -> None:
    found = evidence(FOLKLORE)
    assert choose.contradicted(found) == []
    page = choose.render(found)
    assert "| [The length is known](#the-length-is-known) | `rope` | yes |" in page
    assert "- Loss of none minus loss of rope, at 256: +0.100 ± 0.000 (needs above 0: holds)." in page
    assert "Losses that do not rise to 4,096: `alibi`." in page
    assert "Nothing has been measured" not in page


@pytest.mark.parametrize(
    ("label", "losses", "situation"),
    [
        ("rope", (2.7, 3.0), "The length is known"),
        ("alibi", (2.5, 2.8), "Longer than trained"),
        ("rope", (2.3, 2.3), "Longer than trained"),
    ],
)
def test_a_measurement_on_the_other_side_is_a_contradiction(
    label: str, losses: tuple[float, float], situation: str
) -> None:
    found = evidence({**FOLKLORE, label: losses})
    assert any(line.startswith(situation) for line in choose.contradicted(found))
    assert "**contradicted**" in choose.render(found)


def test_names_in_recommendations_are_schemes_or_settings() -> None:
    settings = {"window", "keep_first", "yarn"}
    named = {name for line in choose.LINES for name in re.findall(r"`(\w+)`", line.take)}
    assert named - settings <= set(REGISTRY)


def test_every_line_of_the_table_leads_to_its_section() -> None:
    headings = {line.anchor for line in choose.LINES}
    assert len(headings) == len(choose.LINES)
    linked = set(re.findall(r"\]\(#([^)]+)\)", choose.render(None)))
    assert linked == headings
