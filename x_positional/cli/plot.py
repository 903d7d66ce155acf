"""`x-positional plot`: plots of the position schemes of a config."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from x_positional.cli.generate import load_net
from x_positional.config import validate
from x_positional.config.layers import LayersConfig
from x_positional.config.models import ModelConfig
from x_positional.config.validate.target import AnyConfig, read_target
from x_positional.config.vision import VisionConfig
from x_positional.errors import UserError, listed
from x_positional.evidence.report import measure, plot_page, write_page
from x_positional.models.language import build_model
from x_positional.plotting import Stage, draw
from x_positional.pretrained.source import checkpoint_of_run
from x_positional.progress import progress_bars
from x_positional.training.checkpoints.checkpoint import open_checkpoint
from x_positional.training.load import parse_config

FOLDER = Path("plots")


def plot_model(
    fields: Mapping[str, Any], problems: Sequence[str], source: Path, out: Path | None, html: Path | None = None
) -> None:
    """Draw the position schemes of a model and print the names of the files; those of a run before and after training.

    Args:
        fields: The model section of a config.
        problems: Errors found while reading it.
        source: The file or run folder it comes from.
        out: Folder for the files. Default: `plots/` and the name of `source`.
        html: Also write a page of interactive charts to this file.

    Raises:
        UserError: The config has errors; the message lists all of them.
        MissingExtra: matplotlib is not installed, or with `html` a package of the `report` extra.
    """
    errors = [*problems, *validate.check(fields).errors]
    if errors:
        raise UserError(listed(f"cannot plot {source}:", errors))
    config = next(iter(read_target(fields, {}).stacks.values())).config
    layers, length, embed_dim = _extents(config)
    if length is None:
        raise UserError(f"{source} has no max_seq_len, which sets the range of the plots; add --model.max_seq_len 1024")
    name = source.resolve().stem if source.is_file() else source.resolve().name
    title, stages = f"Position schemes of {name}", _stages(source, config)
    if html is not None:
        write_page(html, plot_page(measure(layers, length, embed_dim=embed_dim, stages=stages), title=title))
        print(f"{html} has interactive charts")
    gallery = draw(
        layers,
        length,
        out or FOLDER / name,
        title=title,
        embed_dim=embed_dim,
        stages=stages,
        track=progress_bars(Console()),
    )
    for picture in gallery.pictures:
        print(picture)
    print(f"{gallery.page} shows all of them" if gallery.pictures else f"{gallery.page}: nothing to plot")


def _stages(source: Path, config: AnyConfig) -> list[Stage]:
    """The initial and the trained parameters of a run's newest checkpoint, or of a checkpoint; none for a config."""
    if not source.is_dir() or checkpoint_of_run(source) is None:
        return []
    checkpoint = open_checkpoint(source)
    run = parse_config(checkpoint.config_text(), str(checkpoint.path))
    if run.model != config:
        print(f"new parameters are drawn: the options change the model, which those of {checkpoint.path} do not fit")
        return []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.run.seed)  # as training begins
        initial = build_model(run.model)
    trained = load_net(checkpoint, "cpu").float()
    steps = f"after {checkpoint.step} training steps"
    return [
        Stage("initial", "before training", initial.attn_layers),
        Stage("trained", steps, trained.attn_layers),
    ]


def _extents(config: AnyConfig) -> tuple[LayersConfig, int | None, int | None]:
    """The layers, the length to plot up to, and the width of the embeddings; None where a config has none."""
    if isinstance(config, LayersConfig):
        return config, None, None
    if isinstance(config, VisionConfig):
        return config.stack, config.trained_patches, None
    return config.layers, config.max_seq_len, config.placed_dim if isinstance(config, ModelConfig) else None
