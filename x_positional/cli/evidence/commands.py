"""The commands that measure: their arguments and help. The modules beside this one do the work.

They are imported when a command is called, so that --help and the other commands do not load all that measures.
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from x_positional.cli.options import OVERRIDES, AnyModel, ConfigFile, Device, PublishedDtype, overrides_of
from x_positional.errors import import_extra
from x_positional.evidence.evaluation.options import DEFAULT as DEFAULT_LENGTHS
from x_positional.evidence.evaluation.options import TOLERANCE, Protocol

measuring = typer.Typer()


@measuring.command()
def extend(
    model: AnyModel,
    to: Annotated[
        str, typer.Option(help="Length to reach: tokens, or a multiple of the trained length (4x).", show_default=False)
    ],
    data: Annotated[
        Path | None,
        typer.Option(help="Text or .npy ids to score. Default: the validation split of a run, or the embedded text's."),
    ] = None,
    lengths: Annotated[
        str | None, typer.Option(help="More lengths to score: 0.5x,12288. Default: doubled up to the target.")
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(help="Only these: linear,ntk,dynamic,ntk_by_parts,yarn,longrope,keep_first.", show_default="all"),
    ] = None,
    choose: Annotated[
        str | None, typer.Option(help="Fine-tune and write this method.", show_default="the best at the target length")
    ] = None,
    trained_length: Annotated[
        int | None, typer.Option(min=2, help="Length the model was trained on. Default: that of the run or the config.")
    ] = None,
    longrope_factors: Annotated[
        Path | None, typer.Option(help="JSON file with long_factor (and short_factor): one number a pair.")
    ] = None,
    targets: Annotated[int, typer.Option(min=1, help="Tokens scored at the end of each window.")] = 64,
    windows: Annotated[
        int | None,
        typer.Option(min=1, help="Windows, at most. Default: 32, and fewer of long ones: 8 of 16,384 tokens."),
    ] = None,
    position_windows: Annotated[int, typer.Option(min=0, help="Windows of the loss by position; 0 leaves it out.")] = 1,
    finetune_tokens: Annotated[
        int | None, typer.Option(min=1, help="Fine-tune the best method for the target length on this many tokens.")
    ] = None,
    finetune_data: Annotated[
        Path | None, typer.Option(help="Text to fine-tune on. Default: the training split of the run or embedded text.")
    ] = None,
    lora: Annotated[bool, typer.Option("--lora", help="Fine-tune LoRA adapters, merged at the end.")] = False,
    pose: Annotated[
        bool, typer.Option("--pose", help="Fine-tune windows of the trained length, at positions up to the target.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Folder to write the extended model to.")] = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="Folder of the record and of fine-tuning.", show_default="runs/extend/...")
    ] = None,
    device: Device = "auto",
    dtype: PublishedDtype = None,
) -> None:
    """Extend a model's context: try every method that needs no training, rank them, fine-tune, write a folder."""
    from x_positional.cli.evidence.extend import ExtendOptions
    from x_positional.cli.evidence.extend import extend as run_extension

    options = ExtendOptions(
        to=to,
        data=data,
        lengths=lengths,
        methods=methods,
        choose=choose,
        trained_length=trained_length,
        longrope_factors=longrope_factors,
        targets=targets,
        windows=windows,
        position_windows=position_windows,
        finetune_tokens=finetune_tokens,
        finetune_data=finetune_data,
        lora=lora,
        pose=pose,
        out=out,
        run_dir=run_dir,
        device=device,
        dtype=dtype,
    )
    raise typer.Exit(run_extension(model, options))


@measuring.command()
def bench(
    rows: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ROWS]...",
            help="Rows, or how their names begin: decode, train-alibi. Default: those with a target.",
        ),
    ] = None,
    more: Annotated[
        bool, typer.Option("--all", help="Also the rows that no target of docs/performance.md needs.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="A few small rows, under a minute; kept only with --out.")
    ] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Show where the time of a decoded token goes, in place of measuring.")
    ] = False,
    listing: Annotated[bool, typer.Option("--list", help="Print the names of the rows and exit.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Also measure rows that the record holds already.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the record. Default: benchmarks/results.", show_default=False)
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 or auto.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. Default: as torch chooses.")] = None,
) -> None:
    """Measure speed and memory beside x-transformers and transformers, with the limits of this machine."""
    from x_positional.cli.evidence.bench import bench as run_bench

    fine = run_bench(
        rows or [],
        quick=quick,
        more=more,
        profile=profile,
        listing=listing,
        again=again,
        out=out,
        device=device,
        threads=threads,
    )
    if not fine:
        raise typer.Exit(1)


