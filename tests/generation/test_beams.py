"""Beam search: equal to exhaustive search, to a search by hand without a cache, and to transformers', for every kind of cache."""

import itertools
import math
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor

from tests.support.generation_models import equal, ids, language_model, perturbed, ragged
from tests.support.length_scalings import TRAINED, dynamic
from x_positional import AutoregressiveWrapper, Decoder, TransformerWrapper, XTransformer, from_pretrained
from x_positional.attention.cache import KVCache
from x_positional.errors import ArgumentError, FlagError, InputError, SamplingError
from x_positional.testing.checks_generation import Found, Predict, as_rows, search, whole_pass

EOS = [3, 7, 11, 12, 19]


def wrap(position="rope", **flags) -> AutoregressiveWrapper:
    return AutoregressiveWrapper(language_model(position, **flags))


def cached_pass(net: TransformerWrapper, prompt: Tensor, context: Tensor | None = None, **cache) -> Predict:
    """As `whole_pass`, with the whole sequence read into a new cache at once."""

    def predict(sequences: list[list[int]]) -> Tensor:
        rows = len(sequences)
        tokens = torch.cat([prompt.expand(rows, -1), torch.tensor(sequences, dtype=torch.long)], 1)
        given = {} if context is None else {"context": context.expand(rows, -1, -1)}
        return net(tokens, cache=net.new_cache(rows, **cache), **given)[:, -1].log_softmax(-1)

    return predict


@torch.no_grad()
def check(wrapper, prompts: list[Tensor], predict, steps: int = 5, width: int = 3, bound: float = 1e-9, **options):
    """Compare a call with the search by hand; returns the cache where that is asked for."""
    rules = {name: options[name] for name in ("length_penalty", "early_stopping") if name in options}
    eos = options.get("eos_token") or ()
    found = [search(predict(wrapper.net, prompt), steps, width, eos=set(eos), **rules)[:width] for prompt in prompts]
    want = as_rows([sequence for each in found for sequence in each], torch.device("cpu"), torch.float64)
    asked = {"num_beams": width, "num_return_sequences": width, "return_log_probs": True, **options}
    tokens, log_probs, *cache = wrapper.generate(prompts, steps, **asked)
    assert tokens.tolist() == want[0].tolist()
    equal(log_probs, want[1], bound)
    return cache[0] if cache else found


def toy(num_tokens: int = 3) -> TransformerWrapper:
    torch.manual_seed(3)
    layers = Decoder(dim=16, depth=1, heads=2, attn_dim_head=8, position="rope")
    net = TransformerWrapper(num_tokens=num_tokens, max_seq_len=16, attn_layers=layers).double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.5)
    return net


@torch.no_grad()
def every_sequence(net: TransformerWrapper, prompt: Tensor, steps: int, eos: int | None, penalty: float) -> list[Found]:
    """All sequences of a toy vocabulary, best first."""
    predict, found = whole_pass(net, prompt), []
    for length in range(1, steps + 1):
        for tokens in itertools.product(range(net.num_tokens), repeat=length):
            if eos in tokens[:-1] or (length < steps and tokens[-1] != eos):
                continue
            each = [float(predict([list(tokens[:i])])[0, token]) for i, token in enumerate(tokens)]
            found.append(Found(sum(each) / length**penalty, list(tokens), each))
    return sorted(found, key=lambda f: f.score, reverse=True)


@pytest.mark.parametrize(("eos", "penalty"), [(None, 1.0), (2, 0.0), (2, 1.0), (2, 2.5), (2, -1.0)])
def test_as_many_beams_as_sequences_are_an_exhaustive_search(eos: int | None, penalty: float) -> None:
    net, prompt, steps = toy(), torch.tensor([0, 1, 1]), 3
    want = every_sequence(net, prompt, steps, eos, penalty)
    tokens, log_probs = AutoregressiveWrapper(net).generate(
        prompt,
        steps,
        eos_token=eos,
        num_beams=27,
        num_return_sequences=len(want),
        length_penalty=penalty,
        early_stopping="never",
        return_log_probs=True,
    )
    rows, scores = as_rows(want, torch.device("cpu"), torch.float64)
    assert tokens.tolist() == rows.tolist()
    equal(log_probs, scores)
    lengths = torch.tensor([len(f.tokens) for f in want])
    equal(log_probs.sum(1) / lengths.double() ** penalty, torch.tensor([f.score for f in want], dtype=torch.float64))


