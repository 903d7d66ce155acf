"""How fast on this device, as fractions of the memory bandwidth and matrix rate that are measured in the same process.

B batch, T tokens.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.record import Round, Row, attempt
from x_positional import AutoregressiveWrapper, Decoder, TransformerWrapper
from x_positional.generation.step.captured import RECORDERS
from x_positional.generation.step.graph import GRAPHS


def seconds(run: Callable[[], object], where: Round, repeats: int = 5) -> float:
    """Median time of a call, after one that is not counted."""
    times = []
    for _ in range(repeats + 1):
        wait(where)
        start = time.perf_counter()
        run()
        wait(where)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def wait(where: Round) -> None:
    if where.on_cuda:
        torch.cuda.synchronize(where.device)


def bandwidth(where: Round) -> float:
    """Bytes a second, read and written by a copy that no cache holds."""
    count = 2**20 if where.reduced else 2**31
    source = torch.ones(count, dtype=torch.uint8, device=where.device)
    target = torch.empty_like(source)
    return 2 * count / seconds(lambda: target.copy_(source), where)


def matrix_rate(where: Round, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product."""
    size = 128 if where.reduced else 8192
    a, b = (torch.randn(size, size, device=where.device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / seconds(lambda: a @ b, where)


def model(where: Round, dtype: torch.dtype, **shape: Any) -> AutoregressiveWrapper:
    """A model in the shape of Llama 3.2: RMS norms, gated SiLU, grouped key heads, tied embeddings."""
    llama = {"use_rmsnorm": True, "ff_glu": True, "ff_swish": True, "ff_no_bias": True}
    vocab, length = shape.pop("num_tokens"), shape.pop("max_seq_len")
    torch.manual_seed(0)
    with torch.device(where.device):
        layers = Decoder(**{"position": "rope", **llama, **shape})
        net = TransformerWrapper(
            num_tokens=vocab, max_seq_len=length, attn_layers=layers, tie_embedding=True, use_abs_pos_emb=False
        )
    return AutoregressiveWrapper(net.to(dtype))


SMALL = {"dim": 512, "depth": 6, "heads": 8, "attn_dim_head": 64, "num_tokens": 8192, "max_seq_len": 1024}
LLAMA = {"dim": 2048, "depth": 16, "heads": 32, "attn_dim_head": 64, "attn_kv_heads": 8, "ff_mult": 4}
LLAMA |= {"num_tokens": 128256, "max_seq_len": 4096}
TINY = {"dim": 16, "depth": 1, "heads": 2, "attn_dim_head": 8, "num_tokens": 31, "max_seq_len": 64}


def prompts(where: Round, batch: int, length: int, vocab: int) -> Tensor:
    return torch.randint(vocab, (batch, length), generator=torch.Generator().manual_seed(1)).to(where.device)


@contextmanager
def quick_graphs(where: Round) -> Iterator[None]:
    """In the reduced form torch records graphs and generates no code for them, which would take half a minute each."""
    before = GRAPHS.backend
    GRAPHS.backend = "eager" if where.reduced else before
    try:
        yield
    finally:
        GRAPHS.backend = before


def generated(of: AutoregressiveWrapper, prompt: Tensor, count: int, compile: bool) -> Tensor:
    return of.generate(prompt, count, temperature=0.0, compile=compile)


def bytes_per_token(of: AutoregressiveWrapper, batch: int, length: int) -> int:
    """What a decoding step must read: all weights once (the tied embedding as output matrix), and the keys and values."""
    weights = sum(p.numel() * p.element_size() for p in of.net.parameters())
    config = of.net.config.layers
    size = next(of.net.parameters()).element_size()
    kv_heads = config.kv_heads or config.heads
    return weights + 2 * batch * length * config.depth * kv_heads * config.head_dim * size


def decode_rate(row: str, of: AutoregressiveWrapper, prompt: Tensor, count: int, compile: bool, where: Round) -> Row:
    """Tokens a second, and the fraction of the bandwidth. The prompt's own pass is timed apart and taken off."""
    of.eval()
    whole = seconds(lambda: generated(of, prompt, count, compile), where, repeats=3)
    first = seconds(lambda: generated(of, prompt, 1, compile), where, repeats=3)
    step = max(whole - first, 1e-9) / (count - 1)
    batch, length = prompt.shape
    fraction = bytes_per_token(of, batch, length + count // 2) / step / bandwidth(where)
    rate = f"{batch / step:.0f} tokens/s, {step * 1e3:.2f} ms a step"
    return Row(row, "measured", fraction, "of bandwidth", 0.8 if batch == 1 else None, rate)


def decode_stage(where: Round) -> Iterator[Row]:
    """Compiled decoding against eager: equal greedy tokens in float32, tokens a second in bfloat16."""
    shape, count = (TINY, 4) if where.reduced else (SMALL, 128)
    exact, prompt = model(where, torch.float32, **shape).eval(), prompts(where, 1, 8, shape["num_tokens"])
    yield attempt("greedy tokens, compiled", lambda: same_tokens(exact, prompt, count, where))
    timed = model(where, half(where), **shape)
    for batch in (1, 8):
        start = prompts(where, batch, 16 if where.reduced else 512, shape["num_tokens"])
        for compile in (False,) if where.reduced else (False, True):
            row = f"decode b{batch}, {'compiled' if compile else 'eager'}"
            yield attempt(row, lambda: decode_rate(row, timed, start, count, compile, where))  # noqa: B023


def same_tokens(of: AutoregressiveWrapper, prompt: Tensor, count: int, where: Round) -> Row:
    with quick_graphs(where):
        plain, compiled = (generated(of, prompt, count, compile) for compile in (False, True))
    equal = (plain == compiled).double().mean().item()
    return Row("greedy tokens, compiled", "pass" if equal == 1.0 else "fail", equal, "of tokens equal", 1)


@contextmanager
def without_cuda_graphs() -> Iterator[None]:
    """Compiled steps launch each kernel."""
    before = dict(RECORDERS)
    RECORDERS.clear()
    try:
        yield
    finally:
        RECORDERS.update(before)


def graph_stage(where: Round) -> Iterator[Row]:
    """Decoding with CUDA graphs: the tokens of eager decoding, in a cache that grows, and tokens a second with and without."""
    shape, length, count = (TINY, 8, 8) if where.reduced else (SMALL, 240, 64)
    exact, prompt = model(where, torch.float32, **shape).eval(), prompts(where, 3, length, shape["num_tokens"])
    for row, options in (("greedy", {"temperature": 0.0}), ("sampled", {"seed": 3})):
        yield attempt(f"{row} tokens, CUDA graph", lambda: replayed_tokens(row, exact, prompt, count, options, where))  # noqa: B023
    if where.reduced:
        return
    for name, shape, length in (("27 M", SMALL, 512), ("1.2 B", LLAMA, 512)):
        of, start = model(where, half(where), **shape), prompts(where, 1, length, shape["num_tokens"])
        with without_cuda_graphs():
            yield attempt(name, lambda: decode_rate(f"{name}, b1, compiled", of, start, 128, True, where))  # noqa: B023
        yield attempt(name, lambda: replayed_rate(f"{name}, b1, CUDA graph", of, start, where))  # noqa: B023


def replayed_tokens(
    row: str, of: AutoregressiveWrapper, prompt: Tensor, count: int, options: dict[str, Any], where: Round
) -> Row:
    """Tokens with CUDA graphs and eager ones. Fails where they differ, or where nothing was captured on CUDA."""
    with quick_graphs(where):
        plain = of.generate(prompt, count, compile=False, **options)
        replayed = of.generate(prompt, count, compile=True, cache=of.net.new_cache(len(prompt)), **options)
    equal, captured = (plain == replayed).double().mean().item(), how_captured(of)
    fine = equal == 1.0 and (captured.startswith("captured") or not where.on_cuda)
    return Row(f"{row} tokens, CUDA graph", "pass" if fine else "fail", equal, "of tokens equal", 1, captured)


def replayed_rate(row: str, of: AutoregressiveWrapper, prompt: Tensor, where: Round) -> Row:
    """As `decode_rate`, and whether steps were captured. Each call captures once, which its time includes."""
    found = decode_rate(row, of, prompt, 128, True, where)
    return replace(found, detail=f"{found.detail}; {how_captured(of)}")


def how_captured(of: AutoregressiveWrapper) -> str:
    """How often a model's steps were captured, or why they were not."""
    graphs = GRAPHS.of(of.net)
    if reasons := [graph.capture_error for graph in graphs if graph.capture_error is not None]:
        return f"ran without a CUDA graph: {reasons[0]}"
    captures = sum(graph.captures for graph in graphs)
    return f"captured {captures} times" if captures else "ran without a CUDA graph: this device has none"


def step_of(of: nn.Module, tokens: Tensor, compile: bool) -> Callable[[], object]:
    """A training step: loss, gradients, fused AdamW."""
    optimizer = torch.optim.AdamW(of.parameters(), lr=1e-5, fused=True)
    loss = torch.compile(of) if compile else of
    of.train()

    def run() -> object:
        optimizer.zero_grad(set_to_none=True)
        loss(tokens).backward()
        return optimizer.step()

    return run


def operations(of: AutoregressiveWrapper, batch: int, length: int) -> float:
    """Of a training step: 6 a weight and token, and the causal half of attention's products."""
    weights = sum(p.numel() for p in of.net.parameters())
    config = of.net.config.layers
    width = config.heads * config.head_dim
    return batch * (6.0 * weights * length + 6.0 * config.depth * width * length**2)


def llama_stage(where: Round) -> Iterator[Row]:
    """A model of 1.2 billion parameters in bfloat16: decoding, a training step of 4096 tokens, and the cost of a bias."""
    shape, length = (TINY, 32) if where.reduced else (LLAMA, 4096)
    rate = matrix_rate(where, half(where))
    yield Row("matrix rate", value=rate / 1e12, unit="Tflop/s")
    yield Row("bandwidth", value=bandwidth(where) / 1e9, unit="GB/s")
    yield from llama_decoding(where, shape, length // 8)
    tokens = prompts(where, 1, length + 1, shape["num_tokens"])
    for compile in (False,) if where.reduced else (False, True):  # inductor takes long
        row = f"training step, {'compiled' if compile else 'eager'}"
        yield attempt(row, lambda: training(row, shape, tokens, compile, rate, where))  # noqa: B023 (called at once)
    for scheme, backend in (("alibi", "flex"), ("alibi", "sdpa"), ("t5", "auto")):
        if backend != "flex" or where.on_cuda:
            row = f"step of {scheme} ({backend}) over rope (flash)"
            yield attempt(row, lambda: biased(row, scheme, backend, shape, tokens, where))  # noqa: B023


def half(where: Round) -> torch.dtype:
    """bfloat16, or float32 on a CPU, which may emulate it."""
    return torch.bfloat16 if where.on_cuda else torch.float32


def llama_decoding(where: Round, shape: dict[str, Any], length: int) -> Iterator[Row]:
    of, prompt = model(where, half(where), **shape), prompts(where, 1, length, shape["num_tokens"])
    for compile in (False,) if where.reduced else (False, True):
        row = f"decode b1, {'compiled' if compile else 'eager'}"
        yield attempt(row, lambda: decode_rate(row, of, prompt, 4 if where.reduced else 64, compile, where))  # noqa: B023


def training(row: str, shape: dict[str, Any], tokens: Tensor, compile: bool, rate: float, where: Round) -> Row:
    of = model(where, half(where), **shape)
    spent = seconds(step_of(of, tokens, compile=compile), where, repeats=3)
    fraction = operations(of, 1, tokens.shape[1] - 1) / spent / rate
    return Row(row, "measured", fraction, "of matrix rate", 0.5, f"{spent * 1e3:.0f} ms")


def biased(row: str, scheme: str, backend: str, shape: dict[str, Any], tokens: Tensor, where: Round) -> Row:
    """The time of a training step with a bias, over that of plain flash attention, in turns."""
    plain = step_of(model(where, half(where), **shape), tokens, compile=False)
    other = step_of(
        model(where, half(where), **{**shape, "position": scheme, "backend": backend}), tokens, compile=False
    )
    ratios = [seconds(other, where, repeats=1) / seconds(plain, where, repeats=1) for _ in range(3)]
    return Row(row, "measured", statistics.median(ratios), "times", 1.3)
