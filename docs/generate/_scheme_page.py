"""The page of one position scheme: formula, settings, what the validator requires, measured curve, contract."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.evidence.pages import interval, ranked
from benchmarks.evidence.store import Evidence
from docs.generate._fields import field_docs
from docs.generate.validator import ONE_SCHEME, SCALINGS, entry
from x_positional.config.layers import LayersConfig
from x_positional.evidence.comparison.statistics import t_interval
from x_positional.schemes.registry import REGISTRY, SchemeConfig

DOCS = Path(__file__).parents[1]
AXES = {"axial", "mixed"}
"""Schemes for positions with several axes."""
PLAIN = """\
import torch
from x_positional import Decoder, TransformerWrapper

model = TransformerWrapper(
    num_tokens=256, max_seq_len=256, attn_layers=Decoder(dim=64, depth=2, heads=4, position={position})
)
logits = model(torch.randint(0, 256, (1, 100)))
"""
IMAGES = """\
import torch
from x_positional import Encoder, ViTransformerWrapper

model = ViTransformerWrapper(
    image_size=32, patch_size=8, num_classes=10, attn_layers=Encoder(dim=64, depth=2, heads=4, position="{name}")
)
logits = model(torch.rand(1, 3, 48, 32))  # another size than the trained one
"""
TOGETHER = {"log_n", "ssmax", "temperature"}
"""Schemes that only scale queries: they are combined with one that tells positions apart."""


def about(cls: type) -> str:
    """A class's docstring without its arguments."""
    return inspect.cleandoc(cls.__doc__ or "").split("\nArgs:")[0].rstrip()


def settings(config: type[SchemeConfig]) -> list[str]:
    """One line per field: name, default, meaning."""
    docs = field_docs(config)
    fields = [(n, f.default) for n, f in config.model_fields.items() if n != "kind"]
    return [f"- `{name}={default!r}`: {docs[name]}" for name, default in fields]


def source(paper: str) -> str:
    """The paper, linked where it is on arXiv."""
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", paper)


def example(name: str) -> str:
    """A program that builds and runs a small model."""
    if name in AXES:
        return IMAGES.format(name=name)
    position = f'["{name}", "rope"]' if name in TOGETHER else f'"{name}"'
    return PLAIN.format(position=position)


def rules(name: str) -> Iterator[str]:
    """What the validator refuses or warns of, for this scheme alone."""
    examples = [one for one in ONE_SCHEME if name in one.why.split(":")[0].split(", ")]
    for one in examples:
        yield from entry(one)
    if name == "rope":
        yield f"\n{len(SCALINGS)} more rules are about [scaled frequencies](../validator.md#scaled-rotary-frequencies)."


def kinds(layers: Any, inside: bool = False) -> set[str]:
    """The names of the schemes in a part of a config."""
    if isinstance(layers, str):
        return {layers} if inside else set()
    if isinstance(layers, dict):
        named = {layers["kind"]} if inside and "kind" in layers else set()
        return named.union(*(kinds(value, key == "position") for key, value in layers.items()))
    return set().union(*(kinds(part, inside) for part in layers)) if isinstance(layers, list | tuple) else set()


def measured_labels(evidence: Evidence, name: str) -> list[str]:
    """The entries of the leaderboard that contain a scheme and have a loss, the scheme alone first."""
    found = [
        one.label
        for one in evidence.comparison.entries
        if name in kinds(one.layers) and any(evidence.bits(one.label, n) for n in evidence.comparison.lengths)
    ]
    return sorted(found, key=lambda label: label != name)


