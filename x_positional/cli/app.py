"""The commands of `x-positional`, one function each; what they do is in the modules they call."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from x_positional.cli.convert import convert as write_converted
from x_positional.cli.overrides import parse_overrides
from x_positional.cli.plot import plot_model
from x_positional.cli.published import is_published
from x_positional.cli.run import run_training
from x_positional.cli.sample import Sampling, sample_text
from x_positional.cli.talk import talk
from x_positional.cli.verify import verify as compare
from x_positional.config import validate
from x_positional.errors import UserError
from x_positional.models.saving import Format
from x_positional.training.load import load_config, load_model

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train, sample, check, draw and convert transformers with any position scheme.",
)

OVERRIDES = {"allow_extra_args": True, "ignore_unknown_options": True}
Cache = Literal["static", "growing", "sliding"]
ConfigFile = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="A YAML file, or the folder of a run.", show_default=False)
]


@app.command(context_settings=OVERRIDES, epilog="Any key of the config is an option: --model.layers.depth 4 --lr 3e-4")
def train(
    context: typer.Context,
    config: ConfigFile,
    data: Annotated[
        str | None, typer.Option(help="Text file, folder, .npy or .bin. Default: the embedded text.")
    ] = None,
    run_dir: Annotated[str | None, typer.Option(help="Folder for checkpoints, log and plot (run.dir).")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in its folder, bit-equal.")] = False,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the resolved config and stop.")] = False,
) -> None:
    """Train a decoder on text or token ids. Options win over the file, the file over the defaults."""
    overrides = _overrides(config, context, {"data.path": data, "run.dir": run_dir})
    if config.is_dir() and "run.dir" not in overrides:
        overrides["run.dir"] = str(config)
    resolved = load_config(config, overrides)
    if print_config:
        print(resolved.to_yaml(), end="")
        return
    raise typer.Exit(run_training(resolved, resume=resume))


@app.command()
def generate(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            help="The folder of a run or of a published model, a GGUF file, or a name on the Hub.",
            show_default=False,
        ),
    ],
    prompt: Annotated[str, typer.Option(help="The text to continue; '-' reads it from the standard input.")],
    chat: Annotated[bool, typer.Option("--chat", help="Ask the prompt by the model's chat template.")] = False,
    length: Annotated[int, typer.Option("--max-new-tokens", "--length", min=1, help="New tokens at most.")] = 512,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token each time.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(min=1, help="Keep the k likeliest tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Keep the likeliest tokens of this mass.")
    ] = None,
    min_p: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Drop tokens below this share of the top one.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Make the draw repeatable.")] = None,
    cache: Annotated[bool, typer.Option("--cache/--no-cache", help="Use the key/value cache.")] = True,
    stop: Annotated[bool, typer.Option("--stop/--no-stop", help="Stop where the model ends the document.")] = True,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, or auto.")] = "auto",
    dtype: Annotated[str | None, typer.Option(help="Of a published model: float32, bfloat16 or float16.")] = None,
) -> None:
    """Continue a prompt with a trained or a published model, and write the text as it comes."""
    sampling = Sampling(
        length=length, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed, cache=cache, stop=stop
    )
    text = sys.stdin.read() if prompt == "-" else prompt
    if is_published(model):
        return talk(model, text, sampling, chat=chat, device=device, dtype=dtype)
    for name, given in (("--chat", chat), ("--dtype", dtype)):
        if given:
            raise UserError(
                f"{name} is for published models, and {model} is no folder with config.json and no GGUF file"
            )
    return sample_text(model, text, sampling, device)


@app.command(context_settings=OVERRIDES, epilog="Any key of the model is an option: --model.layers.position alibi")
def check(
    context: typer.Context,
    config: ConfigFile,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")] = False,
    cache: Annotated[Cache | None, typer.Option(help="The cache to decode with.")] = None,
    cache_window: Annotated[int | None, typer.Option(min=1, help="Tokens that a sliding cache keeps.")] = None,
    decode_to: Annotated[int | None, typer.Option(min=1, help="Prompt and new tokens together.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    for_training: Annotated[bool, typer.Option("--train", help="Gradients are wanted.")] = False,
) -> None:
    """Say whether a model can be built and used, which backend will run and why. Exit code 1 when there are errors."""
    fields, problems = load_model(config, _overrides(config, context, {}))
    report = validate.check(
        fields,
        cache=cache,
        cache_window=cache_window,
        decode_to=decode_to,
        device=device,
        dtype=dtype,
        train=for_training,
    )
    report = replace(report, errors=[*problems, *report.errors])
    print(json.dumps(report.to_dict(), indent=1) if as_json else report)
    if not report.ok:
        raise typer.Exit(1)


@app.command(context_settings=OVERRIDES, epilog="Any key of the model is an option: --model.layers.position alibi")
def plot(
    context: typer.Context,
    config: ConfigFile,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the pictures. Default: plots/ and the config's name.")
    ] = None,
) -> None:
    """Draw what a model's position schemes do: PNG files, and one HTML page that holds them all."""
    fields, problems = load_model(config, _overrides(config, context, {}))
    plot_model(fields, problems, config, out)


@app.command()
def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="A published model: folder, GGUF file, name on the Hub. Or the folder of a run.",
            show_default=False,
        ),
    ],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="The folder to write.", show_default=False)],
    form: Annotated[
        Format, typer.Option("--format", help="hf: as transformers reads it. native: any model of ours.")
    ] = "hf",
    model_type: Annotated[
        str | None, typer.Option(help="The family to write, for hf. Default: its own, or the first that fits.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16. Default: as stored; GGUF is dequantised.")
    ] = None,
) -> None:
    """Write a model in another form, with its tokenizer: config.json and safetensors."""
    write_converted(source, target, form, model_type=model_type, dtype=dtype)


@app.command()
def verify(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL", help="A published model: folder, GGUF file, name on the Hub.", show_default=False
        ),
    ],
    tolerance: Annotated[float, typer.Option(min=0.0, help="Largest difference, beside the largest value.")] = 1e-4,
    dtype: Annotated[str, typer.Option(help="What both sides compute in: float32 or float64.")] = "float32",
    max_tokens: Annotated[int, typer.Option(min=1, help="The longest text to run, for windows.")] = 2048,
) -> None:
    """Compare a model's logits with those of transformers. Exit code 1 where they differ."""
    if not compare(model, tolerance, dtype, max_tokens):
        raise typer.Exit(1)


def _overrides(config: Path, context: typer.Context, short: dict[str, str | None]) -> dict[str, object]:
    """Dotted options and their short spellings as one mapping."""
    if str(config).startswith("-"):
        raise UserError(f"the first argument is the config, and {str(config)!r} came first; write options after it")
    values = parse_overrides(context.args)
    for name, value in short.items():
        if value is not None and name in values:
            raise UserError(f"{name} is given twice, as --{name} and by its short option")
        if value is not None:
            values[name] = value
    return values