@measuring.command(context_settings=OVERRIDES, epilog="Every config key is an option: --model.layers.depth 4 --lr 3e-4")
def compare(
    context: typer.Context,
    config: ConfigFile,
    schemes: Annotated[
        str,
        typer.Option(
            help="Comma-separated: a name (rope), several (alibi+rope), a YAML mapping ({kind: rope, theta: 500000}) or one of "
            "fields of model.layers ({pattern: [...]}), module:Config, or a recipe file. LABEL=... names an entry.",
            show_default=False,
        ),
    ],
    seeds: Annotated[str, typer.Option(help="How many, or a list: 0,1,2.")] = "1",
    budget: Annotated[
        str | None, typer.Option(help="Time of training the whole grid: 90s, 8m, 1h.", show_default="steps decide")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Optimizer steps of every cell.", show_default="run.steps")
    ] = None,
    lengths: Annotated[
        str, typer.Option(help="Context lengths to evaluate: multiples of the trained length, or tokens.")
    ] = DEFAULT_LENGTHS,
    equal: Annotated[
        Literal["tokens", "time"], typer.Option(help="What every cell gets the same amount of.")
    ] = "tokens",
    jobs: Annotated[int, typer.Option(min=1, help="Cells that are trained side by side.")] = 1,
    windows: Annotated[int, typer.Option(min=1, help="Windows of the text in an evaluation.")] = 32,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the comparison.", show_default="runs/compare-CONFIG")
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Run the cells again that failed.")] = False,
) -> None:
    """Train position schemes on the same data and budget, and compare their loss by length and their cost."""
    from x_positional.cli.evidence.compare import run_comparison

    fine = run_comparison(
        config,
        overrides_of(config, context, {}),
        schemes,
        seeds=seeds,
        budget=budget,
        steps=steps,
        lengths=lengths,
        equal=equal,
        jobs=jobs,
        windows=windows,
        out=out,
        retry=retry,
    )
    if not fine:
        raise typer.Exit(1)


@measuring.command("eval")
def eval_model(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL_OR_RUN",
            help="Run folder, folder of a published model, GGUF file, or model name on the Hub.",
            show_default=False,
        ),
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            help="Held-out text: a file, a folder, or ids in .npy.",
            show_default="the validation split of a run; else held-out embedded text",
        ),
    ] = None,
    lengths: Annotated[
        str, typer.Option(help="Context lengths: multiples of the trained length (2x, 0.5x), or tokens (1024).")
    ] = DEFAULT_LENGTHS,
    trained_length: Annotated[
        int | None, typer.Option(min=1, help="Trained length.", show_default="of the run or the model's config")
    ] = None,
    protocol: Annotated[
        Protocol,
        typer.Option(
            help="same-targets: the last tokens of windows spread over the text. sliding: consecutive tokens, each window one "
            "stride (--targets) after the other. Both score the same tokens at every length."
        ),
    ] = "same-targets",
    targets: Annotated[int, typer.Option(min=1, help="Tokens scored at the end of each window.")] = 64,
    windows: Annotated[
        int | None, typer.Option(min=1, help="Windows, at most.", show_default="32, fewer of very long ones")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0.0, help="Rise of the loss that a usable length allows, in nats per token.")
    ] = TOLERANCE,
    passkey: Annotated[
        bool | None,
        typer.Option(
            "--passkey/--no-passkey",
            help="Retrieve a number hidden in filler text, by depth and length.",
            show_default="for published models",
        ),
    ] = None,
    passkey_trials: Annotated[int, typer.Option(min=1, help="Numbers to hide at each depth and length.")] = 3,
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Tasks that small models with the same scheme are trained on, half a minute each: copy, repeat, reverse, "
            "counting, first_occurrence.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the results to this JSON file.", show_default=False)] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write a page with charts to this HTML file.", show_default=False)
    ] = None,
    beside: Annotated[
        list[Path] | None,
        typer.Option(help="With --html: show the results in this JSON file too. Repeatable.", show_default=False),
    ] = None,
    store: Annotated[
        bool, typer.Option("--store/--no-store", help="Keep the usable length beside the weights, for generate.")
    ] = True,
    device: Device = "auto",
    dtype: Annotated[
        str | None,
        typer.Option(
            help="float32, bfloat16 or float16, for a published model.",
            show_default="float32 on a CPU, else as stored",
        ),
    ] = None,
) -> None:
    """Measure how far a trained model goes: loss by context length and by position, and passkey retrieval."""
    from x_positional.cli.evidence.evaluate import EvalOptions, evaluate

    evaluate(
        model,
        EvalOptions(
            data=data,
            lengths=lengths,
            trained_length=trained_length,
            protocol=protocol,
            targets=targets,
            windows=windows,
            tolerance=tolerance,
            passkey=passkey,
            passkey_trials=passkey_trials,
            tasks=tasks,
            out=out,
            html=html,
            beside=beside or (),
            store=store,
            device=device,
            dtype=dtype,
        ),
    )


@measuring.command(
    "lm-eval",
    context_settings={**OVERRIDES, "help_option_names": []},
    epilog="x-positional lm-eval --model_args path=MODEL --tasks hellaswag",
)
def lm_eval(context: typer.Context) -> None:
    """Run lm-evaluation-harness on a model: all options of lm_eval, with the model x_positional."""
    import_extra("lm_eval", "x-positional lm-eval needs", "lm-eval")
    from x_positional.evidence.evaluation.harness import run_lm_eval  # only here: it is a model of lm_eval

    run_lm_eval(context.args)
