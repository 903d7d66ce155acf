"""A compiled step that is captured and replayed gives the tokens of the step without: a stand-in for CUDA graphs on a CPU."""

import inspect
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from tests.generation.test_compiled import model, prompts
from tests.support.generation_models import PAIRS_OF_AXES, SCHEMES
from tests.support.recorded import Recorder
from x_positional.errors import CacheError
from x_positional.generation.step import captured
from x_positional.generation.step.captured import RUNS_BEFORE_CAPTURE
from x_positional.generation.step.graph import GRAPHS


@pytest.fixture(autouse=True)
def recorders(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    """Those that were made. The step is captured as it is: compiling it takes seconds, and only one test needs that."""
    made: list[Recorder] = []

    def record(device: torch.device) -> Recorder:
        made.append(Recorder())
        return made[-1]

    monkeypatch.setattr(torch, "compile", lambda step, **options: step)
    monkeypatch.setitem(captured.RECORDERS, "cpu", record)
    return made


@pytest.fixture
def compiles(monkeypatch: pytest.MonkeyPatch, recorders: list[Recorder]) -> Iterator[CompileCounter]:
    """Steps are compiled, but no code is generated for them."""
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", COMPILE)
    monkeypatch.setattr(GRAPHS, "backend", counter)
    yield counter
    torch._dynamo.reset()


COMPILE = torch.compile
OPTIONS = {
    "greedy": {"temperature": 0.0},
    "sampled": {"seed": 5, "temperature": 0.7, "filter_logits_fn": "top_k"},
    "penalized": {"seed": 5, "repetition_penalty": 1.3},
    "ends": {"seed": 29, "eos_token": [3, 5, 7], "return_cache": True},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_replayed_steps_give_the_same_tokens(options: dict[str, Any], recorders: list[Recorder]):
    m, rows = model("t5", pattern=({"window": 7}, {}), depth=2), [prompts(1, n)[0] for n in (3, 20, 7)]
    got, want = (m.generate(rows, 16, compile=c, **options) for c in (True, False))
    if "return_cache" in options:
        (got, kept), (want, cache) = got, want
        assert len(set((cache.state.lengths - torch.tensor([3, 20, 7])).tolist())) > 1  # rows end at different steps
        more, then = prompts(3, 2), {"temperature": 0.0, "seed": 1, "compile": True}
        assert torch.equal(*(m.generate(more, 9, cache=c, **then) for c in (kept, cache)))
        assert torch.equal(kept.state.lengths, cache.state.lengths)
    assert torch.equal(got, want)
    assert recorders[0].replays > 5
    assert [(g.captures > 0, g.capture_error) for g in GRAPHS.of(m.net)][:1] == [(True, None)]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_is_captured(scheme: str, recorders: list[Recorder]):
    m = model(scheme, head_dim=12 if scheme in PAIRS_OF_AXES else 8)
    got, want = (m.generate(prompts(2, 9), 12, temperature=0.0, compile=c) for c in (True, False))
    assert torch.equal(got, want)
    assert [r.replays for r in recorders] == [11 - RUNS_BEFORE_CAPTURE]


def test_a_cache_that_grows_is_captured_anew(recorders: list[Recorder], compiles: CompileCounter):
    m, tokens = model("rope"), prompts(2, 245)
    cache = m.net.new_cache(2)
    got = m.generate(tokens, 40, temperature=0.0, cache=cache, compile=True)
    assert torch.equal(got, m.generate(tokens, 40, temperature=0.0, compile=False))
    steps = 256 - 245, 40 - (256 - 245)
    assert [r.replays for r in recorders] == [n - RUNS_BEFORE_CAPTURE for n in steps]
    assert GRAPHS.of(m.net)[0].captures == 2
    assert compiles.frame_count == 1


def test_two_streams_of_one_model_take_turns():
    m, tokens = model("alibi"), [prompts(2, 5), prompts(2, 17)]
    streams = [m.stream(t, 12, seed=i, compile=True) for i, t in enumerate(tokens)]
    got = [torch.stack(drawn, 1) for drawn in zip(*zip(*streams, strict=True), strict=True)]
    for i, t in enumerate(tokens):
        assert torch.equal(got[i], m.generate(t, 12, seed=i, compile=False))


def test_what_a_step_handed_out_stays_as_it_was():
    m = model("rope")
    cache, seen = m.net.new_cache(2), []
    for token in m.stream([prompts(1, 4)[0], prompts(1, 9)[0]], 12, temperature=0.0, cache=cache, compile=True):
        ending = cache.state.ending
        seen += [
            (t, t.clone()) for t in (token, cache.state.lengths, cache.state.tables[0].index, ending and ending[1])
        ]
    assert all(now is None or torch.equal(now, then) for now, then in seen)


def test_a_failed_call_leaves_its_cache_as_it_was():
    m, kept = model("alibi"), prompts(2, 9)
    cache = m.net.new_cache(2)
    m.net(kept, cache=cache)
    want = m.generate(prompts(2, 3), 6, temperature=0.0, cache=cache, compile=False, return_cache=False)
    cache = m.net.new_cache(2)
    m.net(kept, cache=cache)

    def fails(logits: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return logits if len(calls) < 9 else logits * float("nan")

    calls: list[int] = []
    with pytest.raises(ValueError, match="contain NaN"):
        m.generate(prompts(2, 3), 20, temperature=0.0, filter_logits_fn=fails, cache=cache, compile=True)
    assert torch.equal(m.generate(prompts(2, 3), 6, temperature=0.0, cache=cache, compile=True), want)


def test_what_cannot_be_captured_runs_compiled(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    made: list[Recorder] = []

    def fails(device: torch.device) -> Recorder:
        made.append(Recorder(RuntimeError("operation not permitted when stream is capturing")))
        return made[-1]

    monkeypatch.setitem(captured.RECORDERS, "cpu", fails)
    m, tokens = model("forgetting"), prompts(3, 250)
    want = m.generate(tokens, 30, temperature=0.0, compile=False)
    with caplog.at_level(logging.WARNING, "x_positional.generation.step.captured"):
        for _ in range(2):
            cache = m.net.new_cache(3)
            assert torch.equal(m.generate(tokens, 30, temperature=0.0, cache=cache, compile=True), want)
    texts = [r.getMessage() for r in caplog.records if r.name == captured.__name__]
    assert texts == [
        "the decoding step cannot be captured as a CUDA graph (RuntimeError: operation not permitted when stream is "
        "capturing); it runs compiled, without one."
    ]
    assert sum(r.tried for r in made) == 1
    graph = GRAPHS.of(m.net)[0]
    assert (graph.captures, graph.capture_error) == (0, texts[0].partition("(")[2].partition(")")[0])


def test_a_short_call_is_not_captured(recorders: list[Recorder]):
    model().generate(prompts(1, 4), RUNS_BEFORE_CAPTURE + 1, compile=True)
    assert [r.tried for r in recorders] == [False]


def test_parameters_that_change_are_noticed_while_steps_are_replayed(recorders: list[Recorder]):
    m = model()
    stream = m.stream(prompts(1, 4), 12, compile=True)
    for _ in range(8):
        next(stream)
    assert recorders[0].replays > 1
    with torch.no_grad():
        m.net.token_emb.weight.mul_(2)
    with pytest.raises(CacheError, match="parameters of the model changed"):
        next(stream)


def test_torch_has_what_a_capture_uses():
    from torch._inductor.cudagraph_trees import clear_cublas_manager

    assert inspect.isgeneratorfunction(inspect.unwrap(clear_cublas_manager))
    assert {"cuda_graph", "stream", "capture_error_mode"} <= inspect.signature(torch.cuda.graph).parameters.keys()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_graphs_give_the_same_tokens(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "compile", COMPILE)
    monkeypatch.setattr(GRAPHS, "backend", "inductor")
    m = model(["rope", "alibi"]).cuda()
    rows = [prompts(1, n)[0].cuda() for n in (3, 250, 7)]
    cache = m.net.new_cache(3)
    got = m.generate(rows, 30, seed=2, cache=cache, compile=True)
    assert torch.equal(got, m.generate(rows, 30, seed=2, compile=False))
    assert [(g.captures, g.capture_error) for g in GRAPHS.of(m.net)] == [(2, None)]
