"""The commands of `x-positional`: their arguments and help. The modules named after them do the work."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from x_positional.cli.convert import convert as write_converted
from x_positional.cli.convert import convert_adapters
from x_positional.cli.evidence.commands import measuring
from x_positional.cli.finetune import resolved as resolved_finetuning
from x_positional.cli.finetune import run_finetuning
from x_positional.cli.generate import GenerateOptions, generate_from_published, generate_from_run, prompt_text
from x_positional.cli.options import OVERRIDES, AnyModel, ConfigFile, Device, PublishedDtype, overrides_of
from x_positional.cli.published import descends_from_published, is_published
from x_positional.cli.train import run_training
from x_positional.cli.verify import verify as run_verify
from x_positional.config import validate
from x_positional.errors import UserError
from x_positional.models.quantize import Quantization
from x_positional.models.saving import Format
from x_positional.training.checkpoints.run_folder import load_run_config
from x_positional.training.config import RunConfig
from x_positional.training.cpu import bf16_warning, resolve_device
from x_positional.training.load import load_config, load_model

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Check, train, sample, plot, convert, verify and measure transformers with any position scheme.",
)

Cache = Literal["static", "growing", "sliding"]
SkipDamaged = Annotated[
    bool,
    typer.Option(
        "--skip-damaged", help="With --resume: continue from the newest checkpoint whose files are all intact."
    ),
]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="Print the resolved config and exit.")]


@app.command(context_settings=OVERRIDES, epilog="Every config key is an option: --model.layers.depth 4 --lr 3e-4")
def train(
    context: typer.Context,
    config: ConfigFile,
    data: Annotated[
        str | None, typer.Option(help="Text file, folder, .npy or .bin (data.path). Default: the embedded text.")
    ] = None,
    run_dir: Annotated[str | None, typer.Option(help="Folder for checkpoints, log and loss plot (run.dir).")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run from its newest checkpoint, bit-equal.")
    ] = False,
    skip_damaged: SkipDamaged = False,
    print_config: PrintConfig = False,
) -> None:
    """Train a decoder on text or token ids. Options override the config file, which overrides the defaults."""
    overrides = overrides_of(config, context, {"data.path": data, "run.dir": run_dir})
    if config.is_dir() and "run.dir" not in overrides:
        overrides["run.dir"] = str(config)
    if config.is_dir():
        resolved = load_run_config(config, overrides, skip_damaged=resume and skip_damaged)
    else:
        resolved = load_config(config, overrides)
    if print_config:
        print(resolved.to_yaml(), end="")
        return
    raise typer.Exit(run_training(resolved, resume=resume, skip_damaged=skip_damaged))


@app.command(context_settings=OVERRIDES, epilog="Every config key is an option: --lr 1e-4 --epochs 2 --lora.r 8")
def finetune(
    context: typer.Context,
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            help="Folder of a published model, GGUF file, run folder, or model name on the Hub.",
            show_default=False,
        ),
    ],
    data: Annotated[
        str | None, typer.Option(help="JSON Lines file of conversations (data.path).", show_default=False)
    ] = None,
    val: Annotated[
        str | None,
        typer.Option(help="JSON Lines file to hold out (chat.validation).", show_default="a fraction of the data"),
    ] = None,
    lora: Annotated[bool, typer.Option("--lora", help="Train LoRA adapters instead of all parameters.")] = False,
    run_dir: Annotated[
        str | None, typer.Option(help="Folder for checkpoints and log (run.dir).", show_default="runs/finetune")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the newest checkpoint. MODEL may be the run folder.")
    ] = False,
    skip_damaged: SkipDamaged = False,
    print_config: PrintConfig = False,
) -> None:
    """Fine-tune a published model, or your own run, on conversations: loss on the answers, with its chat template."""
    overrides = overrides_of(model, context, {"data.path": data, "chat.validation": val, "run.dir": run_dir})
    config = resolved_finetuning(model, overrides, lora=lora, resume=resume, skip_damaged=skip_damaged)
    if print_config:
        print(config.to_yaml(), end="")
        return
    raise typer.Exit(run_finetuning(config, resume=resume, skip_damaged=skip_damaged))


@app.command()
def generate(
    model: AnyModel,
    prompt: Annotated[
        str, typer.Option(help="Text to continue, or the source of an encoder-decoder; '-' reads it from stdin.")
    ],
    chat: Annotated[bool, typer.Option("--chat", help="Wrap the prompt in the model's chat template.")] = False,
    length: Annotated[
        int, typer.Option("--max-new-tokens", "--length", min=1, help="Maximum number of new tokens.")
    ] = 512,
    temperature: Annotated[
        float | None,
        typer.Option(min=0.0, help="Sampling temperature; 0 is greedy decoding.", show_default="0.8, of beams 1"),
    ] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="Sample from the k most likely tokens.")] = None,
    top_p: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Sample from the most likely tokens with this total probability."),
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Drop tokens less likely than this fraction of the most likely one."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed.")] = None,
    cache: Annotated[bool, typer.Option("--cache/--no-cache", help="Use the key/value cache.")] = True,
    stop: Annotated[bool, typer.Option("--stop/--no-stop", help="Stop at the end token.")] = True,
    compile: Annotated[
        bool | None,
        typer.Option(help="Compile the decoding step: half a minute, then faster tokens. By default where that pays."),
    ] = None,
    prefill_chunk_size: Annotated[
        int | None, typer.Option(min=1, help="Read the prompt this many tokens at a time, to bound memory.")
    ] = None,
    prompt_lookup: Annotated[
        int | None,
        typer.Option(min=1, help="Speculate: propose this many tokens copied from earlier text, judged in one pass."),
    ] = None,
    draft: Annotated[
        Path | None, typer.Option(help="Speculate: a smaller model with the same vocabulary that proposes tokens.")
    ] = None,
    start_token: Annotated[
        int | None,
        typer.Option(
            min=0, help="First token of an encoder-decoder's target. By default the one that the model names."
        ),
    ] = None,
    num_beams: Annotated[
        int, typer.Option(min=1, help="Beam search with this many beams; prints the best at the end.")
    ] = 1,
    num_return_sequences: Annotated[
        int, typer.Option(min=1, help="Print this many continuations: samples, or the best beams.")
    ] = 1,
    device: Device = "auto",
    dtype: PublishedDtype = None,
    quantize: Annotated[
        Quantization | None, typer.Option(help="Quantize the matrices: int8 is a quarter of the memory of float32.")
    ] = None,
) -> None:
    """Continue a prompt with a trained or published model, streaming the text."""
    options = GenerateOptions(
        length=length,
        temperature=(0.8 if num_beams == 1 else 1.0) if temperature is None else temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
        cache=cache,
        stop=stop,
        compile="auto" if compile is None else compile,
        prefill_chunk_size=prefill_chunk_size,
        prompt_lookup=prompt_lookup,
        draft=draft,
        start_token=start_token,
        num_beams=num_beams,
        num_return_sequences=num_return_sequences,
    )
    text = prompt_text(prompt)
    if is_published(model) or descends_from_published(model):
        return generate_from_published(
            model, text, options, chat=chat, device=device, dtype=dtype, quantization=quantize
        )
    for name, given in (("--chat", chat), ("--dtype", dtype), ("--start-token", start_token is not None)):
        if given:
            raise UserError(
                f"{name} needs a published model, but {model} is neither a folder with config.json nor a GGUF file"
            )
    return generate_from_run(model, text, options, device, quantize)


@app.command(context_settings=OVERRIDES, epilog="Every key of the model is an option: --model.layers.position alibi")
def check(
    context: typer.Context,
    config: ConfigFile,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    cache: Annotated[Cache | None, typer.Option(help="Decode with this cache.")] = None,
    cache_window: Annotated[int | None, typer.Option(min=1, help="Tokens kept by a sliding cache.")] = None,
    decode_to: Annotated[int | None, typer.Option(min=1, help="Sequence length to decode to, prompt included.")] = None,
    device: Annotated[str | None, typer.Option(help="Device: cpu or cuda.")] = None,
    dtype: Annotated[str | None, typer.Option(help="dtype: float32, bfloat16 or float16.")] = None,
    for_training: Annotated[bool, typer.Option("--train", help="Check for training.")] = False,
) -> None:
    """Check whether a model can be built and used, and which backend runs it. Exit code 1 if there are errors."""
    overrides = overrides_of(config, context, {})
    fields, problems = load_model(config, overrides)
    report = validate.check(
        fields,
        cache=cache,
        cache_window=cache_window,
        decode_to=decode_to,
        device=device,
        dtype=dtype,
        train=for_training,
    )
    slow = bf16_warning() if _bf16_on_cpu(config, overrides, device, dtype) else None
    warnings = [*report.warnings, *([] if slow is None else [slow])]
    report = replace(report, errors=[*problems, *report.errors], warnings=warnings)
    print(json.dumps(report.to_dict(), indent=1) if as_json else report)
    if not report.ok:
        raise typer.Exit(1)


@app.command(context_settings=OVERRIDES, epilog="Every key of the model is an option: --model.layers.position alibi")
def plot(
    context: typer.Context,
    config: ConfigFile,
    out: Annotated[Path | None, typer.Option(help="Output folder. Default: plots/ and the name of the config.")] = None,
    text: Annotated[
        str | None,
        typer.Option(
            help="Plot what a trained model attends to in this text ('-' reads stdin). CONFIG is a run folder or a published "
            "model."
        ),
    ] = None,
    layer: Annotated[int | None, typer.Option(help="With --text: only this layer, from 1. Default: all.")] = None,
    head: Annotated[int | None, typer.Option(help="With --text: only this head, from 1. Default: all.")] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            help="Also write one HTML file of interactive charts, which needs no network.", show_default=False
        ),
    ] = None,
) -> None:
    """Plot what a model's position schemes do, or with --text what it attends to: PNG files, and an HTML page."""
    if text is not None:
        if context.args:
            raise UserError(
                f"--text plots trained weights, so no key of the model can be set: {' '.join(context.args)}"
            )
        if html is not None:
            raise UserError("--html shows position schemes, not attention to a text. Leave out --text or --html")
        from x_positional.cli.plot_text import plot_text

        plot_text(config, text, layer, head, out)
        return
    if layer is not None or head is not None:
        raise UserError("--layer and --head choose attention maps of a text. Pass --text, or leave them out")
    fields, problems = load_model(config, overrides_of(config, context, {}))
    from x_positional.cli.plot import plot_model  # only here: it imports all that draws and measures

    plot_model(fields, problems, config, out, html)