def test_fewer_sequences_than_are_returned_are_an_error() -> None:
    wrapper = AutoregressiveWrapper(toy())
    with pytest.raises(SamplingError, match="beam search found 9 different sequences for prompt 0, and num_return_seq"):
        wrapper.generate(torch.tensor([0, 1]), 2, num_beams=12, num_return_sequences=10)
    assert wrapper.generate(torch.tensor([0, 1]), 2, num_beams=12, num_return_sequences=9).unique(dim=0).shape == (9, 2)


LLAMA = {
    "vocab_size": 31,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
    "initializer_range": 0.4,
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[AutoregressiveWrapper, transformers.LlamaForCausalLM]:
    folder: Path = tmp_path_factory.mktemp("llama")
    torch.manual_seed(4)
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)).double().eval()
    theirs.save_pretrained(folder)
    return AutoregressiveWrapper(from_pretrained(folder).double().eval(), pad_value=1), theirs


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("eos", "penalty", "early", "width"),
    [
        (None, 1.0, False, 4),
        ([5], 1.0, False, 3),
        (EOS, 1.0, False, 4),
        (EOS, 1.0, True, 4),
        (EOS, 0.0, "never", 4),
        (EOS, 2.0, "never", 5),
        (EOS, -1.5, False, 3),
        (EOS, 3.0, True, 2),
    ],
)
def test_transformers_finds_the_same_sequences(pair, eos, penalty: float, early, width: int) -> None:
    ours, theirs = pair
    prompts = ragged(3, 6, 2, 5)
    options = {"length_penalty": penalty, "early_stopping": early, "num_beams": width, "num_return_sequences": 2}
    got, log_probs = ours.generate(prompts, 9, eos, return_log_probs=True, **options)
    ends = [] if eos is None else eos
    for i, prompt in enumerate(prompts):
        settings = transformers.GenerationConfig(
            max_new_tokens=9, do_sample=False, eos_token_id=eos, pad_token_id=1, **options
        )
        want = theirs.generate(
            prompt[None],
            settings,
            return_dict_in_generate=True,
            output_scores=True,
            attention_mask=torch.ones(1, len(prompt)),
        )
        rows, new = got[2 * i : 2 * i + 2], want.sequences[:, len(prompt) :]
        assert rows[:, : new.shape[1]].tolist() == new.tolist()
        assert (rows[:, new.shape[1] :] == 1).all()
        lengths = [next((j + 1 for j, t in enumerate(row.tolist()) if t in ends), 9) for row in rows]
        scores = log_probs[2 * i : 2 * i + 2].sum(1) / torch.tensor(lengths) ** penalty
        torch.testing.assert_close(scores.float(), want.sequences_scores, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scheme", ["alibi", "forgetting"])
@pytest.mark.parametrize("eos", [None, EOS])
def test_ragged_rows_of_a_kept_cache(scheme: str, eos) -> None:
    """Afterwards the cache holds each prompt and its sequences up to their ends."""
    wrapper, prompts = wrap(scheme), ragged(5, 2)
    cache = check(wrapper, prompts, whole_pass, width=2, eos_token=eos, return_cache=True)
    tokens = wrapper.generate(prompts, 5, eos, num_beams=2, num_return_sequences=2)
    assert cache.batch_size == 4
    rows = [[*prompt.tolist(), *until(row, eos or ())] for prompt, row in zip(copied(prompts, 2), tokens, strict=True)]
    assert cache.longest() == max(map(len, rows))
    for new in (None, torch.full((4, 1), 4)):  # two calls in a row continue it
        greedy = wrapper.generate(new, 2, temperature=0.0, cache=cache)
        rows = rows if new is None else [[*row, 4] for row in rows]
        alone = wrapper.generate(rows, 2, temperature=0.0).tolist()
        assert greedy.tolist() == alone
        rows = [row + more for row, more in zip(rows, alone, strict=True)]


def copied(prompts: list[Tensor], count: int) -> list[Tensor]:
    return [prompt for prompt in prompts for _ in range(count)]


def until(row: Tensor, eos) -> list[int]:
    """A row without its padding."""
    ends = [i for i, token in enumerate(row.tolist()) if token in eos]
    return row.tolist()[: ends[0] + 1] if ends else row.tolist()


@pytest.mark.parametrize(
    ("scheme", "kind"),
    [
        ("rope", {}),
        ("rope", {"window": 5}),
        ("rope", {"window": 4, "keep_first": 2}),
        ("rope", {"max_len": 14}),
        ("rope", {"dtype": torch.int8}),
        ("forgetting", {"window": 5}),
        ("forgetting", {"dtype": torch.int8}),
    ],
)
def test_every_kind_of_cache(scheme: str, kind: dict) -> None:
    wrapper, prompts = wrap(scheme), ragged(6, 2)
    cache = wrapper.net.new_cache(2, **kind)

    def predict(net: TransformerWrapper, prompt: Tensor) -> Predict:
        return cached_pass(net, prompt, **kind)

    bound = 1e-6 if "keep_first" in kind else 1e-9  # its corrections are rounded to float32, and differ with the chunks
    check(wrapper, prompts, predict, 6, 2, bound, cache=cache, restrict_to_max_seq_len="window" in kind)
    assert cache.batch_size == 4
    if "max_len" not in kind:
        tokens = wrapper.generate(
            prompts, 6, num_beams=2, num_return_sequences=2, cache=wrapper.net.new_cache(2, **kind)
        )
        again = wrapper.net.new_cache(4, **kind)
        rows = [torch.cat([prompt, row]) for prompt, row in zip(copied(prompts, 2), tokens, strict=True)]
        want = wrapper.generate(rows, 4, temperature=0.0, cache=again)
        assert torch.equal(wrapper.generate(None, 4, temperature=0.0, cache=cache), want)


@pytest.mark.parametrize("options", [{}, {"cache_kv": False}, {"return_cache": True}])
def test_embeddings_before_the_prompts(options: dict) -> None:
    """Embeddings of tokens are these tokens."""
    wrapper, prompts, before = wrap(), ragged(3, 5), ids(2, 2, seed=5)
    embeds = wrapper.net.token_emb(before).detach()
    asked = {"num_beams": 3, "num_return_sequences": 2, "return_log_probs": True, **options}
    tokens, log_probs, *cache = wrapper.generate(prompts, 4, prepend_embeds=embeds, **asked)
    whole = [torch.cat([first, prompt]) for first, prompt in zip(before, prompts, strict=True)]
    want = wrapper.generate(whole, 4, **asked)
    assert torch.equal(tokens, want[0])
    equal(log_probs, want[1])
    samples = wrapper.generate(prompts, 4, seed=1, num_return_sequences=2, prepend_embeds=embeds, **options)
    again = wrapper.generate(whole, 4, seed=1, num_return_sequences=2, **options)
    if not cache:
        assert torch.equal(samples, again)
        return
    assert torch.equal(samples[0], again[0])
    assert torch.equal(*(wrapper.generate(None, 3, temperature=0.0, cache=c) for c in (cache[0], want[2])))


def test_beyond_the_trained_length() -> None:
    wrapper, prompts = wrap(max_seq_len=6), ragged(5, 2)

    def predict(net: TransformerWrapper, prompt: Tensor) -> Predict:
        return cached_pass(net, prompt, window=6)

    check(wrapper, prompts, predict, steps=6)
    check(wrapper, prompts, whole_pass, steps=6, restrict_to_max_seq_len=False)


@pytest.mark.parametrize(
    "options", [{"cache_kv": False}, {"prefill_chunk_size": 2}, {"eos_token": EOS, "cache_kv": False}]
)
def test_without_a_cache_and_in_chunks(options: dict) -> None:
    check(wrap(), ragged(6, 2), whole_pass, **options)


def test_keys_that_change_with_the_length_are_recomputed() -> None:
    wrapper = wrap({"kind": "rope", "scaling": dynamic(length_policy="recompute")})
    lengths = [TRAINED - 2, TRAINED - 5]
    check(wrapper, ragged(*lengths), whole_pass)
    check(wrapper, ragged(*lengths), whole_pass, eos_token=EOS)


def test_cross_attention() -> None:
    wrapper, prompts = wrap(cross_attend=True), ragged(3, 2)
    context = torch.randn(2, 7, 26, generator=torch.Generator().manual_seed(1)).double()
    mask = torch.arange(7) < torch.tensor([[7], [4]])
    rows = iter([context[:1], context[1:, :4]])

    def predict(net: TransformerWrapper, prompt: Tensor) -> Predict:
        return cached_pass(net, prompt, context=next(rows))

    found = check(wrapper, prompts, predict, context=context, context_mask=mask)
    for options in ({"cache_kv": False}, {"return_cache": True}):
        tokens = wrapper.generate(prompts, 5, num_beams=3, context=context, context_mask=mask, **options)
        tokens = tokens[0] if isinstance(tokens, tuple) else tokens
        assert tokens.tolist() == [each[0].tokens for each in found]


def test_an_encoder_decoder() -> None:
    sizes = {"num_tokens": 29, "max_seq_len": 16, "depth": 1, "heads": 2, "attn_dim_head": 8, "rotary_pos_emb": True}
    sides = {f"{side}_{name}": value for side in ("enc", "dec") for name, value in sizes.items()}
    model, src = perturbed(XTransformer(dim=16, **sides)), ids(2, 5)
    options = {"num_beams": 3, "num_return_sequences": 2, "return_log_probs": True, "return_cache": True}
    tokens, log_probs, cache = model.generate(src, ids(2, 1), 4, **options)
    with torch.no_grad():
        found = model.decoder.generate(ids(2, 1), 4, context=model.encoder(src), **options)
    assert torch.equal(tokens, found[0])
    equal(log_probs, found[1])
    logits = model.logits(src.repeat_interleave(2, 0), torch.cat([ids(2, 1).repeat_interleave(2, 0), tokens], 1))
    equal(log_probs, logits[:, :-1].log_softmax(-1).gather(2, tokens[..., None])[..., 0])
    assert cache.batch_size == 4


def test_given_positions_continue() -> None:
    wrapper, prompt = wrap(), ids(2, 4)
    positions = torch.tensor([[0, 2, 5, 9], [1, 2, 3, 4]])
    tokens, log_probs = wrapper.generate(prompt, 5, num_beams=3, positions=positions, return_log_probs=True)
    for i in range(2):
        places = torch.cat([positions[i], positions[i, -1] + 1 + torch.arange(5)])[None]
        logits = wrapper.net(torch.cat([prompt[i], tokens[i]])[None], positions=places)[0, 3:-1]
        equal(log_probs[i], logits.log_softmax(-1).gather(1, tokens[i, :, None])[:, 0])
    shifted = wrapper.generate(prompt[1:], 5, num_beams=3)  # rope: a shift changes nothing
    assert torch.equal(shifted, tokens[1:])


def test_a_cache_continues_with_beams() -> None:
    wrapper, prompts = wrap(), ragged(3, 5)
    cache = wrapper.prefill(prompts)
    tokens = wrapper.generate(None, 5, num_beams=3, cache=cache.copy())
    assert torch.equal(tokens, wrapper.generate(prompts, 5, num_beams=3))
    more = wrapper.generate([[1, 2], [3]], 5, num_beams=3, cache=cache)
    whole = [torch.cat([p, torch.tensor(new)]) for p, new in zip(prompts, ([1, 2], [3]), strict=True)]
    assert torch.equal(more, wrapper.generate(whole, 5, num_beams=3))
    assert cache.batch_size == 2


def test_penalty_and_processors_change_what_is_searched_and_not_what_is_reported() -> None:
    wrapper, prompts, calls = wrap(), ragged(3, 5), []

    def ban_repeats(tokens: Tensor, logits: Tensor) -> Tensor:
        calls.append(tuple(tokens.shape))
        return logits.scatter(1, tokens, -math.inf)

    def predict(net: TransformerWrapper, prompt: Tensor) -> Predict:
        def steered(sequences: list[list[int]]) -> Tensor:
            new = torch.tensor(sequences, dtype=torch.long)
            tokens = torch.cat([prompt.expand(len(new), -1), new], 1)
            logits = net(tokens)[:, -1]
            seen = torch.zeros_like(logits, dtype=torch.bool).scatter(1, tokens, True)
            logits = torch.where(seen, torch.where(logits > 0, logits / 1.3, logits * 1.3), logits)
            return logits.scatter(1, new, -math.inf).log_softmax(-1)

        return steered

    with torch.no_grad():
        found = [search(predict(wrapper.net, prompt), 6, 4)[0] for prompt in prompts]
    tokens, log_probs = wrapper.generate(
        prompts, 6, num_beams=4, repetition_penalty=1.3, logits_processors=ban_repeats, return_log_probs=True
    )
    assert tokens.tolist() == [f.tokens for f in found]
    assert calls == [(8, n) for n in range(6)]
    for prompt, row, got in zip(prompts, tokens, log_probs, strict=True):
        plain = wrapper.net(torch.cat([prompt, row])[None])[0, len(prompt) - 1 : -1].log_softmax(-1)
        equal(got, plain.gather(1, row[:, None])[:, 0])


def test_stopping_criteria_finish_sequences() -> None:
    wrapper, prompt = wrap(), ids(5)

    def stops(tokens: list[int]) -> bool:
        return len(tokens) > 1 and sum(tokens[-2:]) % 3 == 0

    def criterion(tokens: Tensor) -> Tensor | bool:
        return tokens[:, -2:].sum(1) % 3 == 0 if tokens.shape[1] > 1 else False

    with torch.no_grad():
        found = search(whole_pass(wrapper.net, prompt), 6, 4, stops=stops)
    tokens = wrapper.generate(prompt, 6, num_beams=4, num_return_sequences=4, stopping_criteria=criterion)
    assert tokens.tolist() == as_rows(found, torch.device("cpu"), torch.float64)[0].tolist()
    assert len({len(f.tokens) for f in found}) > 1


def test_shapes_and_the_empty_call() -> None:
    wrapper, prompt = wrap(), ids(4)
    assert wrapper.generate(prompt, 3, num_beams=2).shape == (3,)
    assert wrapper.generate(prompt, 3, num_beams=2, num_return_sequences=2).shape == (2, 3)
    assert wrapper.generate(prompt[None], 3, num_beams=2).shape == (1, 3)
    tokens, log_probs, cache = wrapper.generate(
        ids(2, 4), 0, num_beams=3, num_return_sequences=2, return_log_probs=True, return_cache=True
    )
    assert tokens.shape == log_probs.shape == (4, 0)
    assert cache.batch_size == 4


def test_one_beam_is_the_greedy_search_and_temperature_and_default_filter_have_no_effect() -> None:
    wrapper, prompts = wrap(), ragged(3, 5)
    greedy = wrapper.generate(prompts, 5, temperature=0.0)
    assert torch.equal(wrapper.generate(prompts, 5, temperature=0.0, num_beams=1), greedy)
    want = wrapper.generate(prompts, 5, num_beams=3)
    assert torch.equal(wrapper.generate(prompts, 5, num_beams=3, temperature=0.0, filter_logits_fn=None), want)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 0}, "num_beams=0 must be an integer of at least 1"),
        ({"num_beams": 2.0}, "num_beams=2.0 must be an integer"),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences=3 exceeds num_beams=2"),
        ({"num_beams": 2, "temperature": 0.7}, "temperature=0.7 cannot be combined: beam search draws nothing"),
        ({"num_beams": 2, "filter_logits_fn": "top_p"}, "filters cannot be combined"),
        ({"num_beams": 2, "filter_kwargs": {"k": 3}}, "filters cannot be combined"),
        ({"num_beams": 2, "compile": True}, "compile=True cannot be combined: rows of the cache are reordered"),
        ({"num_beams": 2, "early_stopping": "always"}, "early_stopping='always' must be True, False or 'never'"),
        ({"num_beams": 2, "length_penalty": math.nan}, "length_penalty=nan must be a finite number"),
        (
            {"num_beams": 2, "length_penalty": 30, "seq_len": 20},
            "length_penalty=30 overflows for sequences of seq_len=20",
        ),
        ({"length_penalty": 2.0}, "length_penalty=2.0 has an effect with num_beams above 1 only"),
        ({"early_stopping": True}, "early_stopping=True has an effect with num_beams above 1 only"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        wrap().generate(ids(4), options.pop("seq_len", 4), **options)


def test_stream_refuses_beams() -> None:
    with pytest.raises(FlagError, match="The best sequence is known after the last token"):
        wrap().stream(ids(4), 4, num_beams=2)


def test_nan_is_an_error_and_a_failed_call_leaves_the_cache() -> None:
    wrapper, prompt = wrap(), ids(2, 4)
    cache = wrapper.net.new_cache(2, window=6)
    wrapper.generate(prompt, 4, temperature=0.0, cache=cache)
    copy = cache.copy()

    def broken(tokens: Tensor, logits: Tensor) -> Tensor:
        return logits * math.nan if tokens.shape[1] == 3 else logits

    with pytest.raises(SamplingError, match="the logits of row 0 at step 3 contain NaN"):
        wrapper.generate(ids(2, 3), 6, num_beams=3, cache=cache, logits_processors=broken)
    assert cache.batch_size == 2
    want = wrapper.generate(None, 5, temperature=0.0, cache=copy)
    assert torch.equal(wrapper.generate(None, 5, temperature=0.0, cache=cache), want)
    with pytest.raises(SamplingError, match="no token is left for row 0"):
        wrapper.generate(prompt, 4, num_beams=3, logits_processors=lambda _, logits: logits - math.inf)


def test_a_beam_without_a_next_token_is_an_error_and_a_dead_one_is_not() -> None:
    """Only one token is allowed at first, so two of three beams are dead and their logits do not matter."""
    wrapper = wrap()

    def only(tokens: Tensor, logits: Tensor) -> Tensor:
        kept = torch.full_like(logits, -math.inf)
        allowed = [[4], [2, 3], [1, 5, 6]][tokens.shape[1]]
        kept[:, allowed] = logits[:, allowed]
        return kept

    tokens = wrapper.generate(ids(4), 3, num_beams=3, num_return_sequences=3, logits_processors=only)
    assert tokens[:, 0].tolist() == [4, 4, 4]
    assert tokens.unique(dim=0).shape == (3, 3)


def test_only_new_tokens_are_copied_between_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beams share their prompt, whose keys stay where they are."""
    starts = []
    follow = KVCache.follow_rows

    def noted(self, rows: Tensor, start: int) -> None:
        starts.append(start)
        follow(self, rows, start)

    monkeypatch.setattr(KVCache, "follow_rows", noted)
    wrap().generate(ragged(6, 4), 8, num_beams=4)
    assert set(starts) == {4}


def test_the_vocabulary_may_be_smaller_than_the_candidates() -> None:
    net = toy(2)
    tokens = AutoregressiveWrapper(net).generate(torch.tensor([0, 1]), 4, num_beams=7, num_return_sequences=7)
    assert tokens.unique(dim=0).shape == (7, 4)


def test_bad_callables() -> None:
    with pytest.raises(InputError, match="logits_processors=3 must be a function or a list"):
        wrap().generate(ids(4), 4, num_beams=2, logits_processors=3)
    with pytest.raises(ArgumentError, match=r"stopping criterion .* returned None; it must return a bool"):
        wrap().generate(ids(4), 4, num_beams=2, stopping_criteria=lambda tokens: None)
