"""`x-positional plot`: pictures of the position schemes of a config."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from x_positional.config import validate
from x_positional.config.layers import LayersConfig
from x_positional.config.models import ModelConfig
from x_positional.config.validate.target import AnyConfig, read_target
from x_positional.config.vision import VisionConfig
from x_positional.errors import UserError, listed
from x_positional.plotting import draw
from x_positional.training.progress import shown

FOLDER = Path("plots")


def plot_model(fields: Mapping[str, Any], problems: Sequence[str], source: Path, out: Path | None) -> None:
    """Draw the schemes of a model's fields into `out` and print where they are.

    problems: what is already known to be wrong. Raises UserError with all that is wrong, MissingExtra without matplotlib.
    """
    errors = [*problems, *validate.check(fields).errors]
    if errors:
        raise UserError(listed(f"{source} cannot be drawn:", errors))
    config = next(iter(read_target(fields, {}).stacks.values())).config
    layers, length, embed_dim = _sizes(config)
    if length is None:
        raise UserError(f"{source} has no max_seq_len, which says how far to draw; add --model.max_seq_len 1024")
    name = source.resolve().stem if source.is_file() else source.resolve().name
    gallery = draw(
        layers, length, out or FOLDER / name, title=f"Positions of {name}", embed_dim=embed_dim, track=shown(Console())
    )
    for picture in gallery.pictures:
        print(picture)
    print(f"{gallery.page} holds all of them" if gallery.pictures else f"{gallery.page}: there is nothing to draw")


def _sizes(config: AnyConfig) -> tuple[LayersConfig, int | None, int | None]:
    """The layers, the longest text and the embedding's width, where there are."""
    if isinstance(config, LayersConfig):
        return config, None, None
    if isinstance(config, VisionConfig):
        return config.stack, config.trained_patches, None
    return config.layers, config.max_seq_len, config.placed_dim if isinstance(config, ModelConfig) else None
