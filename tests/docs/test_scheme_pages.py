"""The page of each scheme: its example runs, its losses and its contract are those that were measured."""

from xml.etree import ElementTree

import pytest
import torch

from docs.generate import _curves, _scheme_page
from tests.support.doc_pages import generator
from tests.support.measured import evidence

NAMES = generator("schemes").names()
LOSSES = {
    "none": (2.6, 3.5),
    "rope": (2.5, 7.0),
    "ssmax+rope": (2.55, 6.0),
    "alibi": (2.5, 2.45),
    "forgetting+rope": (2.4, 2.5),
    "rope and none every 3rd": (2.4, 3.0),
}


@pytest.mark.parametrize("name", NAMES)
def test_the_example_runs(name: str) -> None:
    names: dict[str, torch.Tensor] = {}
    exec(compile(_scheme_page.example(name), name, "exec"), names)
    assert names["logits"].isfinite().all()


def test_losses_of_a_scheme_and_of_its_variants_are_shown() -> None:
    found = evidence(LOSSES)
    labels = ["rope", "ssmax+rope", "forgetting+rope", "rope and none every 3rd"]
    assert sorted(_scheme_page.measured_labels(found, "rope")) == sorted(labels)
    assert _scheme_page.measured_labels(found, "none") == ["none", "rope and none every 3rd"]
    table = "\n".join(_scheme_page.measured(found, "alibi"))
    assert "| alibi | 1 | 2.500 ± 0.025 | 2.450 ± 0.025 |" in table
    assert "![Bits per byte by context length](alibi.svg)" in table
    assert "make evidence" in "\n".join(_scheme_page.measured(found, "cope"))
    assert _scheme_page.measured(None, "rope") == [_scheme_page.UNMEASURED]


def test_the_picture_is_small_and_marks_the_trained_length() -> None:
    picture = _curves.draw(evidence(LOSSES), ["rope", "ssmax+rope"])
    root = ElementTree.fromstring(picture)
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"rope", "ssmax+rope", "grey: other schemes", "trained length", "4,096"} <= set(texts)
    assert len(list(root.iter("{http://www.w3.org/2000/svg}polyline"))) == len(LOSSES)
    assert len(picture) < 5000


CONTRACT = """
## Every registered scheme

| scheme | `a` | `b` |
|---|---|---|
| rope | ok | 2e-6 |
| cope | **fails** | - |

| scheme | `c` |
|---|---|
| rope | 3e-6 |

## Several at once

| scheme | `a` |
|---|---|
| rope | **fails** |
"""


def test_results_of_the_contract_are_counted() -> None:
    assert _scheme_page.contract("rope", CONTRACT).startswith(
        "3 checks of the [contract suite](../conformance.md) pass."
    )
    assert "is 3e-6, in float32" in _scheme_page.contract("rope", CONTRACT)
    assert "1 fail (`a`); 1 does not apply (`b`)" in _scheme_page.contract("cope", CONTRACT)
    assert "make pages" in _scheme_page.contract("new", CONTRACT)


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        ({"position": "rope"}, {"rope"}),
        ({"position": ["rope", {"kind": "log_n", "trained": 64}]}, {"rope", "log_n"}),
        ({"position": {"kind": "rope", "scaling": {"rope_type": "yarn"}}, "norm": {"kind": "rms"}}, {"rope"}),
        ({"pattern": [{"position": "rope", "window": 4}, {"position": "none"}]}, {"rope", "none"}),
    ],
)
def test_the_schemes_of_an_entry(layers: dict[str, object], names: set[str]) -> None:
    assert _scheme_page.kinds(layers) == names
