"""This checkout against another one: training step, forward pass and cached decoding, in interleaved pairs.

    python -m benchmarks.versus ../other-checkout [--schemes rope,alibi] [--pairs 15]

Each checkout runs in a process of its own; the two take turns, A B B A, so that drift of the machine cancels. What is printed is
the median of the ratios this / other, with the 95 % interval of the median (bootstrap); below 1 this checkout is faster.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

SCHEMES = ("rope", "alibi", "t5", "cope")
WORKS = ("train", "forward", "decode")
DIM, DEPTH, HEADS, VOCAB, LENGTH, NEW = 128, 4, 4, 512, 256, 48

WORKER = """
import json, sys, time
import torch
from x_positional import AutoregressiveWrapper, Decoder, TransformerWrapper
torch.set_num_threads(int(sys.argv[1]))
dim, depth, heads, vocab, length, new = json.loads(sys.argv[2])
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
    m.eval(); m.generate(tokens[:1, :16], new, temperature=0.0)
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
        sizes = json.dumps([DIM, DEPTH, HEADS, VOCAB, LENGTH, NEW])
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

    def seconds(self, work: str, scheme: str) -> float:
        """How long one unit of work takes."""
        if self.process.stdin:
            self.process.stdin.write(f"{work} {scheme}\n")
            self.process.stdin.flush()
        return float(self._answer())


def interval(ratios: list[float], draws: int = 2000) -> tuple[float, float]:
    """The 95 % interval of the median, by bootstrap."""
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(draws))
    return medians[int(0.025 * draws)], medians[int(0.975 * draws)]


def compare(this: Checkout, other: Checkout, work: str, scheme: str, pairs: int) -> list[float]:
    """this / other for every pair, after two pairs to warm up."""
    ratios = []
    for pair in range(-2, pairs):
        order = (this, other) if pair % 2 else (other, this)
        spent = {checkout: checkout.seconds(work, scheme) for checkout in order}
        if pair >= 0:
            ratios.append(spent[this] / spent[other])
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="the root of another checkout")
    parser.add_argument("--schemes", default=",".join(SCHEMES))
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    this, other = (Checkout(root, asked.threads) for root in (Path.cwd(), asked.other.resolve()))
    print(f"{'scheme':<8} {'work':<8} {'median':>7}   95 % interval   ({asked.pairs} pairs, {asked.threads} thread)")
    start = time.perf_counter()
    for scheme in asked.schemes.split(","):
        for work in WORKS:
            ratios = compare(this, other, work, scheme, asked.pairs)
            low, high = interval(ratios)
            print(f"{scheme:<8} {work:<8} {statistics.median(ratios):7.3f}   {low:.3f} to {high:.3f}", flush=True)
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
