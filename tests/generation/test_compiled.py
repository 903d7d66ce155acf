"""Decoding with a compiled step gives the tokens of decoding without one."""

import gc
import logging
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from tests.support.draws import draws
from tests.support.rounding import assert_same
from x_positional import AutoregressiveWrapper, TransformerWrapper, XTransformer
from x_positional.errors import CacheError, InputError
from x_positional.generation.step import compiled as policy
from x_positional.generation.step.graph import GRAPHS

VOCAB = 41


@pytest.fixture(autouse=True)
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[CompileCounter]:
    """Counts graphs, which run as torch recorded them: generating code would take half a minute each."""
    counter = CompileCounter()
    monkeypatch.setattr(GRAPHS, "backend", counter)
    yield counter
    torch._dynamo.reset()


def model(position: Any = "rope", seed: int = 0, **fields: Any) -> AutoregressiveWrapper:
    torch.manual_seed(seed)
    layers = {"dim": 24, "depth": 1, "heads": 3, "head_dim": 8, "position": position, **fields}
    config = {"num_tokens": VOCAB, "max_seq_len": 600, "layers": layers}
    made = AutoregressiveWrapper(TransformerWrapper.from_config(config)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return made


def prompts(batch: int, length: int) -> Tensor:
    return torch.randint(0, VOCAB, (batch, length), generator=torch.Generator().manual_seed(batch + length))


def test_one_graph_serves_every_length_and_batch_sizes_share_one_up_to_a_power_of_two(graphs: CompileCounter):
    m = model("alibi")
    for batch, length, new in ((3, 11, 5), (4, 250, 12), (3, 300, 3), (4, 1, 2)):
        tokens = prompts(batch, length)
        got = m.generate(tokens, new, temperature=0.0, compile=True)
        assert torch.equal(got, m.generate(tokens, new, temperature=0.0, compile=False))
    assert graphs.frame_count == 1
    m.generate(prompts(5, 4), 3, temperature=0.0, compile=True)
    assert graphs.frame_count == 2


def test_ragged_prompts_share_the_graph_of_equal_ones(graphs: CompileCounter):
    m = model("t5")
    rows = [prompts(1, n)[0] for n in (3, 20, 7)]
    got = m.generate(rows, 9, temperature=0.0, compile=True)
    assert torch.equal(got, m.generate(rows, 9, temperature=0.0, compile=False))
    m.generate(prompts(3, 9), 4, temperature=0.0, compile=True)
    assert graphs.frame_count == 1


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7, "filter_logits_fn": "top_p"},
        {"repetition_penalty": 1.3, "num_return_sequences": 2},
        *draws([], [{}, {"temperature": 0.7}, {"filter_logits_fn": "top_p"}]),
    ],
)
def test_the_same_seed_draws_the_same_tokens(options: dict[str, Any]):
    m, tokens = model(), prompts(3, 6)
    got = [m.generate(tokens, 12, seed=5, compile=compile, **options) for compile in (True, False)]
    assert torch.equal(*got)


def test_a_filter_of_the_caller_runs_outside_of_the_graph():
    m, tokens, seen = model(), prompts(2, 6), []

    def only_even(logits: Tensor) -> Tensor:
        seen.append(len(logits))
        return logits.index_fill(-1, torch.arange(1, VOCAB, 2), float("-inf"))

    got = m.generate(tokens, 6, temperature=0.0, filter_logits_fn=only_even, compile=True)
    assert not (got % 2).any()
    assert seen == [2] * 6


def test_functions_of_the_caller_and_log_probs_run_outside_of_the_graph():
    m, tokens = model("t5"), prompts(3, 6)
    options = {
        "seed": 1,
        "logits_processors": lambda new, logits: logits.scatter(1, new, float("-inf")),
        "stopping_criteria": lambda new: new[:, -1] % 5 == 0,
        "return_log_probs": True,
        "return_cache": True,
    }
    for given in (options, {"seed": 1, "return_log_probs": True, "return_cache": True}):
        (got, log_probs, kept), (want, scores, cache) = (
            m.generate(tokens, 12, compile=compile, **given) for compile in (True, False)
        )
        assert torch.equal(got, want)
        assert_same(log_probs, scores, terms=200)
        assert torch.equal(torch.as_tensor(kept.starts()), torch.as_tensor(cache.starts()))


