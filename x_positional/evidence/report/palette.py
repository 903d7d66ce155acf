"""Colours, dashes and shapes of series, and the two themes of a page.

The counts of colours, shapes and dashes share no factor, so that a series further on repeats one of them, never all.
"""

from typing import Any

LIGHT = (
    "#1f6fb4",
    "#d1491b",
    "#13865c",
    "#a2409c",
    "#a67a00",
    "#0b8a99",
    "#c2255c",
    "#5b53c4",
    "#5d7d1e",
    "#8a5a44",
    "#3d4a5c",
    "#e0638f",
)
DARK = (
    "#5aa9f0",
    "#ff8a57",
    "#3fcf98",
    "#dc86d6",
    "#e5b83a",
    "#41cbdc",
    "#ff6f9a",
    "#a49cff",
    "#a9cf52",
    "#cf9e86",
    "#b6c3d6",
    "#ffa8c6",
)
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-left")
DASHES = ((1, 0), (8, 3), (2, 2), (10, 3, 2, 3), (14, 4))

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', 'DejaVu Sans', sans-serif"


def _theme(text: str, faint: str, grid: str, colours: tuple[str, ...]) -> dict[str, Any]:
    """A Vega config."""
    words = {"font": FONT, "color": text}
    return {
        "background": "transparent",
        "font": FONT,
        "range": {"category": list(colours)},
        "axis": {
            "labelColor": text,
            "titleColor": text,
            "labelFontSize": 12,
            "titleFontSize": 12.5,
            "titleFontWeight": 500,
            "gridColor": grid,
            "domainColor": faint,
            "tickColor": faint,
        },
        "header": {"labelColor": text, "titleColor": text, "labelFontSize": 12, "titleFontSize": 12, "labelLimit": 0},
        "legend": {
            "labelColor": text,
            "titleColor": text,
            "labelFontSize": 12,
            "titleFontSize": 12,
            "labelLimit": 0,
            "titleLimit": 0,
            "layout": {"bottom": {"direction": "vertical", "anchor": "start"}},
        },
        "title": words,
        "text": {"color": text},
        "style": {"mark": {"stroke": None, "fill": faint, "color": faint}},
        "rule": {"color": faint},
        "view": {"stroke": None},
    }


THEMES = {
    "light": _theme("#24292f", "#6b7480", "#e3e6ea", LIGHT),
    "dark": _theme("#e6e8eb", "#9aa4b0", "#33383f", DARK),
}

PATHS = {
    "circle": "M5 0A5 5 0 1 1 -5 0A5 5 0 1 1 5 0Z",
    "square": "M-4.5 -4.5H4.5V4.5H-4.5Z",
    "triangle-up": "M0 -5.5L5.5 4.5H-5.5Z",
    "diamond": "M0 -6.2L6.2 0L0 6.2L-6.2 0Z",
    "cross": "M-1.9 -5.5H1.9V-1.9H5.5V1.9H1.9V5.5H-1.9V1.9H-5.5V-1.9H-1.9Z",
    "triangle-down": "M0 5.5L5.5 -4.5H-5.5Z",
    "triangle-left": "M-5.5 0L4.5 5.5V-5.5Z",
}
"""The shapes as SVG paths around 0, for the legend of the page."""
