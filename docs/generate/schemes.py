"""Renders docs/schemes.md, a page for each scheme and the table in README.md: what each scheme is and can do.

Run from the repository root: PYTHONPATH=. python docs/generate/schemes.py
"""

from pathlib import Path

from benchmarks.evidence.store import Evidence, read
from docs.generate import _scheme_page
from docs.generate._curves import COLORS, draw
from x_positional.attention.backends import obstacles
from x_positional.config.layers import LayersConfig
from x_positional.config.validate import Report, layers_report
from x_positional.schemes.base import ActsOn
from x_positional.schemes.registry import REGISTRY, SchemeConfig

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "schemes.md"
FOLDER = PAGE.with_suffix("")
README = ROOT / "README.md"
BEGIN, END = "<!-- schemes: begin -->", "<!-- schemes: end -->"
ORDER = (
    "rope",
    "xpos",
    "polar",
    "alibi",
    "t5",
    "dynamic",
    "forgetting",
    "cope",
    "absolute",
    "sinusoidal",
    "scaled_sinusoidal",
    "none",
)
LENGTH = 128
WORDS: dict[ActsOn, str] = {
    "embeddings": "embeddings",
    "queries": "q",
    "keys": "k",
    "bias": "bias",
    "rows": "rows of scores",
}

PROSE = """\
# Schemes

Choose a scheme by name (`position="rope"`), by a config with its settings (`position=Rope(theta=5e5)`), or combine several
(`position=["absolute", "alibi"]`). Each name below leads to a page with formula, settings, measured losses and source. Which one
to take: [Which scheme should I choose?](choose.md). This page is generated from the registry. The contract suite verifies the
capabilities: what is declared works, and what is not declared fails ([Conformance](conformance.md)).

Rotary schemes and their scalings have [a page each](rotary/index.md): formula, when to use it, cost, and behaviour past the
trained length. For images, video and timestamps see [positions with more than one axis](axes.md). To see what a scheme does:
[`x-positional plot`](plot.md).
"""


LEGEND = """\
- **acts on**: where position enters. Any kernel can run schemes that act on *q* and *k* or on *embeddings*. A *bias* is added
  to scores, as a mask tensor (sdpa) or inside the kernel (flex). *Rows of scores* need eager attention, or blockwise, which
  holds one block of rows at a time.
- **cached keys stay valid**: a cached key is still correct as the sequence grows.
- **past max_seq_len**: whether positions are defined there. Quality there is a different question: measure it.
- **float positions**: timestamps and other fractions are supported. Schemes that read no positions reject custom ones.
- **needs a causal mask**: the scheme is undefined without one, and rejected in an `Encoder`.
"""


def names() -> list[str]:
    """Every registered scheme of the package: the well-known first, then the others by name."""
    own = [n for n in SchemeConfig.names() if REGISTRY[n].__module__.startswith("x_positional.")]
    return [n for n in ORDER if n in own] + sorted(set(own) - set(ORDER))


def yes(flag: bool) -> str:
    """A word for a fact."""
    return "yes" if flag else "no"


def report_of(name: str, kind: str) -> Report:
    """The validator's report on one layer with this scheme."""
    return layers_report(LayersConfig(kind=kind, dim=64, depth=1, heads=4, head_dim=32, position=name), LENGTH)


def past_length(name: str) -> str:
    """Whether positions are defined after max_seq_len, and how far."""
    limit = REGISTRY[name]().build(LayersConfig(dim=64, depth=1, heads=4, head_dim=32).dims(LENGTH)).limit
    if limit is None:
        return "yes"
    return "no" if limit <= LENGTH else f"to {limit:,}"


COLUMNS = (
    "acts on",
    "backends",
    "cached keys stay valid",
    "past max_seq_len",
    "float positions",
    "needs a causal mask",
)
KERNELS = ("sdpa", "flex", "blockwise", "eager")


def capabilities(name: str) -> list[str]:
    """The cells of one scheme, one for each of COLUMNS."""
    report = report_of(name, "decoder")
    caps = report.capabilities
    if caps is None:
        raise ValueError(f"{name} could not be built: {report.errors}")
    return [
        ", ".join(WORDS[place] for place in caps.acts_on) or "nothing",
        ", ".join(kernel for kernel in KERNELS if not obstacles(kernel, caps.kernel, frozenset())),
        yes(caps.kv_cacheable),
        past_length(name),
        yes(caps.continuous) if caps.uses_positions else "reads none",
        yes(bool(report_of(name, "encoder").errors)),
    ]


def capability_rows() -> list[str]:
    """The table, one scheme per row."""
    rows = [f"| scheme | {' | '.join(COLUMNS)} |", f"|---{'|---' * len(COLUMNS)}|"]
    return rows + [f"| [`{name}`](schemes/{name}.md) | {' | '.join(capabilities(name))} |" for name in names()]


def summary_rows() -> list[str]:
    """Name, what it is, source: for README."""
    rows = ["| `position=` | what it does | source |", "|---|---|---|"]
    return rows + [f"| `{n}` | {REGISTRY[n].summary} | {REGISTRY[n].paper} |" for n in names()]


def render() -> str:
    """The page of all schemes."""
    what = ["| scheme | what it does | source |", "|---|---|---|"]
    what += [
        f"| [`{n}`](schemes/{n}.md) | {REGISTRY[n].summary} | {_scheme_page.source(REGISTRY[n].paper)} |"
        for n in names()
    ]
    return "\n".join([PROSE, *what, "", "## Capabilities", "", LEGEND, *capability_rows(), ""])


def render_pages(evidence: Evidence | None) -> dict[str, str]:
    """The page of each scheme, and the picture of its measured losses where there are any, by file name."""
    found = {}
    for name in names():
        found[f"{name}.md"] = _scheme_page.render(name, list(zip(COLUMNS, capabilities(name), strict=True)), evidence)
        if evidence and (labels := _scheme_page.measured_labels(evidence, name)):
            found[f"{name}.svg"] = draw(evidence, labels[: len(COLORS)])
    return found


def render_readme(text: str) -> str:
    """README with its table of schemes replaced."""
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{chr(10).join(summary_rows())}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(render())
    README.write_text(render_readme(README.read_text()))
    FOLDER.mkdir(exist_ok=True)
    for file, text in render_pages(read()).items():
        (FOLDER / file).write_text(text)
