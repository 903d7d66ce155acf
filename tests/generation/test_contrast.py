"""Contrastive decoding against its formula, written out with one full pass per token."""

import inspect
import math

import pytest
import torch
from torch import Tensor

from tests.support.generation_models import GREEDY, NUM_TOKENS, ids, language_model, ragged
from tests.support.length_scalings import dynamic
from x_positional import AutoregressiveWrapper, ContrastWith, Decoder, Encoder, Rope, TransformerWrapper
from x_positional.errors import ArgumentError, InputError
from x_positional.generation.options import GenerateOptions

STEPS = 9


def amateur(position="alibi", **flags) -> TransformerWrapper:
    return language_model(position, seed=7, **{"depth": 1, "dim": 18, **flags})


def formula(model: Tensor, weak: Tensor, alpha: float, beta: float | None, temperature: float) -> Tensor:
    """Probabilities of one row, token by token: Li et al. 2022, eq. 3 and 4; O'Brien and Lewis 2023, algorithm 2."""
    p, q = model.softmax(-1), (weak / temperature).softmax(-1)
    weights = []
    for token in range(NUM_TOKENS):
        if p[token] < alpha * p.max():
            weights.append(0.0)
        elif beta is None:
            weights.append(float(p[token] / q[token]))
        else:
            weights.append(float(p[token] ** (1 + beta) / q[token] ** beta))
    return torch.tensor(weights, dtype=p.dtype) / sum(weights)


@pytest.mark.parametrize(
    ("alpha", "beta", "temperature"), [(0.1, 0.5, 1.0), (0.3, None, 1.0), (0, 2.0, 0.5), (0.05, 0, 1)]
)
def test_probabilities_are_those_of_the_formula(alpha: float, beta: float | None, temperature: float) -> None:
    model, weak = torch.randn(2, 4, NUM_TOKENS, dtype=torch.float64).mul(2)
    got = ContrastWith(amateur(), alpha=alpha, beta=beta, temperature=temperature).logits(model, weak).softmax(-1)
    want = torch.stack([formula(*rows, alpha, beta, temperature) for rows in zip(model, weak, strict=True)])
    torch.testing.assert_close(got, want, atol=1e-12, rtol=1e-9)


def test_logits_are_those_of_x_transformers() -> None:
    from x_transformers.autoregressive_wrapper import contrastive_decode_fn

    model, weak = torch.randn(2, 4, NUM_TOKENS).mul(2)
    got, want = (
        ContrastWith(amateur(), alpha=0.2, beta=0.7).logits(model, weak),
        contrastive_decode_fn(model, weak, 0.2, 0.7),
    )
    torch.testing.assert_close(got.softmax(-1), want.softmax(-1))


@torch.no_grad()
def alone(net: TransformerWrapper, how: ContrastWith, prompt: Tensor, steps: int, **inputs: int) -> Tensor:
    """The greedy continuation [N] of one prompt [T], from full passes without a cache."""
    row = prompt[None]
    for _ in range(steps):
        visible = row[:, -how.amateur.max_seq_len :] if how.amateur.max_seq_len < row.shape[1] else row
        logits = how.logits(net(row, **inputs)[:, -1], how.amateur(visible, **inputs)[:, -1])
        row = torch.cat([row, logits.argmax(-1, keepdim=True)], dim=1)
    return row[0, len(prompt) :]


@pytest.mark.parametrize("cache_kv", [True, False])
@pytest.mark.parametrize(
    "positions",
    [
        ("rope", "alibi"),
        ("absolute", "rope"),
        ("alibi", Rope(scaling=dynamic(length_policy="recompute"))),
        ("forgetting", "t5"),
    ],
)
def test_ragged_prompts_equal_each_alone(positions: tuple[str, str | Rope], cache_kv: bool) -> None:
    net, how = language_model(positions[0]), ContrastWith(amateur(positions[1]), beta=None)
    prompts = ragged(3, 7, 5)
    got = AutoregressiveWrapper(net).generate(prompts, STEPS, contrast=how, cache_kv=cache_kv, **GREEDY)
    assert torch.equal(got, torch.stack([alone(net, how, prompt, STEPS) for prompt in prompts]))
    plain = AutoregressiveWrapper(net).generate(prompts, STEPS, **GREEDY)
    assert not torch.equal(got, plain)


@pytest.mark.parametrize("cache_kv", [True, False])
def test_both_models_see_the_prompt_bidirectionally(cache_kv: bool) -> None:
    net, how = language_model("rope"), ContrastWith(amateur("alibi"), beta=None)
    wrapper, prompts = AutoregressiveWrapper(net), ragged(3, 7, 5)
    options = {"contrast": how, "cache_kv": cache_kv, **GREEDY}
    got = wrapper.generate(prompts, STEPS, prefix_len="prompt", **options)
    want = [alone(net, how, prompt, STEPS, prefix_len=len(prompt)) for prompt in prompts]
    assert torch.equal(got, torch.stack(want))
    assert not torch.equal(got, wrapper.generate(prompts, STEPS, **options))


def test_functions_of_the_caller_get_contrasted_logits() -> None:
    net, how, seen = language_model(), ContrastWith(amateur(), alpha=0), []
    wrapper, prompt = AutoregressiveWrapper(net), ids(1, 6)

    def processor(tokens: Tensor, logits: Tensor) -> Tensor:
        seen.append(logits)
        return logits

    stop = {"logits_processors": processor, "stopping_criteria": lambda tokens: tokens.shape[1] == 3}
    got = wrapper.generate(prompt, STEPS, contrast=how, **stop, **GREEDY)
    assert got.shape == (1, 3)
    with torch.no_grad():
        torch.testing.assert_close(seen[0], how.logits(net(prompt)[:, -1], how.amateur(prompt)[:, -1]))