def test_a_sliding_window_wraps_around(graphs: CompileCounter):
    m = model("rope", depth=2, pattern=({"window": 7}, {"window": 300}))
    tokens = prompts(2, 290)
    got = m.generate(tokens, 40, temperature=0.0, compile=True)
    assert torch.equal(got, m.generate(tokens, 40, temperature=0.0, compile=False))
    assert graphs.frame_count <= 2  # one more where the ring of 300 stops growing


ENDS = [3, 5, 7, 9, 11]


@pytest.mark.parametrize(
    ("eos", "compiled_first"), [(None, True), (ENDS, False), *draws([], [(None, False), (ENDS, True)])]
)
def test_a_cache_goes_on_with_and_without_a_graph(eos: list[int] | None, compiled_first: bool):
    m, tokens, more = model("forgetting"), prompts(3, 9), prompts(3, 2)
    new, kept = m.generate(tokens, 10, seed=1, eos_token=eos, compile=compiled_first, return_cache=True)
    again = m.generate(more, 5, temperature=0.0, cache=kept, compile=not compiled_first)
    want, cache = m.generate(tokens, 10, seed=1, eos_token=eos, compile=False, return_cache=True)
    assert torch.equal(new, want)
    assert torch.equal(again, m.generate(more, 5, temperature=0.0, cache=cache, compile=False))


def test_a_stream_that_stops_early_leaves_its_tokens_in_the_cache():
    m, tokens = model("cope"), prompts(2, 5)
    cache = m.net.new_cache(2)
    stream = m.stream(tokens, 50, temperature=0.0, cache=cache, compile=True)
    drawn = [next(stream) for _ in range(6)]
    stream.close()
    assert cache.span == 5 + 6
    rest = m.generate(None, 3, temperature=0.0, cache=cache)
    whole = m.generate(tokens, 9, temperature=0.0, compile=False)
    assert torch.equal(torch.cat([torch.stack(drawn, 1), rest], 1), whole)


def test_given_positions_and_a_longer_cache():
    m, tokens = model(), prompts(2, 6)
    positions = torch.tensor([[0, 2, 4, 9, 10, 30], [0, 1, 2, 3, 4, 5]])
    got = [m.generate(tokens, 6, temperature=0.0, positions=positions, compile=c) for c in (True, False)]
    assert torch.equal(*got)


def test_cross_attention_reads_its_context(graphs: CompileCounter):
    torch.manual_seed(0)
    side = {"dim": 24, "enc_depth": 1, "dec_depth": 2, "enc_heads": 3, "dec_heads": 3}
    sizes = {"enc_num_tokens": VOCAB, "enc_max_seq_len": 64, "dec_num_tokens": VOCAB, "dec_max_seq_len": 64}
    m = XTransformer(**side, **sizes).eval()
    source, mask = prompts(2, 9), torch.ones(2, 9, dtype=torch.bool)
    mask[1, 5:] = False
    got = [m.generate(source, prompts(2, 3), 12, mask=mask, temperature=0.0, compile=c) for c in (True, False)]
    assert torch.equal(*got)
    assert graphs.frame_count == 1


def test_changed_parameters_are_used_and_changed_structure_is_compiled_anew(graphs: CompileCounter):
    m, tokens = model(), prompts(1, 6)
    m.generate(tokens, 6, temperature=0.0, compile=True)
    with torch.no_grad():
        for parameter in m.parameters():
            parameter.mul_(-1)
    got = [m.generate(tokens, 6, temperature=0.0, compile=c) for c in (True, False)]
    assert torch.equal(*got)
    assert graphs.frame_count == 1
    m.net.attn_layers.blocks[0].attn.scale = 3.0
    got = [m.generate(tokens, 6, temperature=0.0, compile=c) for c in (True, False)]
    assert torch.equal(*got)
    assert graphs.frame_count == 2
    m.net.attn_layers.blocks[0].ff = nn.Linear(24, 24).eval()
    got = [m.generate(tokens, 6, temperature=0.0, compile=c) for c in (True, False)]
    assert torch.equal(*got)
    assert graphs.frame_count == 3


