"""A scheme's loss by context length as a small SVG: its own variants in colour, the other schemes grey."""

import math
from collections.abc import Sequence

from benchmarks.evidence.store import Evidence
from x_positional.evidence.comparison.statistics import t_interval

COLORS = ("#d55e00", "#3a8fd6", "#009e73", "#cc79a7")
"""Of Okabe and Ito (2008), the blue lighter: readable on white and on black, and told apart by colour-blind readers."""
GREY, TEXT = "#88888866", "#808080"
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 290, 48, 150, 26, 40
MOST = 3.0
"""Bits per byte above the lowest loss at which the picture ends."""


def means(evidence: Evidence, label: str) -> list[tuple[int, float, float]]:
    """Length, mean over seeds, and half of its interval."""
    found = []
    for length in evidence.comparison.lengths:
        values = list(evidence.bits(label, length).values())
        if values:
            interval = t_interval(values)
            found.append((length, interval.mean, interval.half or 0.0))
    return found


class Axes:
    """Places of lengths and losses in the picture."""

    def __init__(self, evidence: Evidence):
        self.lengths = evidence.comparison.lengths
        losses = [mean for label in evidence.labels for _, mean, _ in means(evidence, label)]
        self.low = math.floor(min(losses) * 2) / 2
        self.high = min(math.ceil(max(losses) * 2) / 2, self.low + MOST)

    def x(self, length: int) -> float:
        first, last = math.log2(self.lengths[0]), math.log2(self.lengths[-1])
        return LEFT + (math.log2(length) - first) / max(last - first, 1e-9) * (WIDTH - LEFT - RIGHT)

    def y(self, loss: float) -> float:
        return TOP + (self.high - loss) / (self.high - self.low) * (HEIGHT - TOP - BOTTOM)

    def path(self, points: Sequence[tuple[int, float]]) -> str:
        return " ".join(f"{self.x(n):.0f},{self.y(loss):.1f}" for n, loss in points)


def text(x: float, y: float, words: str, more: str = "") -> str:
    """A label."""
    return f'<text x="{x:.0f}" y="{y:.0f}"{more}>{words}</text>'


def frame(axes: Axes, trained: int) -> list[str]:
    """Ticks, names of the axes, and the trained length."""
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    lines = [f'<path d="M{LEFT} {TOP}V{bottom}H{right}" fill="none" stroke="{TEXT}"/>']
    for step in range(math.floor((axes.high - axes.low) * 2) + 1):
        loss = axes.low + step / 2
        lines.append(text(LEFT - 6, axes.y(loss) + 4, f"{loss:.1f}", ' text-anchor="end"'))
    lines += [text(axes.x(n), bottom + 16, f"{n:,}", ' text-anchor="middle"') for n in axes.lengths]
    lines.append(text((LEFT + right) / 2, HEIGHT - 6, "context length, bytes", ' text-anchor="middle"'))
    x = axes.x(trained)
    lines.append(f'<path d="M{x:.0f} {TOP}V{bottom}" stroke="{TEXT}" stroke-dasharray="2 3"/>')
    lines.append(text(x + 5, TOP + 8, "trained length"))
    return lines


def draw(evidence: Evidence, labels: Sequence[str]) -> str:
    """The picture. labels: the lines in colour, at most as many as there are colours."""
    axes = Axes(evidence)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12" '
        f'fill="{TEXT}">',
        f'<clipPath id="c"><path d="M{LEFT} 0H{WIDTH - RIGHT}V{HEIGHT - BOTTOM}H{LEFT}z"/></clipPath>',
        *frame(axes, evidence.comparison.trained_length),
        f'<g clip-path="url(#c)" fill="none" stroke="{GREY}">',
    ]
    for label in evidence.labels:
        points = means(evidence, label)
        if label not in labels and points:
            lines.append(f'<polyline points="{axes.path([(n, mean) for n, mean, _ in points])}"/>')
    lines.append("</g>")
    for row, (label, color) in enumerate(zip(labels, COLORS, strict=False)):
        points = means(evidence, label)
        up, down = [(n, m + h) for n, m, h in points], [(n, m - h) for n, m, h in reversed(points)]
        lines.append(f'<polygon clip-path="url(#c)" points="{axes.path(up + down)}" fill="{color}" fill-opacity=".2"/>')
        line = axes.path([(n, mean) for n, mean, _ in points])
        lines.append(f'<polyline clip-path="url(#c)" points="{line}" fill="none" stroke="{color}" stroke-width="2.5"/>')
        lines.append(text(WIDTH - RIGHT + 10, TOP + 12 + 17 * row, label, f' fill="{color}" font-weight="bold"'))
    lines.append(text(WIDTH - RIGHT + 10, TOP + 12 + 17 * min(len(labels), len(COLORS)), "grey: other schemes"))
    lines.append(text(4, TOP - 12, "bits per byte"))
    return "\n".join([*lines, "</svg>", ""])
