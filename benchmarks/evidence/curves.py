"""The picture of docs/evidence.md: bits per byte by context length, some schemes named and the others grey."""

from pathlib import Path
from typing import Any

from benchmarks.evidence.pages import ranked
from benchmarks.evidence.store import Evidence
from x_positional.errors import import_extra
from x_positional.evidence.comparison.statistics import t_interval

NAMED = {
    "none": "#000000",
    "sinusoidal": "#e69f00",
    "rope": "#d55e00",
    "xpos": "#cc79a7",
    "alibi": "#0072b2",
    "t5": "#009e73",
    "kerple": "#56b4e9",
    "fire": "#6a3d9a",
}
"""Label -> colour, of Okabe and Ito (2008) where it lasts: they differ for colour-blind readers too."""
MARKS = "os^vDPX*"
OTHERS = "#b8b8b8"


def draw(evidence: Evidence, path: Path) -> None:
    """Write the PNG. Raises UserError where matplotlib is missing."""
    import_extra("matplotlib.figure", "the picture needs", "train")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 5.2), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    labels = ranked(evidence)
    for label in labels:
        if label not in NAMED:
            _line(axes, evidence, label, color=OTHERS, linewidth=0.9, zorder=1)
    for mark, (label, color) in zip(MARKS, NAMED.items(), strict=True):
        if label in labels:
            _band(axes, evidence, label, color)
            _line(axes, evidence, label, color=color, linewidth=1.8, marker=mark, markersize=5, zorder=3, label=label)
    lengths = evidence.comparison.lengths
    axes.axvline(evidence.comparison.trained_length, color="#555555", linewidth=1, linestyle=":")
    axes.annotate(
        "trained length",
        (evidence.comparison.trained_length, 1.0),
        (4, -4),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        va="top",
        fontsize=9,
        color="#555555",
    )
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [f"{n:,}" for n in lengths])
    axes.minorticks_off()
    axes.set_xlabel("context length, bytes")
    axes.set_ylabel("validation loss, bits per byte")
    axes.plot([], [], color=OTHERS, linewidth=0.9, label="other schemes")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Software": None})


def _points(evidence: Evidence, label: str) -> dict[int, list[float]]:
    found = {length: list(evidence.bits(label, length).values()) for length in evidence.comparison.lengths}
    return {length: values for length, values in found.items() if values}


def _line(axes: Any, evidence: Evidence, scheme: str, **style: Any) -> None:
    points = _points(evidence, scheme)
    axes.plot(list(points), [sum(values) / len(values) for values in points.values()], **style)


def _band(axes: Any, evidence: Evidence, label: str, color: str) -> None:
    found = {n: t_interval(values) for n, values in _points(evidence, label).items() if len(values) > 1}
    low, high = [item.low for item in found.values()], [item.high for item in found.values()]
    axes.fill_between(list(found), low, high, color=color, alpha=0.15, linewidth=0, zorder=2)
