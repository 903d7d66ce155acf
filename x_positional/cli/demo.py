"""The demo: train a small rotary decoder on the embedded text for about two minutes, compare, and sample from it."""

import shlex
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from x_positional.cli.main import guarded
from x_positional.cli.run import command
from x_positional.cli.sample import Sampling, stream_text
from x_positional.models.autoregressive import AutoregressiveWrapper
from x_positional.models.language import build_model
from x_positional.training.config import TrainConfig
from x_positional.training.data.corpus import load_corpus
from x_positional.training.data.tokens import load_tokenizer
from x_positional.training.data.windows import Windows
from x_positional.training.load import load_config
from x_positional.training.loop.engine import Engine
from x_positional.training.loop.evaluate import Score, evaluate, plan_windows, xz_bits_per_byte
from x_positional.training.loop.trainer import Result, say, train
from x_positional.training.progress import shown

CONFIG = Path(__file__).parents[2] / "configs" / "small_rotary.yaml"
PROMPT = "def main("
WARM, TIMED = 25, 25  # steps that are run and thrown away to see how fast this machine is


def demo(
    seconds: Annotated[float, typer.Option(min=1.0, help="Training time to aim at.")] = 120.0,
    run_dir: Annotated[str, typer.Option(help="Folder of the run; a number is added if it is taken.")] = "runs/demo",
) -> None:
    """Train, compare with xz, sample, and say what to try next."""
    console = Console()
    folder = free_folder(Path(run_dir))
    planned = plan(load_config(CONFIG, {"run.dir": str(folder)}), seconds, console)
    result = train(planned, console=console)
    if not result.finished:
        say(console, f"stopped; go on with: {command()} train {shlex.quote(str(folder))} --resume")
        raise typer.Exit(130)
    score = whole_validation(result, planned, console)
    say(console, "", *comparison(result, score))
    sample(result, console)
    say(console, "", *next_commands(result))


def free_folder(wanted: Path) -> Path:
    """`wanted`, or `wanted-2`, `wanted-3` ... while there is an earlier run."""
    folder, number = wanted, 1
    while folder.exists():
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder


def plan(config: TrainConfig, seconds: float, console: Console) -> TrainConfig:
    """The config with as many steps as this machine does in `seconds`, warm-up and intervals in proportion."""
    with console.status("measuring the speed of this machine"):
        corpus = load_corpus(config.data, config.model.num_tokens, config.seq_len)
        net = build_model(config.model)
        engine = Engine(net, AutoregressiveWrapper(net), Windows(corpus.train.tokens, config.seq_len, 0), config)
        times = []
        for step in range(WARM + TIMED):
            began = time.perf_counter()
            engine.step(step)[0].item()
            times.append(time.perf_counter() - began)
    each = sorted(times[WARM:])[TIMED // 2]
    steps = max(20, round(seconds / each))
    say(console, f"one step takes {each * 1000:.0f} ms here, so {steps} steps fill {seconds:.0f} seconds")
    optimizer = config.optimizer.model_copy(update={"warmup_steps": min(config.optimizer.warmup_steps, steps // 10)})
    every = -(-steps // 8)  # the last one at the end
    run = config.run.model_copy(
        update={"steps": steps, "eval_every": every, "save_every": every, "log_every": max(1, steps // 150)}
    )
    return config.model_copy(update={"optimizer": optimizer, "run": run})


def whole_validation(result: Result, config: TrainConfig, console: Console) -> Score:
    """Every byte of the validation text predicted once, with at least half a window before it."""
    part = result.corpus.validation
    return evaluate(
        result.net,
        part,
        plan_windows(len(part.tokens), config.seq_len, stride=config.seq_len // 2),
        batch_size=4 * config.run.batch_size,
        device=result.engine.device,
        autocast=result.engine.autocast(),
        track=shown(console),
    )


def comparison(result: Result, score: Score) -> list[str]:
    """Bits per byte of the model beside those of xz, for the same text."""
    text = result.corpus.validation.tokens.tobytes()  # one token is one byte
    rows = [f"validation text: {len(text):,} bytes from files that were not trained on", "  bits per byte"]
    rows.append(f"  {score.bits['bits_per_byte']:5.3f}  this model, after a run of {result.seconds:.0f} seconds")
    try:
        rows.append(f"  {xz_bits_per_byte(text):5.3f}  xz -9 (LZMA, preset 9)")
    except ImportError:
        rows.append("  xz cannot be compared: this Python was built without lzma")
    return rows


def sample(result: Result, console: Console) -> None:
    """A few hundred bytes with the key/value cache, written as they come."""
    say(console, "", f"a sample, with the key/value cache (prompt {PROMPT!r}):", "")
    tokenizer = load_tokenizer("bytes")
    ids = [int(token) for token in tokenizer.encode(PROMPT.encode())]
    console.out(PROMPT, end="", highlight=False)
    began, count = time.perf_counter(), 0
    for text in stream_text(result.net, ids, tokenizer, Sampling(length=400, temperature=0.7, top_p=0.95, seed=1)):
        console.out(text, end="", highlight=False)
        count += 1
    say(console, "", "", f"{count} bytes at {count / (time.perf_counter() - began):,.0f} bytes/s")


def next_commands(result: Result) -> list[str]:
    """Where everything is and what to try."""
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
