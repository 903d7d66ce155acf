"""This checkout against another one: training step, forward pass and cached decoding, in interleaved pairs.

    python -m benchmarks.versus ../other-checkout [--schemes rope,alibi] [--pairs 15]
    python -m benchmarks.versus ../other-checkout --record    # keeps the row "versus-decode" of docs/performance.md

Each checkout runs in a process of its own; the two take turns, A B B A, so that drift of the machine cancels. What is printed is
the median of the ratios this / other, with the 95 % interval of the median (bootstrap); below 1 this checkout is faster.
"""

import argparse
import inspect
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from x_positional.evidence.benchmark.clock import Ratio, interleave, ratio
from x_positional.evidence.benchmark.models import OURS, Shape
from x_positional.evidence.benchmark.record import Measured, Record, RowRecord, record_path
from x_positional.evidence.benchmark.rows import Row
from x_positional.evidence.benchmark.run import spec_of
from x_positional.evidence.benchmark.work import Work
from x_positional.generation.options import GenerateOptions

SCHEMES = ("rope", "alibi", "t5", "cope")
WORKS = ("train", "forward", "decode")
DIM, DEPTH, HEADS, VOCAB, LENGTH, PROMPT, NEW = 128, 4, 4, 512, 256, 16, 48
RESULTS = Path(__file__).parent / "results"

WORKER = """
import inspect, json, sys, time
import torch
from x_positional import AutoregressiveWrapper, Decoder, TransformerWrapper
torch.set_num_threads(int(sys.argv[1]))
dim, depth, heads, vocab, length, prompt, new = json.loads(sys.argv[2])
eager = {"compile": False} if "compile" in inspect.signature(AutoregressiveWrapper.generate).parameters else {}
models = {}
def model(scheme):
    if scheme not in models:
        torch.manual_seed(0)
        layers = Decoder(dim=dim, depth=depth, heads=heads, attn_dim_head=dim // heads, position=scheme)
        net = TransformerWrapper(num_tokens=vocab, max_seq_len=length, attn_layers=layers)
        models[scheme] = AutoregressiveWrapper(net)
    return models[scheme]
tokens = torch.randint(0, vocab, (2, length + 1), generator=torch.Generator().manual_seed(0))
def train(m):
    m.train(); m.zero_grad(); m(tokens).backward()
def forward(m):
    m.eval()
    with torch.no_grad(): m(tokens)
def decode(m):
    m.eval(); m.generate(tokens[:1, :prompt], new, temperature=0.0, **eager)
def decode_compiled(m):
    m.eval(); m.generate(tokens[:1, :prompt], new, temperature=0.0, compile=True)
print("ready", flush=True)
for line in sys.stdin:
    work, scheme = line.split()
    run, m = globals()[work], model(scheme)
    start = time.perf_counter()
    run(m)
    print(time.perf_counter() - start, flush=True)
"""


class Checkout:
    """A process that times work in one checkout."""

    def __init__(self, root: Path, threads: int):
        self.root = root
        sizes = json.dumps([DIM, DEPTH, HEADS, VOCAB, LENGTH, PROMPT, NEW])
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(threads), sizes],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def _answer(self) -> str:
        line = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            raise SystemExit("a worker ended early; its error is above")
        return line.strip()

    def commit(self) -> str:
        """The short hash of what is checked out."""
        command = ["git", "-C", str(self.root), "rev-parse", "--short", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "another checkout"

    def seconds(self, work: str, scheme: str) -> float:
        """How long one unit of work takes."""
        if self.process.stdin:
            self.process.stdin.write(f"{work} {scheme}\n")
            self.process.stdin.flush()
        return float(self._answer())


def compare(this: Checkout, other: Checkout, work: str, scheme: str, pairs: int) -> Ratio:
    """this / other, after two pairs to warm up."""
    samples = {"this": lambda: this.seconds(work, scheme), "other": lambda: other.seconds(work, scheme)}
    interleave(samples, 2)
    found = interleave(samples, pairs)
    return ratio(found["this"], found["other"])


def record_decoding(this: Checkout, other: Checkout, pairs: int, threads: int) -> Path:
    """Decode with a small model, also compiled where this checkout can, and keep the row that docs/performance.md shows."""
    samples = {"before": lambda: other.seconds("decode", "rope"), OURS: lambda: this.seconds("decode", "rope")}
    if "compile" in inspect.signature(GenerateOptions).parameters:
        samples[f"{OURS} compiled"] = lambda: this.seconds("decode_compiled", "rope")
    interleave(samples, 2)
    found = interleave(samples, pairs)
    sides = {name: Measured([value / NEW for value in values]) for name, values in found.items()}
    work = Work(kind="decode", length=PROMPT, new=NEW)
    row = Row(
        id="versus-decode",
        title=f"decode, 1 M parameters, against {other.commit()}",
        group="against an earlier version",
        work=work,
        sides=tuple(sides),
        shape=Shape(dim=DIM, depth=DEPTH, heads=HEADS, vocab=VOCAB),
    )
    device = torch.device("cpu")
    torch.set_num_threads(threads)
    record = Record.open(record_path(RESULTS, device))
    record.add(row.id, RowRecord(row.title, row.group, spec_of(row, device), {}, sides), device)
    return record.path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="the root of another checkout")
    parser.add_argument("--schemes", default=",".join(SCHEMES))
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--record", action="store_true", help="keep a row of decoding for docs/performance.md instead")
    asked = parser.parse_args()
    this, other = (Checkout(root, asked.threads) for root in (Path.cwd(), asked.other.resolve()))
    print(f"{'scheme':<8} {'work':<8} {'median':>7}   95 % interval   ({asked.pairs} pairs, {asked.threads} thread)")
    start = time.perf_counter()
    if asked.record:
        print(f"kept in {record_decoding(this, other, asked.pairs, asked.threads)}")
        return
    for scheme in asked.schemes.split(","):
        for work in WORKS:
            found = compare(this, other, work, scheme, asked.pairs)
            print(f"{scheme:<8} {work:<8} {found.median:7.3f}   {found.low:.3f} to {found.high:.3f}", flush=True)
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
