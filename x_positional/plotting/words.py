"""Numbers in prose."""

import math

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
SMALLEST = 1e-5
"""Numbers nearer to 0 are written with a power of ten."""


def number(value: float, digits: int = 3, *, zeros: bool = False) -> str:
    """At least `digits` significant digits, without an exponent: `35,300`, `1.85`, `0.00042`; `4.2 × 10⁻⁹` if tiny.

    Args:
        value: The number.
        digits: Significant digits.
        zeros: Keep zeros at the end, as in `2.590`, for numbers below each other.
    """
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "∞" if value > 0 else "-∞"
    rounded = float(f"{value:.{digits}g}")
    if rounded == 0:
        return "0"
    exponent = math.floor(math.log10(abs(rounded)))
    if abs(rounded) < SMALLEST:
        return f"{rounded / 10.0**exponent:.{digits}g} × 10{str(exponent).translate(SUPERSCRIPTS)}"
    text = f"{rounded:,.{max(0, digits - 1 - exponent)}f}"
    return text.rstrip("0").rstrip(".") if "." in text and not zeros else text
