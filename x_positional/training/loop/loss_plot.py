"""The loss curve of a run as a PNG, drawn from its log."""

from pathlib import Path

import numpy as np

from x_positional.errors import import_extra
from x_positional.training.loop.log import LOG, read_curve

FILE = "loss.png"
_TRAIN, _VALIDATION, _FAINT = "#2a6fbb", "#d1495b", "#b9cfe6"


def plot_losses(folder: Path, title: str) -> Path:
    """Plot `folder/log.jsonl` to `folder/loss.png`: training loss (raw and smoothed) and validation loss.

    The unit is bits per byte if the log has it, otherwise bits per token. Raises `MissingExtra` without matplotlib.
    """
    import_extra("matplotlib.figure", "the loss plot needs", "train")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    unit = "bits_per_byte" if read_curve(folder / LOG, "train", "bits_per_byte")[0] else "bits_per_token"
    steps, train = read_curve(folder / LOG, "train", unit)
    validated, validation = read_curve(folder / LOG, "validation", unit)
    figure = Figure(figsize=(8, 4.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(steps, train, color=_FAINT, linewidth=0.8)
    label = "training" if smoothed(train) == train else "training, smoothed"
    axes.plot(steps, smoothed(train), color=_TRAIN, linewidth=2, label=label)
    if validated:
        axes.plot(validated, validation, color=_VALIDATION, marker="o", markersize=4, linewidth=1.5, label="validation")
        axes.annotate(
            f"{validation[-1]:.3f}",
            (validated[-1], validation[-1]),
            xytext=(0, 8),
            textcoords="offset points",
            ha="right",
            color=_VALIDATION,
        )
    low, high = _limits([*smoothed(train), *validation])
    axes.set(xlabel="optimizer steps", ylabel=unit.replace("_", " "), title=title, ylim=(low, high))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(folder / FILE)
    return folder / FILE


def smoothed(values: list[float], share: float = 0.02) -> list[float]:
    """Running mean over `share` of the curve on each side, shorter at its ends; a short curve is returned unchanged."""
    reach = round(len(values) * share)
    if reach == 0:
        return values
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - reach, 0), np.minimum(index + reach + 1, len(values))
    return list((total[high] - total[low]) / (high - low))


def _limits(values: list[float]) -> tuple[float | None, float | None]:
    """Limits of the y axis that cut off the steep start, which would flatten the rest of the curve."""
    if not values:
        return None, None
    low, high = min(values), float(np.quantile(values, 0.97))
    margin = 0.06 * max(high - low, 0.05)
    return low - margin, high + margin
