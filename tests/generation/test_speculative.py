"""Speculative decoding: the greedy tokens and the distribution of decoding one token at a time, in fewer passes."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.generation_models import (
    GREEDY,
    NUM_TOKENS,
    SCHEMES,
    Script,
    equal,
    full_pass,
    ids,
    language_model,
    perturbed,
)
from tests.support.length_scalings import dynamic
from x_positional import AutoregressiveWrapper, Decoder, DraftModel, PromptLookup, TransformerWrapper
from x_positional.errors import ArgumentError, InputError, SamplingError
from x_positional.generation.proposals import LookupProposals, Proposal
from x_positional.generation.sampling import resolve_filters, sample
from x_positional.generation.speculative import Speculation, acceptance, distribution, remainder


def wrap(scheme="rope", **flags) -> AutoregressiveWrapper:
    return AutoregressiveWrapper(language_model(scheme, **flags), pad_value=5)


def near(net: TransformerWrapper, size: float = 0.02) -> TransformerWrapper:
    """A draft that often agrees with a model."""
    twin = TransformerWrapper.from_config(net.config)
    twin.double().load_state_dict(net.state_dict())
    return perturbed(twin, seed=7, size=size)


REPEATED = ids(6).repeat(3)


# greedy


@pytest.mark.parametrize("scheme", SCHEMES)
def test_greedy_tokens_of_every_scheme_are_those_of_plain_decoding(scheme: str) -> None:
    wrapper = wrap(scheme)
    want, passes = wrapper.generate(REPEATED, 24, **GREEDY), []
    wrapper.net.register_forward_pre_hook(lambda *_: passes.append(1))
    for how in (PromptLookup(5), DraftModel(near(wrapper.net)), DraftModel(wrapper.net, tokens=3)):
        passes.clear()
        assert torch.equal(wrapper.generate(REPEATED, 24, speculate=how, **GREEDY), want)
        report = how.report
        assert report.tokens == report.accepted + report.passes == 23
        if isinstance(how, PromptLookup):
            assert len(passes) == 1 + report.passes
    assert report.acceptance_rate == 1.0  # the draft is the model
    assert report.passes == 6


@pytest.mark.parametrize(
    "options", [{}, {"repetition_penalty": 1.4}, {"filter_logits_fn": ["top_p", "typical"]}], ids=str
)
@pytest.mark.parametrize("count", [1, 2, 3, 17])
def test_greedy_tokens_with_options_and_of_any_number(options: dict[str, Any], count: int) -> None:
    wrapper = wrap("alibi")
    want = wrapper.generate(REPEATED, count, **GREEDY, **options)
    for how in (PromptLookup(1), PromptLookup(9, ngram=1), DraftModel(near(wrapper.net), 6)):
        assert torch.equal(wrapper.generate(REPEATED, count, speculate=how, **GREEDY, **options), want)
        stream = wrapper.stream(REPEATED, count, speculate=how, prefill_chunk_size=4, **GREEDY, **options)
        assert torch.equal(torch.cat(list(stream)), want)


def test_an_end_inside_a_run_ends_it() -> None:
    wrapper = wrap()
    free = wrapper.generate(REPEATED, 24, **GREEDY).tolist()
    for eos in sorted(set(free)):
        want, cache = wrapper.generate(REPEATED, 24, eos, return_cache=True, **GREEDY)
        for how in (PromptLookup(8), DraftModel(wrapper.net, 7)):
            got, kept = wrapper.generate(REPEATED, 24, eos, speculate=how, return_cache=True, **GREEDY)
            assert torch.equal(got, want)
            assert kept.span == cache.span
            onward = ids(1, 4, seed=5)
            script = Script(onward)
            wrapper.generate(None, 4, filter_logits_fn=script, cache=kept)
            equal(script.logits[0], full_pass(wrapper.net, REPEATED, want, onward[0]))


@pytest.mark.parametrize("taken", range(1, 12))
def test_a_stream_that_is_stopped_inside_a_run_keeps_what_it_handed_out(taken: int) -> None:
    wrapper = wrap("t5")
    want, cache = wrapper.generate(REPEATED, 12, **GREEDY), wrapper.net.new_cache(1)
    stream = wrapper.stream(REPEATED, 12, speculate=DraftModel(wrapper.net, 4), cache=cache, **GREEDY)
    got = [next(stream) for _ in range(taken)]
    stream.close()
    assert torch.equal(torch.cat(got), want[:taken])
    assert cache.span == len(REPEATED) + taken
    again = wrapper.generate(None, 12 - taken, speculate=PromptLookup(), cache=cache, **GREEDY)
    assert torch.equal(again[0], want[taken:])


def test_a_conversation_in_one_cache_and_a_forked_prefix() -> None:
    wrapper = wrap()
    plain, cache = wrapper.net.new_cache(1), wrapper.prefill(ids(4), cache=wrapper.net.new_cache(1)).copy()
    wrapper.generate(ids(4), 0, cache=plain)
    for turn in (REPEATED, ids(3, seed=9)):
        want = wrapper.generate(turn, 7, cache=plain, **GREEDY)
        assert torch.equal(wrapper.generate(turn, 7, cache=cache, speculate=PromptLookup(), **GREEDY), want)
    assert plain.span == cache.span


def test_positions_and_a_context() -> None:
    wrapper = wrap(cross_attend=True)
    options = {"context": torch.randn(1, 6, 26, generator=torch.Generator().manual_seed(0)).double(), **GREEDY}
    options["positions"] = 2 * torch.arange(18)[None]
    want = wrapper.generate(REPEATED, 20, **options)
    for how in (PromptLookup(), DraftModel(language_model(), 3)):
        assert torch.equal(wrapper.generate(REPEATED, 20, speculate=how, **options), want)
        assert 0 < how.report.passes <= 19


# distribution


def table(rows: int, columns: int, seed: int) -> Tensor:
    logits = 2 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return logits.softmax(-1)


@pytest.mark.parametrize("certain", [False, True])
def test_the_rule_gives_exactly_the_distribution_of_the_model(certain: bool) -> None:
    """Every run of two proposals over three tokens, weighted by its probability: q(d) x accept x the token after it."""
    size, K = 3, 2
    p, q = table(size + 1, size, 1), table(size + 1, size, 2)  # rows: the token before, `size` at the beginning
    if certain:
        q = torch.nn.functional.one_hot(p.argmin(-1), size).double()
    q[0] = q[0] * torch.tensor([0.0, 1.0, 1.0]) if not certain else q[0]
    q = q / q.sum(-1, keepdim=True)
    found: dict[tuple[int, ...], float] = {}
    for proposed in itertools.product(range(size), repeat=K):
        before = (size, *proposed)
        chance = float(torch.stack([q[before[i], proposed[i]] for i in range(K)]).prod())
        if not chance:
            continue
        proposal = Proposal(torch.tensor(proposed), None if certain else q[list(before[:K])])
        probs = p[list(before)]
        accept = acceptance(probs, proposal)
        for accepted in range(K + 1):
            weight = chance * float(accept[:accepted].prod())
            weight *= 1.0 if accepted == K else 1 - float(accept[accepted])
            rest = remainder(probs, proposal, accepted)
            for token in range(size):
                run = (*proposed[:accepted], token)
                found[run] = found.get(run, 0.0) + weight * float(rest[token] / rest.sum())
    assert sum(found.values()) == pytest.approx(1.0)
    for length in range(
        1, K + 2
    ):  # a run that begins with these tokens, or that ends before and is continued by the model
        for tokens in itertools.product(range(size), repeat=length):
            got = 0.0
            for run, weight in found.items():
                if run[:length] == tokens[: len(run)]:
                    for i in range(len(run), length):
                        weight *= float(p[tokens[i - 1], tokens[i]])
                    got += weight
            want = float(torch.stack([p[b, t] for b, t in zip((size, *tokens), tokens, strict=False)]).prod())
            assert got == pytest.approx(want, abs=1e-12)


class Chain:
    """A language model, and its cache, whose next token depends on the last one alone."""

    device, span = torch.device("cpu"), 0

    def __init__(self, probs: Tensor):
        self.probs, self.num_tokens = probs, len(probs)

    def __call__(self, tokens: Tensor, **_: Any) -> Tensor:
        return self.probs[tokens]

    def logits(self, x: Tensor) -> Tensor:
        return x.log()

    def crop(self, length: int) -> None:
        pass


class Fixed:
    """Proposals of another chain."""

    def __init__(self, probs: Tensor, generator: torch.Generator):
        self.probs, self.generator = probs, generator

    def propose(self, sequence: list[int], count: int) -> Proposal:
        tokens, rows = [sequence[-1]], []
        for _ in range(count):
            rows.append(self.probs[tokens[-1]])
            tokens.append(int(torch.multinomial(rows[-1], 1, generator=self.generator)))
        return Proposal(torch.tensor(tokens[1:]), torch.stack(rows))


@pytest.mark.parametrize("lookup", [False, True])
def test_frequencies_of_whole_passes(lookup: bool) -> None:
    """The same through `Speculation` itself: 1,500 passes that begin alike."""
    net, generator, runs = Chain(table(3, 3, 1)), torch.Generator().manual_seed(0), 1500
    counts = torch.zeros(3, 3, dtype=torch.float64)
    for _ in range(runs):
        how: Any = PromptLookup(2)
        steps = Speculation(how, net, [0, 2, 1, 0, 1], 99, 1.0, (), generator)  # type: ignore[arg-type]
        if not lookup:
            steps.proposals = Fixed(table(3, 3, 2), generator)  # type: ignore[assignment]
        tokens = [int(token) for token, _ in steps.next(net, torch.tensor([0]), 3, None)]
        while len(tokens) < 2:  # rejected at once
            tokens += [int(token) for token, _ in steps.next(net, torch.tensor(tokens[-1:]), 3, None)]
        counts[tokens[0], tokens[1]] += 1
    want = runs * net.probs[0][:, None] * net.probs
    chi2 = float(((counts - want) ** 2 / want).sum())
    assert chi2 < 26.1  # 8 degrees of freedom, p = 0.001


def test_probabilities_are_those_that_tokens_are_drawn_with() -> None:
    logits = torch.randn(1, 6, generator=torch.Generator().manual_seed(0)).expand(20000, -1)
    filters = resolve_filters(["top_k", "top_p"], [{"k": 4}, {"thres": 0.9}])
    probs, largest = distribution(logits[:1], 0.7, filters)
    drawn = sample(logits, 0.7, filters, torch.Generator().manual_seed(1)).bincount(minlength=6) / 20000
    assert (drawn - probs[0]).abs().max() < 0.015
    assert float(largest) == float(logits[0].max())


def test_sampling_repeats_with_a_seed_and_stays_in_the_filters() -> None:
    wrapper = wrap()
    options = {"temperature": 1.3, "filter_logits_fn": "top_k", "filter_kwargs": {"k": 3}, "repetition_penalty": 1.2}
    for how in (PromptLookup(4), DraftModel(near(wrapper.net, 0.1), 4)):
        first, again = (wrapper.generate(REPEATED, 20, seed=4, speculate=how, **options) for _ in range(2))
        assert torch.equal(first, again)
        tokens = REPEATED
        for token in first:  # each token is one of the three that plain decoding would draw from
            script = Script(token[None, None])
            wrapper.generate(tokens, 1, filter_logits_fn=script, repetition_penalty=1.2)
            assert int(token) in script.logits[0, 0].topk(3).indices.tolist()
            tokens = torch.cat([tokens, token[None]])


# proposals


def test_what_a_lookup_proposes() -> None:
    lookup = LookupProposals(3, torch.device("cpu"))
    assert lookup.propose([1, 2, 3, 9, 1, 2, 3], 2).tokens.tolist() == [9, 1]
    assert lookup.propose([1, 2, 3, 9, 1, 2, 3, 4, 5, 2, 3], 3).tokens.tolist() == [4, 5, 2]  # the latest occurrence
    assert lookup.propose([1, 2, 3, 9, 1, 2, 3, 4, 5, 2, 3, 7, 7], 5).tokens.tolist() == [7]
    assert lookup.propose([1, 2, 3, 9, 1, 2, 3, 4, 5, 2, 3, 7, 7, 8], 5).tokens.tolist() == []
    assert LookupProposals(3, torch.device("cpu")).propose([], 5).tokens.tolist() == []


def test_a_report_and_the_log(caplog) -> None:
    wrapper, how = wrap(), PromptLookup(4)
    with caplog.at_level("INFO", logger="x_positional.generation.speculative"):
        wrapper.generate(REPEATED, 24, speculate=how, **GREEDY)
    report = how.report
    assert 0 < report.accepted <= report.proposed
    assert report.tokens_per_pass == report.tokens / report.passes > 1.0
    assert f"{report.accepted} of {report.proposed} proposed tokens accepted" in caplog.text
    assert PromptLookup().report.acceptance_rate == PromptLookup().report.tokens_per_pass == 0.0


# refusals


def test_what_cannot_be_speculated_is_refused_before_anything_is_computed() -> None:
    calls = []

    def refused(
        match: str, wrapper: AutoregressiveWrapper, prompt=REPEATED, count: int = 20, how: Any = None, **options
    ):
        wrapper.net.register_forward_pre_hook(lambda *_: calls.append(1))
        with pytest.raises(InputError, match=match):
            wrapper.stream(prompt, count, speculate=PromptLookup() if how is None else how, **options)

    refused("there are 2 rows", wrap(), ids(2, 4))
    refused("cache_kv=False recomputes", wrap(), cache_kv=False)
    refused("comes to 37 tokens, beyond a window", wrap(window=36))
    refused("comes to 37 tokens, beyond a window", wrap(max_seq_len=30))
    refused("filter_logits_fn is a function", wrap(), filter_logits_fn=lambda logits: logits)
    refused("speculate= and compile=True cannot be combined", wrap(), compile=True)
    refused("speculate='lookup' must be PromptLookup", wrap(), how="lookup")
    refused(
        "keys of RopeEmbedding depend on the length",
        wrap({"kind": "rope", "scaling": dynamic(length_policy="recompute")}),
    )
    small = TransformerWrapper(num_tokens=7, max_seq_len=48, attn_layers=Decoder(dim=8, depth=1, heads=1))
    refused(f"the draft model has 7 tokens in its vocabulary, the model {NUM_TOKENS}", wrap(), how=DraftModel(small))
    refused("beyond a window of the draft model", wrap(), how=DraftModel(language_model(window=5)))
    refused("positions of the draft model end at 9", wrap(), how=DraftModel(language_model("absolute", max_seq_len=9)))
    refused("the draft model has cross-attention", wrap(), how=DraftModel(language_model(cross_attend=True)))
    recompute = language_model({"kind": "rope", "scaling": dynamic(length_policy="recompute")})
    refused("keys of the draft model depend on the length", wrap(), how=DraftModel(recompute))
    assert not calls
    wrapper = wrap()
    filled = wrapper.prefill(ids(3))
    refused("a draft model has not read", wrapper, how=DraftModel(language_model()), cache=filled)
    with pytest.raises(InputError, match=r"got AutoregressiveWrapper. Of an AutoregressiveWrapper pass .net"):
        DraftModel(wrapper)
    for wrong in ({"tokens": 0}, {"ngram": 1.5}):
        with pytest.raises(ArgumentError, match="must be an integer of at least 1"):
            PromptLookup(**wrong)


def test_nan_in_the_model_or_the_draft_is_an_error() -> None:
    wrapper, draft = wrap(), language_model(seed=3)
    with torch.no_grad():
        next(draft.to_logits.parameters()).fill_(float("nan"))
    with pytest.raises(SamplingError, match="contain NaN"):
        wrapper.generate(REPEATED, 5, speculate=DraftModel(draft))
    cache = wrapper.prefill(REPEATED)
    before = cache.state
    calls = []

    def break_the_second(_, args, out):
        calls.append(1)
        return out * float("nan") if len(calls) == 2 else out

    wrapper.net.register_forward_hook(break_the_second)
    with pytest.raises(SamplingError, match="row 0 at step"):
        wrapper.generate(ids(2), 6, speculate=PromptLookup(), cache=cache)
    assert cache.state is before
