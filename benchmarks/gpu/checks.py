"""Is it right on this device: every scheme on every backend, gradients, and how often torch compiles.

B batch, T tokens.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from benchmarks.gpu.record import Round, Row, attempt
from x_positional import AutoregressiveWrapper, Decoder, TransformerWrapper
from x_positional.attention.backends import BACKENDS, obstacles
from x_positional.schemes import Alibi
from x_positional.testing import CHECKS, check_scheme
from x_positional.testing.cases import SchemeCase, cases
from x_positional.testing.checks_backends import Scenario, gradient_bound, gradient_sizes, gradients, scenarios
from x_positional.testing.expect import difference
from x_positional.testing.subject import Sizes, Subject

SLOW = ("backends_agree", "gradients_agree", "gradcheck", "compiles", "compiles_decoding")
"""Checks that compile kernels for minutes, or need no device; the stages here cover the first three."""
FEW_CHECKS = ("cached_equals_full", "padding")
HALF = torch.bfloat16


def contract(where: Round) -> Iterator[Row]:
    """Every scheme: on every backend once, then the checks of the contract suite. Registered schemes first, then variants."""
    every = cases()
    chosen = {name: every[name] for name in ("rope", "t5")} if where.reduced else every
    checks = FEW_CHECKS if where.reduced else [name for name in CHECKS if name not in SLOW]
    for name, case in chosen.items():
        subject = Subject(case.scheme, case.sizes or Sizes(), where.device)
        for backend in BACKENDS:
            row = f"{name}: {backend}"
            yield attempt(row, lambda: on_backend(row, subject, backend))  # noqa: B023 (called at once)
        row = f"{name}: contract"
        yield attempt(row, lambda: by_contract(row, case, where, checks))  # noqa: B023 (called at once)


def by_contract(row: str, case: SchemeCase, where: Round, checks: tuple[str, ...] | list[str]) -> Row:
    """The checks of the contract suite, on the device."""
    report = check_scheme(case.scheme, sizes=case.sizes, device=where.device, only=checks, strict=False)
    failures = "; ".join(f"{result.check}: {result.detail}" for result in report.failures)
    passed = sum(result.verdict == "pass" for result in report.results)
    return Row(row, "fail" if failures else "pass", passed, "checks passed", detail=failures[:1000])


@torch.no_grad()
def on_backend(row: str, subject: Subject, backend: str) -> Row:
    """Logits of one backend against eager, for whole rows and for padded ones."""
    kind = subject.kinds[0]
    if found := obstacles(backend, subject.capabilities(kind).kernel, frozenset()):
        return Row(row, "n/a", detail=found[0])
    if backend == "varlen":
        return in_half_precision(row, subject)
    tokens, worst = subject.tokens(13), 0.0
    keep = torch.arange(13, device=subject.device) >= torch.tensor([[0], [4], [11]], device=subject.device)
    for call in ({"tokens": tokens}, {"tokens": tokens, "mask": keep}):
        want, got = subject.model(kind, backend="eager")(**call), subject.model(kind, backend=backend)(**call)
        worst = max(worst, difference(got[:, 12:], want[:, 12:]))  # the last token is no padding
    bound = subject.rounding(kind, 13)
    return Row(row, "pass" if worst <= bound else "fail", worst, "difference", detail=f"bound {bound:.1e}")


def in_half_precision(row: str, subject: Subject) -> Row:
    """varlen in bfloat16, which is all it supports: no further from float64 than twice the distance of sdpa."""
    if subject.device.type != "cuda":
        return Row(row, "n/a", detail="the kernel runs on CUDA")
    kind, tokens = subject.kinds[0], subject.tokens(13)
    exact = subject.exact(kind, backend="eager")(tokens)
    off: dict[str, float] = {}
    for name in ("sdpa", "varlen"):
        model = subject.fresh(kind, backend=name).to(HALF)
        off[name] = difference(model(tokens).double(), exact)
    return varlen_beside_sdpa(row, off)


def varlen_beside_sdpa(row: str, off: dict[str, float]) -> Row:
    """Passes where varlen is no further from float64 than twice what sdpa is. off: the distance of each."""
    verdict = "pass" if off["varlen"] <= 2 * off["sdpa"] else "fail"
    return Row(row, verdict, off["varlen"], "off", detail=f"sdpa {off['sdpa']:.1e}")


def gradient_stage(where: Round) -> Iterator[Row]:
    """flex and varlen against eager. On a CPU, where both have no backward pass, blockwise and sdpa."""
    backends = ("flex",) if where.on_cuda else ("blockwise", "sdpa")
    schemes = {
        "rope": "rope",
        "alibi, learned": Alibi(learned=True),
        "t5": "t5",
        "dynamic": "dynamic",
        "polar": "polar",
    }
    names = ("a plain batch",) if where.reduced else ("a plain batch", "a window of 5", "documents", "149 tokens")
    for scheme, spec in list(schemes.items())[: 2 if where.reduced else None]:
        subject = Subject(spec, Sizes(), where.device)
        for scenario in scenarios(subject, "decoder"):
            for backend in backends if scenario.name in names else ():
                row = f"{scheme}: {backend}, {scenario.name}"
                yield attempt(row, lambda: same_gradients(row, subject, scenario, backend))  # noqa: B023
    if where.on_cuda:
        subject = Subject("rope", Sizes(), where.device)
        for scenario in scenarios(subject, "decoder"):
            if scenario.name in names:
                row = f"rope: varlen, {scenario.name}"
                yield attempt(row, lambda: half_gradients(row, subject, scenario))  # noqa: B023


def same_gradients(row: str, subject: Subject, scenario: Scenario, backend: str) -> Row:
    """Every parameter's gradient relative to its size, within the rounding that float32 shows against float64."""
    want = gradients(subject.model("decoder", backend="eager", **scenario.layers), scenario)
    got = gradients(subject.model("decoder", backend=backend, **scenario.layers), scenario)
    sizes = gradient_sizes([want])
    bound = gradient_bound(subject, "decoder", scenario, want, sizes)
    name, worst = largest_difference(got, want, sizes)
    return Row(row, "pass" if worst <= bound else "fail", worst, "difference", detail=f"bound {bound:.1e}, at {name}")