def test_parameters_that_change_between_two_tokens_are_noticed():
    m = model()
    stream = m.stream(prompts(1, 4), 9, compile=True)
    next(stream), next(stream)
    with torch.no_grad():
        m.net.token_emb.weight.mul_(2)
    with pytest.raises(CacheError, match="parameters of the model changed"):
        next(stream)


def test_what_cannot_be_compiled_is_refused_with_every_reason():
    m = model(
        {
            "kind": "rope",
            "scaling": {
                "rope_type": "dynamic",
                "factor": 2.0,
                "original_max_position_embeddings": 64,
                "length_policy": "recompute",
            },
        }
    )
    m.train()
    with pytest.raises(InputError, match=r"training mode[\s\S]*changes the keys of earlier tokens"):
        m.generate(prompts(1, 4), 3, compile=True)
    with pytest.raises(InputError, match="cache_kv=False"):
        model().generate(prompts(1, 4), 3, compile=True, cache_kv=False)
    with pytest.raises(InputError, match="compile='yes' must be True, False or 'auto'"):
        model().generate(prompts(1, 4), 3, compile="yes")  # type: ignore[arg-type]


def test_no_compiler_is_reported_before_the_first_token(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(policy, "cpp_compilers", list)
    with pytest.raises(InputError, match=r"no C\+\+ compiler was found. Install g\+\+"):
        model().generate(prompts(1, 4), 3, compile=True)


class Printing(nn.Module):
    """Cannot be compiled: it calls what ends a graph."""

    def forward(self, x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return x


def test_a_step_that_does_not_compile(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    m, tokens = model(), prompts(1, 4)
    m.net.attn_layers.final_norm = Printing().eval()
    with pytest.raises(InputError, match=r"torch cannot compile the decoding step .*Pass compile=False"):
        m.generate(tokens, 3, compile=True)
    monkeypatch.setattr(policy, "PAYS_AFTER", 0)
    with caplog.at_level(logging.WARNING):
        got = m.generate(tokens, 5, temperature=0.0)
    assert torch.equal(got, m.generate(tokens, 5, temperature=0.0, compile=False))
    assert "Decoding goes on without" in caplog.text
    caplog.clear()
    m.generate(tokens, 5, temperature=0.0)
    assert not caplog.records, "a step that failed is not compiled again"


def test_a_refused_stream_leaves_its_cache_as_it_was():
    m = model()
    cache = m.net.new_cache(1)
    m.train()
    with pytest.raises(InputError, match="training mode"):
        m.stream(prompts(1, 4), 3, cache=cache, compile=True)
    assert cache.span == 0


def test_auto_compiles_once_the_model_was_asked_for_enough_tokens(
    graphs: CompileCounter, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(policy, "PAYS_AFTER", 20)
    m, tokens = model(), prompts(1, 4)
    m.generate(tokens, 10)
    assert graphs.frame_count == 0
    assert not caplog.records
    m.generate(tokens, 10)
    m.generate(tokens, 10)
    assert graphs.frame_count == 1
    assert [r.getMessage() for r in caplog.records if "compiling the decoding step" in r.getMessage()] == [
        caplog.records[0].getMessage()
    ]


def test_threads_share_a_graph(graphs: CompileCounter):
    m = model("alibi")
    want = [m.generate(prompts(2, 5 + i), 8, temperature=0.0, compile=False) for i in range(6)]
    got: dict[int, Tensor] = {}

    def work(i: int) -> None:
        got[i] = m.generate(prompts(2, 5 + i), 8, temperature=0.0, compile=True)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(got[i], want[i]) for i in range(6))
    assert graphs.frame_count == 1


def test_graphs_do_not_keep_a_model_alive():
    m = model()
    m.generate(prompts(1, 4), 3, compile=True)
    watched = weakref.ref(m.net)
    del m
    torch._dynamo.reset()
    gc.collect()
    assert watched() is None


def test_generated_code_gives_the_same_tokens(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(GRAPHS, "backend", "inductor")
    m = model(["rope", "alibi"], depth=2)
    rows = [prompts(1, n)[0] for n in (3, 20, 7)]
    got = [m.generate(rows, 30, seed=2, compile=c) for c in (True, False)]
    assert torch.equal(*got)
