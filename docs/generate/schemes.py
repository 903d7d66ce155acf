"""Renders docs/schemes.md and the table in README.md from the registry: what each scheme is and can do.

Run from the repository root: python docs/generate/schemes.py
"""

import inspect
from pathlib import Path

from x_positional.attention.backends import obstacles
from x_positional.config.layers import LayersConfig
from x_positional.config.validate import layers_report
from x_positional.schemes.registry import REGISTRY, SchemeConfig

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "schemes.md"
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

PROSE = """\
# Schemes

Every scheme is chosen by name (`position="rope"`), by a config with its settings (`position=Rope(theta=5e5)`), or with
others (`position=["absolute", "alibi"]`). This page is generated from the registry; the capabilities are those that the
contract suite proves, both ways, in [conformance.md](conformance.md).

How to read the columns:

- **acts on**: where position enters. *q, k* schemes run on any kernel. A *bias* is added to scores, as a mask tensor
  (sdpa) or inside the kernel (flex). *rows* need whole rows of scores: eager, or blockwise, which holds one block of
  rows at a time.
- **cached keys stay right**: a key written once is right as the sequence grows.
- **past max_seq_len**: positions are defined there. How good the text is there is another question: measure it.
- **float positions**: timestamps and other fractions work. Schemes that do not read positions at all refuse custom ones.
- **needs a causal mask**: blind to order, or undefined, without one; refused in an `Encoder`.

Rotary schemes and their scalings have [a page each](rotary/index.md): formula, when to use it, cost, and what happens past the
trained length. Images, video and time stamps: [positions with more than one axis](axes.md). To see what any scheme does:
[`x-positional plot`](plot.md).
"""


def names() -> list[str]:
    """Every registered scheme of the package: the well-known first, then any new one."""
    own = [n for n, c in REGISTRY.items() if c.__module__.startswith("x_positional.schemes")]
    return [n for n in ORDER if n in own] + sorted(set(own) - set(ORDER))


def yes(flag: bool) -> str:
    """A word for a fact."""
    return "yes" if flag else "no"


def acts_on(name: str, kernel: str, absolute: bool) -> str:
    """Where position enters, in words."""
    if name == "none":
        return "nothing"
    if kernel == "fused":
        return "embeddings" if absolute else "q, k"
    return {"bias": "bias", "rows": "rows of scores"}[kernel]


def capability_rows() -> list[str]:
    """The table, one scheme a row."""
    rows = [
        "| scheme | acts on | backends | cached keys stay right | past max_seq_len | float positions | needs a causal mask |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in names():
        report = layers_report(LayersConfig(kind="decoder", dim=64, depth=1, heads=4, head_dim=32, position=name), 128)
        caps = report.capabilities
        if caps is None:
            raise ValueError(f"{name} could not be built: {report.errors}")
        backends = ", ".join(
            b for b in ("sdpa", "flex", "blockwise", "eager") if not obstacles(b, caps.kernel, frozenset())
        )
        floats = yes(caps.continuous) if caps.uses_positions else "reads none"
        encoder = layers_report(LayersConfig(kind="encoder", dim=64, depth=1, heads=4, head_dim=32, position=name), 128)
        cells = (
            f"`{name}`",
            acts_on(name, caps.kernel, caps.absolute),
            backends,
            yes(caps.kv_cacheable),
            yes(caps.unbounded) if name != "xpos" else "to about 32k from its centre",
            floats,
            yes(bool(encoder.errors)),
        )
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def settings(config: type[SchemeConfig]) -> str:
    """The fields and their defaults."""
    fields = [f"`{n}={f.default!r}`" for n, f in config.model_fields.items() if n != "kind"]
    return ", ".join(fields) if fields else "none"


def summary_rows() -> list[str]:
    """Name, what it is, source: for README."""
    rows = ["| `position=` | what it does | source |", "|---|---|---|"]
    return rows + [f"| `{n}` | {REGISTRY[n].summary} | {REGISTRY[n].paper} |" for n in names()]


def details() -> list[str]:
    """One section per scheme: what, settings, formula as its module says it."""
    lines = []
    for name in names():
        config = REGISTRY[name]
        lines += [f"### `{name}`", "", f"{config.summary[0].upper()}{config.summary[1:]} ({config.paper}).", ""]
        scheme = config().build(LayersConfig(dim=64, depth=1, heads=4, head_dim=32).dims(128))
        lines += [inspect.cleandoc(type(scheme).__doc__ or ""), "", inspect.cleandoc(config.__doc__ or ""), ""]
        page = (
            f" More: [rotary/{name}.md](rotary/{name}.md)." if (PAGE.parent / "rotary" / f"{name}.md").exists() else ""
        )
        lines += [f"Config `{config.__name__}`; settings: {settings(config)}.{page}", ""]
    return lines


def render() -> str:
    """The whole page."""
    return "\n".join([PROSE, *capability_rows(), "", "## Each scheme", "", *details()]).rstrip() + "\n"


def render_readme(text: str) -> str:
    """README with its table of schemes made anew."""
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{chr(10).join(summary_rows())}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(render())
    README.write_text(render_readme(README.read_text()))