def half_gradients(row: str, subject: Subject, scenario: Scenario) -> Row:
    """Gradients of varlen in bfloat16: no further from float64 than twice those of sdpa."""
    exact = gradients(subject.exact("decoder", backend="eager", **scenario.layers), scenario)
    sizes, off = gradient_sizes([exact]), {}
    for backend in ("sdpa", "varlen"):
        model = subject.fresh("decoder", backend=backend, **scenario.layers).to(HALF)
        off[backend] = largest_difference(gradients(model, scenario), exact, sizes)[1]
    return varlen_beside_sdpa(row, off)


def largest_difference(
    got: dict[str, Tensor | None], want: dict[str, Tensor | None], sizes: dict[str, float]
) -> tuple[str, float]:
    """The parameter whose gradients differ most relative to their size, and by how much."""
    found = [("none", 0.0)]
    for name, value in want.items():
        other = got[name]
        if value is None or other is None:
            found.append((name, 0.0 if value is other else float("inf")))
        else:
            found.append((name, difference(other.to(value.dtype), value) / sizes.get(name, 1.0)))
    return max(found, key=lambda pair: pair[1])


def recompile_stage(where: Round) -> Iterator[Row]:
    """Graphs over many lengths: of the compiled training step, and of the flex backend in a plain training step."""
    lengths = range(20, 22) if where.reduced else range(100, 600, 10)
    schemes = ("rope",) if where.reduced else ("rope", "alibi", "t5", "dynamic", "cope", "forgetting")
    for scheme in schemes:
        row = f"{scheme}: compiled step, {len(lengths)} lengths"
        yield attempt(row, lambda: step_graphs(row, scheme, lengths, where))  # noqa: B023 (called at once)
    for scheme in ("rope", "alibi", "t5") if where.on_cuda else ():
        row = f"{scheme}: flex, {len(lengths)} lengths"
        yield attempt(row, lambda: flex_graphs(row, scheme, lengths, where))  # noqa: B023 (called at once)


def small(scheme: str, where: Round, **flags: object) -> AutoregressiveWrapper:
    layers = Decoder(dim=32, depth=1, heads=2, attn_dim_head=16, position=scheme, **flags)
    return AutoregressiveWrapper(TransformerWrapper(num_tokens=31, max_seq_len=640, attn_layers=layers)).to(
        where.device
    )


def steps(loss: object, lengths: range, where: Round) -> None:
    """A backward pass at each length."""
    for length in lengths:
        tokens = torch.randint(31, (2, length), generator=torch.Generator().manual_seed(length))
        loss(tokens.to(where.device)).backward()  # type: ignore[operator]


def step_graphs(row: str, scheme: str, lengths: range, where: Round) -> Row:
    torch._dynamo.reset()
    graphs = CompileCounterWithBackend("eager" if where.reduced else "aot_eager")
    steps(torch.compile(small(scheme, where), fullgraph=True, dynamic=True, backend=graphs), lengths, where)
    torch._dynamo.reset()
    return Row(row, "pass" if graphs.frame_count == 1 else "fail", graphs.frame_count, "graphs", 1)


def flex_graphs(row: str, scheme: str, lengths: range, where: Round) -> Row:
    """None after the first two lengths. A mask of one block of keys has sizes of 1, which torch compiles for themselves."""
    torch._dynamo.reset()
    of = small(scheme, where, backend="flex")
    steps(of, range(100, 300, 100), where)
    counters.clear()
    steps(of, lengths, where)
    found = counters["stats"]["unique_graphs"]
    return Row(row, "pass" if found == 0 else "fail", found, "more graphs", 0)
