"""The demo: train a small decoder with RoPE for about two minutes, compare its loss with xz, and sample from it."""

import shlex
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from x_positional.cli.generate import GenerateOptions, stream_text, write_stream
from x_positional.cli.hints import command
from x_positional.cli.main import guarded
from x_positional.models.autoregressive import AutoregressiveWrapper
from x_positional.models.language import build_model
from x_positional.progress import print_lines, progress_bars
from x_positional.training.config import TrainConfig
from x_positional.training.data.corpus import load_corpus
from x_positional.training.data.tokenizer import load_tokenizer
from x_positional.training.evaluate import Score, eval_windows, evaluate, xz_bits_per_byte
from x_positional.training.load import load_config
from x_positional.training.loop.engine import Engine
from x_positional.training.loop.train import TrainResult, train, training_windows

CONFIG = Path(__file__).parents[2] / "configs" / "small_rotary.yaml"
PROMPT = "def main("
WARM_UP, TIMED = 25, 25  # steps that measure the speed of this machine and are discarded


def demo(
    seconds: Annotated[float, typer.Option(min=1.0, help="Target training time in seconds.")] = 120.0,
    run_dir: Annotated[str, typer.Option(help="Folder of the run; if it exists, a number is appended.")] = "runs/demo",
) -> None:
    """Train a small decoder with RoPE, compare its loss with xz, sample from it, and suggest what to try next."""
    console = Console()
    folder = new_folder(Path(run_dir))
    planned = fit_to_time(load_config(CONFIG, {"run.dir": str(folder)}), seconds, console)
    result = train(planned, console=console)
    if not result.finished:
        print_lines(console, f"stopped; continue with: {command()} train {shlex.quote(str(folder))} --resume")
        raise typer.Exit(130)
    score = whole_validation(result, planned, console)
    print_lines(console, "", *comparison(result, score))
    sample(result, console)
    print_lines(console, "", *next_commands(result))


def new_folder(wanted: Path) -> Path:
    """`wanted`, or `wanted-2`, `wanted-3` ..., whichever does not exist yet."""
    folder, number = wanted, 1
    while folder.exists():
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder


def fit_to_time(config: TrainConfig, seconds: float, console: Console) -> TrainConfig:
    """The config with as many steps as this machine runs in `seconds`; warm-up and intervals scale with them."""
    with console.status("measuring the speed of this machine"):
        corpus = load_corpus(config.data, config.model.num_tokens, config.seq_len)
        net = build_model(config.model)
        engine = Engine(net, AutoregressiveWrapper(net), training_windows(config, corpus), config)
        times = []
        for step in range(WARM_UP + TIMED):
            began = time.perf_counter()
            engine.step(step)[0].item()
            times.append(time.perf_counter() - began)
    each = sorted(times[WARM_UP:])[TIMED // 2]
    steps = max(20, round(seconds / each))
    print_lines(
        console,
        f"one step takes {each * 1000:.0f} ms on this machine: training for {steps} steps ({seconds:.0f} seconds)",
    )
    optimizer = config.optimizer.model_copy(update={"warmup_steps": min(config.optimizer.warmup_steps, steps // 10)})
    every = -(-steps // 8)  # rounded up, so that the last one is at the end
    run = config.run.model_copy(
        update={"steps": steps, "eval_every": every, "save_every": every, "log_every": max(1, steps // 150)}
    )
    return config.model_copy(update={"optimizer": optimizer, "run": run})


def whole_validation(result: TrainResult, config: TrainConfig, console: Console) -> Score:
    """Loss over the whole validation text, each byte with at least half a window of context."""
    validation = result.corpus.validation
    return evaluate(
        result.net,
        validation,
        eval_windows(len(validation.tokens), config.seq_len, stride=config.seq_len // 2),
        batch_size=4 * config.run.batch_size,
        device=result.engine.device,
        autocast=result.engine.autocast(),
        track=progress_bars(console),
    )


def comparison(result: TrainResult, score: Score) -> list[str]:
    """Bits per byte of the model and of xz on the validation text."""
    text = result.corpus.validation.tokens.tobytes()  # a token is a byte
    rows = [f"validation text: {len(text):,} bytes from files not used in training", "  bits per byte"]
    rows.append(f"  {score.bits['bits_per_byte']:5.3f}  this model, after a run of {result.seconds:.0f} seconds")
    try:
        rows.append(f"  {xz_bits_per_byte(text):5.3f}  xz -9 (LZMA, preset 9)")
    except ImportError:
        rows.append("  no comparison with xz: this Python was built without lzma")
    return rows


def sample(result: TrainResult, console: Console) -> None:
    """Stream a few hundred bytes, using the key/value cache."""
    print_lines(console, "", f"sample (prompt {PROMPT!r}):", "")
    tokenizer = load_tokenizer("bytes")
    ids = [int(token) for token in tokenizer.encode(PROMPT.encode())]
    console.out(PROMPT, end="", highlight=False)
    options = GenerateOptions(length=400, temperature=0.7, top_p=0.95, seed=1)
    pieces = stream_text(result.net, ids, tokenizer, options)
    count, seconds = write_stream(pieces, lambda text: console.out(text, end="", highlight=False))
    print_lines(console, "", "", f"{count} bytes, {count / seconds:,.0f} bytes/s")


def next_commands(result: TrainResult) -> list[str]:
    """The files of the run, and commands to try."""
    folder, program, config = shlex.quote(str(result.folder)), command(), f"{CONFIG.parent.name}/{CONFIG.name}"
    return [
        f"checkpoint  {result.checkpoint}",
        f"loss plot   {result.plot}",
        f"log         {result.folder / 'log.jsonl'}",
        "",
        "next:",
        f"  {program} generate {folder} --prompt 'import '",
        f"  {program} check {config} --model.layers.position alibi",
        f"  {program} train {config} --data YOUR.txt --run-dir runs/mine",
    ]


if __name__ == "__main__":
    guarded(lambda: typer.run(demo))
