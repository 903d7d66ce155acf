"""Arguments that several commands share, and config keys as options."""

from pathlib import Path
from typing import Annotated

import typer

from x_positional.errors import UserError
from x_positional.training.config import TrainConfig
from x_positional.training.overrides import parse_overrides

OVERRIDES = {"allow_extra_args": True, "ignore_unknown_options": True}
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps or auto.")]
PublishedDtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16, for a published model.")]
AnyModel = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        help="Run folder, folder of a published model, GGUF file, or model name on the Hub.",
        show_default=False,
    ),
]
ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file or run folder.", show_default=False)]


def overrides_of(config: Path, context: typer.Context, short: dict[str, str | None]) -> dict[str, object]:
    """Dotted options and short options in one mapping."""
    if str(config).startswith("-"):
        raise UserError(f"the first argument must be the config, not {str(config)!r}; put options after it")
    values = parse_overrides(context.args, TrainConfig)
    for name, value in short.items():
        if value is not None and name in values:
            raise UserError(f"{name} is given twice: as --{name} and by its short option")
        if value is not None:
            values[name] = value
    return values
