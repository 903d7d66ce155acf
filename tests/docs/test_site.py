"""The site: every page has one place in the reading path, and nothing is loaded from the network."""

import logging
from collections import Counter
from typing import Any

import pytest

from tests.support.doc_pages import ROOT, generator

DOCS = ROOT / "docs"
SECTIONS = [
    "Start",
    "Choose a scheme",
    "Build",
    "Train and sample",
    "Published models",
    "Extend and compare",
    "Your own scheme",
    "Reference",
    "Design",
]


navigation = generator("index")


def pages_of(entries: list[Any]) -> list[str]:
    return [page for page, _ in navigation.pages_of(entries)]


def nav() -> list[Any]:
    return navigation.navigation()


def test_every_page_is_in_the_nav_exactly_once() -> None:
    listed = Counter(pages_of(nav()))
    pages = {path.relative_to(DOCS).as_posix() for path in [*DOCS.rglob("*.md"), *DOCS.rglob("*.ipynb")]}
    missing = sorted(pages - set(listed))
    assert missing == [], "give each of them a line in nav of mkdocs.yml, where a reader needs it"
    assert [page for page, count in listed.items() if count > 1] == []
    assert [page for page in listed if page not in pages and not page.startswith("repository/")] == []


def test_the_nav_is_the_reading_path() -> None:
    assert [title for entry in nav() for title in entry] == SECTIONS


def test_titles_are_distinct() -> None:
    titles = [navigation.title_of(page) for page in pages_of(nav()) if (DOCS / page).exists()]
    assert [title for title, count in Counter(titles).items() if count > 1] == []


@pytest.fixture
def site() -> Any:
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    return generator("_site")


@pytest.mark.parametrize(
    ("page", "link", "path"),
    [
        ("pretrained.md", "../examples/smollm2_chat.py", "repository/examples/smollm2_chat.py.md"),
        ("pretrained.md", "../SECURITY.md", "repository/SECURITY.md"),
        ("index.md", "../examples/", "repository/examples/index.md"),
        ("how-to/beams.md", "../generation.md", "generation.md"),
    ],
)
def test_a_link_to_a_file_of_the_repository_leads_to_its_page(site: Any, page: str, link: str, path: str) -> None:
    target = (DOCS / page).parent / link
    assert site.address(target.resolve()) == path
    assert site.source_of(path) == target.resolve()


def test_what_is_loaded_from_the_network_is_a_warning(site: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="mkdocs"):
        assert site.local(f"<head>{site.SHIM}</head>", "rotary/yarn.html") == (
            '<head><script src="../assets/worker.js"></script></head>'
        )
        assert not caplog.records
        site.local(
            '<a href="https://arxiv.org/"></a><link rel="stylesheet" href="https://fonts.example/x.css">', "a.html"
        )
    assert [record.getMessage() for record in caplog.records] == [
        "a.html loads https://fonts.example/x.css from the network"
    ]


def test_the_start_page_lists_every_page() -> None:
    text = navigation.PAGE.read_text("utf-8")
    assert text == navigation.render(text), "run make docs"


@pytest.mark.parametrize("name", ["rope", "alibi", "cope"])
def test_reasons_are_those_of_the_validator(name: str) -> None:
    page, why = (DOCS / "why-refused.md").read_text("utf-8"), generator("why_refused")
    answers = why.row(name)
    assert why.table_row(name, answers) in page, "run make docs"
    assert [text for _, text in answers.values() if text not in page] == [], "run make docs"


def test_pairs_are_those_of_the_validator() -> None:
    page, why = (DOCS / "why-refused.md").read_text("utf-8"), generator("why_refused")
    assert why.pair("rope", "alibi") is None
    word, _ = why.pair("rope", "xpos")
    assert word == "**no**"
    assert "`rope` + `xpos`" in page
    assert "`rope` + `alibi`" not in page