@pytest.mark.parametrize(
    "options", [{"num_beams": 2}, {"num_return_sequences": 2}, {"return_log_probs": True}], ids=str
)
def test_what_would_need_the_cache_of_the_amateur_is_refused(options: dict) -> None:
    with pytest.raises(InputError, match=r"contrast= and .* cannot be combined"):
        AutoregressiveWrapper(language_model()).generate(ids(1, 4), 3, contrast=ContrastWith(amateur()), **options)


@pytest.mark.parametrize("cache_kv", [True, False])
def test_the_amateur_attends_to_its_own_length(cache_kv: bool) -> None:
    net = language_model("alibi")
    how = ContrastWith(amateur("alibi", max_seq_len=6, depth=1), beta=None)
    wrapper, prompt = AutoregressiveWrapper(net), ids(4)
    got = wrapper.generate(prompt, STEPS, contrast=how, cache_kv=cache_kv, **GREEDY)
    assert torch.equal(got, alone(net, how, prompt, STEPS))


def test_streams_chunks_modes_and_dtypes() -> None:
    net, how = language_model(), ContrastWith(amateur())
    wrapper, prompts = AutoregressiveWrapper(net), ids(2, 6)
    want = wrapper.generate(prompts, STEPS, contrast=how, seed=4, eos_token=3)
    assert torch.equal(torch.stack(list(wrapper.stream(prompts, STEPS, contrast=how, seed=4, eos_token=3)), 1), want)
    assert torch.equal(wrapper.generate(prompts, STEPS, contrast=how, seed=4, eos_token=3, prefill_chunk_size=2), want)
    net.train()
    how.amateur.train()
    assert torch.equal(wrapper.generate(prompts, STEPS, contrast=how, seed=4, eos_token=3), want)
    assert net.training
    assert how.amateur.training
    mixed = ContrastWith(amateur().float(), alpha=1.0)
    plain = wrapper.generate(prompts, STEPS, **GREEDY)
    assert torch.equal(wrapper.generate(prompts, STEPS, contrast=mixed, seed=0), plain)
    same = ContrastWith(amateur(), beta=0, alpha=0)
    assert torch.equal(
        wrapper.generate(prompts, STEPS, contrast=same, seed=1), wrapper.generate(prompts, STEPS, seed=1)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.5}, "alpha=1.5 must be a finite number from 0 to 1"),
        ({"beta": -1}, "beta=-1 must be a finite number of at least 0, or None"),
        ({"temperature": 0}, "temperature=0 must be a finite number above 0"),
    ],
)
def test_numbers_out_of_range(options: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        ContrastWith(amateur(), **options)


def test_amateurs_that_do_not_fit() -> None:
    net, prompts = language_model(), ids(1, 4)
    with pytest.raises(
        InputError, match=r"of a Decoder; got AutoregressiveWrapper. Of an AutoregressiveWrapper pass .net"
    ):
        ContrastWith(AutoregressiveWrapper(net))
    with pytest.raises(InputError, match="of a Decoder; got TransformerWrapper"):
        ContrastWith(TransformerWrapper(num_tokens=5, max_seq_len=8, attn_layers=Encoder(16, 1, heads=2)))
    layers = Decoder(16, 1, heads=2, cross_attend=True, rotary_pos_emb=True)
    with pytest.raises(InputError, match="the amateur has cross-attention"):
        ContrastWith(TransformerWrapper(num_tokens=NUM_TOKENS, max_seq_len=8, attn_layers=layers))
    other = TransformerWrapper(num_tokens=7, max_seq_len=8, attn_layers=Decoder(16, 1, heads=2, rotary_pos_emb=True))
    wrapper = AutoregressiveWrapper(net)
    with pytest.raises(InputError, match="num_tokens=7, the model 29"):
        wrapper.generate(prompts, 3, contrast=ContrastWith(other))
    with pytest.raises(InputError) as refusal:
        wrapper.generate(prompts, 3, contrast=3, return_cache=True, compile=True, prepend_embeds=prompts)
    assert [line.split(" ")[0] for line in str(refusal.value).splitlines()] == ["contrast=3", *["contrast="] * 3]


def test_every_option_is_either_part_of_these_tests_or_refused() -> None:
    """A new option of decoding is judged here: whatever moves the rows of a cache has to move those of the amateur's."""
    works = {"eos_token", "temperature", "prompt_lens", "filter_logits_fn", "restrict_to_max_seq_len", "filter_kwargs"}
    works |= {"cache_kv", "repetition_penalty", "generator", "seed", "context", "context_mask", "positions"}
    works |= {"prefill_chunk_size", "contrast", "prompts", "seq_len", "prefix_len", "logits_processors"}
    works |= {"stopping_criteria"}
    refused = {"cache", "return_cache", "speculate", "compile", "prepend_embeds"}
    refused |= {"num_beams", "length_penalty", "early_stopping", "num_return_sequences", "return_log_probs"}
    assert set(inspect.signature(GenerateOptions).parameters) == works | refused


def test_alpha_is_a_share_of_the_largest_probability() -> None:
    logits = torch.tensor([[0.0, math.log(0.5), math.log(0.25)]])
    kept = ContrastWith(amateur(), alpha=0.4).logits(logits, torch.zeros(1, 3)).isfinite()
    assert kept.tolist() == [[True, True, False]]