@app.command()
def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="Run folder, folder of a published model, GGUF file, or model name on the Hub.",
            show_default=False,
        ),
    ],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="Output folder.", show_default=False)],
    form: Annotated[
        Format,
        typer.Option("--to", "--format", help="hf: readable by transformers. native: x_positional's own format."),
    ] = "hf",
    code: Annotated[
        bool | None,
        typer.Option(
            "--code/--no-code",
            help="With a module that imports x_positional beside the weights (hf), or as a published family alone. Default: the "
            "module where no family expresses the model.",
            show_default=False,
        ),
    ] = None,
    model_type: Annotated[
        str | None,
        typer.Option(help="Model family to write (hf). Default: the family of the source, or the first that fits."),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16. Default: as stored; GGUF is dequantized.")
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(help="Key of the published config.json to ignore. Can be repeated.")
    ] = None,
    adapter: Annotated[
        bool,
        typer.Option(
            "--adapter", help="Write the LoRA adapters of a run alone, in peft's format. hf: for transformers' model."
        ),
    ] = False,
) -> None:
    """Convert a model and its tokenizer to config.json and safetensors. Adapters of a run are merged into its weights."""
    if adapter:
        for name, given in (("--model-type", model_type), ("--dtype", dtype), ("--ignore", ignore), ("--code", code)):
            if given not in (None, []):
                raise UserError(f"{name} has no effect on adapters; omit it or --adapter")
        convert_adapters(source, target, form)
    else:
        write_converted(source, target, form, code=code, model_type=model_type, dtype=dtype, ignore=ignore or ())


@app.command()
def verify(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            help="Folder of a published model, GGUF file, or model name on the Hub.",
            show_default=False,
        ),
    ],
    tolerance: Annotated[
        float, typer.Option(min=0.0, help="Largest allowed difference, relative to the largest value.")
    ] = 1e-4,
    dtype: Annotated[str, typer.Option(help="Compute dtype of both models: float32 or float64.")] = "float32",
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest sequence to run, to test attention windows.")] = 2048,
) -> None:
    """Compare a model's logits with those of transformers. Exit code 1 if they differ."""
    if not run_verify(model, tolerance, dtype, max_tokens):
        raise typer.Exit(1)


app.add_typer(measuring)


def _bf16_on_cpu(config: Path, overrides: dict[str, object], device: str | None, dtype: str | None) -> bool:
    """Whether the options, or else the run section of the config, ask for bfloat16 on the CPU."""
    try:
        run = RunConfig() if dtype is not None else load_config(config, overrides).run
    except UserError:  # a file with a model alone, or with errors that the report lists
        run = RunConfig()
    device = resolve_device(run.device if device is None else device)
    return device == "cpu" and (dtype == "bfloat16" or run.precision == "bf16")