def measured(evidence: Evidence | None, name: str) -> list[str]:
    """The picture's line and a table of losses; a sentence where there are none."""
    labels = [] if evidence is None else measured_labels(evidence, name)
    if evidence is None or not labels:
        return [
            "Not in the [leaderboard](../evidence.md) yet: `make evidence` measures it." if evidence else UNMEASURED
        ]
    comparison, ranks = evidence.comparison, ranked(evidence)
    lines = [
        f"![Bits per byte by context length]({name}.svg)",
        "",
        f"Trained at {comparison.trained_length} bytes with {len(comparison.seeds)} seeds; bits per byte, lower is better, "
        "± half of the 95 % interval. Rank is by the mean loss past the trained length. All schemes in one table: "
        "[Evidence](../evidence.md).",
        "",
        f"| | rank of {len(ranks)} | {' | '.join(f'{n:,}' for n in comparison.lengths)} |",
        f"|---|---:|{'---:|' * len(comparison.lengths)}",
    ]
    for label in labels:
        values = [list(evidence.bits(label, n).values()) for n in comparison.lengths]
        cells = [interval(t_interval(found)) if found else "fails" for found in values]
        lines.append(f"| {label} | {ranks.index(label) + 1} | {' | '.join(cells)} |")
    return lines


UNMEASURED = "Not measured yet."


def contract(name: str, page: str) -> str:
    """The results of the contract suite, from the page that holds them."""
    found: dict[str, str] = {}
    checks: list[str] = []
    for line in page.split("## Every registered scheme")[1].split("\n## ")[0].splitlines():
        cells = [part.strip() for part in line.strip("|").split("|")]
        if cells[0] == "scheme":
            checks = [part.strip("`") for part in cells[1:]]
        elif cells[0] == name:
            found |= dict(zip(checks, cells[1:], strict=True))
    if not found:
        return "Not measured yet: `make pages` runs the [contract suite](../conformance.md)."
    numbers = [float(cell) for cell in found.values() if cell[0].isdigit()]
    absent = [check for check, cell in found.items() if cell == "-"]
    failed = [check for check, cell in found.items() if "fails" in cell]
    passed = len(found) - len(absent) - len(failed)
    words = f"{passed} checks of the [contract suite](../conformance.md) pass"
    if failed:
        words += f", {len(failed)} fail ({', '.join(f'`{check}`' for check in failed)})"
    if absent:
        applies = "does not apply" if len(absent) == 1 else "do not apply"
        words += f"; {len(absent)} {applies} ({', '.join(f'`{check}`' for check in absent)})"
    if numbers:
        words += f". The largest difference between results that must be equal is {max(numbers):.0e}, in float32"
    return f"{words}.".replace("e-0", "e-")


def render(name: str, capabilities: list[tuple[str, str]], evidence: Evidence | None) -> str:
    """The whole page."""
    config = REGISTRY[name]
    scheme = config().build(LayersConfig(dim=64, depth=1, heads=4, head_dim=32).dims(128))
    described = about(config).removeprefix(f'`position="{name}"`')
    lines = [f"# {name}", "", f"{config.summary[0].upper()}{config.summary[1:]}.", ""]
    lines += ["## Formula", "", about(type(scheme)), ""]
    if (DOCS / "rotary" / f"{name}.md").exists():
        lines += [f"When to use it, its cost, its form in a `config.json`: [{name}](../rotary/{name}.md).", ""]
    lines += ["## Use it", "", "```python", example(name).rstrip(), "```", ""]
    lines += ["## Settings", "", f"Config `{config.__name__}`{described}", ""]
    if fields := settings(config):
        lines += [*fields, ""]
    lines += [
        "## Capabilities",
        "",
        "| | |",
        "|---|---|",
        *(f"| {fact} | {value} |" for fact, value in capabilities),
        "",
    ]
    lines += ["What the rows mean: [Schemes](../schemes.md).", ""]
    lines += ["## Measured", "", *measured(evidence, name), ""]
    lines += ["## Contract", "", contract(name, (DOCS / "conformance.md").read_text("utf-8")), ""]
    if found := list(rules(name)):
        lines += ["## What the validator requires", "", *found, ""]
    return "\n".join([*lines, "## Source", "", f"{source(config.paper)}.", ""])
