"""A prompt read in chunks gives what it gives at once, in memory that the chunk bounds."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.generation_models import (
    GREEDY,
    NUM_TOKENS,
    SCHEMES,
    Script,
    equal,
    full_pass,
    ids,
    language_model,
    ragged,
)
from tests.support.length_scalings import KINDS, TRAINED
from x_positional import AutoregressiveWrapper, XTransformer
from x_positional.errors import InputError


def wrap(scheme="rope", **flags) -> AutoregressiveWrapper:
    return AutoregressiveWrapper(language_model(scheme, **flags))


def forced(wrapper: AutoregressiveWrapper, prompts, script: Tensor, **options) -> Tensor:
    """[B N V] the logits that predict a given continuation [B N]."""
    seen = Script(script)
    wrapper.generate(prompts, script.shape[1], filter_logits_fn=seen, **options)
    return seen.logits


def expected(wrapper: AutoregressiveWrapper, *batches) -> Tensor:
    return torch.stack([full_pass(wrapper.net, *row) for row in zip(*batches, strict=True)])


@pytest.mark.parametrize("prompts", [ids(2, 11), ragged(2, 11, 5)], ids=["equal", "ragged"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_chunks_of_every_scheme_give_the_logits_of_one_pass(scheme: str, prompts) -> None:
    wrapper, script = wrap(scheme), ids(len(prompts), 3, seed=3)
    want = expected(wrapper, prompts, script)
    for size in (1, 4):
        equal(forced(wrapper, prompts, script, prefill_chunk_size=size), want)


@pytest.mark.parametrize("size", [1, 2, 5, 10, 11, 99])
def test_every_chunk_size_gives_the_same_tokens(size: int) -> None:
    wrapper, prompts = wrap("alibi", window=6), ragged(11, 10, 1, 4)
    for options in (GREEDY, {"seed": 3, "repetition_penalty": 1.3}):
        want = wrapper.generate(prompts, 6, **options)
        assert torch.equal(wrapper.generate(prompts, 6, prefill_chunk_size=size, **options), want)
        stream = wrapper.stream(prompts, 6, prefill_chunk_size=size, **options)
        assert torch.equal(torch.stack(list(stream), dim=1), want)


@pytest.mark.parametrize("scheme", ["rope", "t5", "cope", "forgetting"])
def test_chunks_past_max_seq_len_and_in_a_sliding_cache(scheme: str) -> None:
    wrapper, prompts, script = wrap(scheme, max_seq_len=8), ragged(3, 17, 8), ids(3, 5, seed=3)
    for restrict in (True, False):
        at_once, chunks = (
            forced(wrapper, prompts, script, restrict_to_max_seq_len=restrict, prefill_chunk_size=size)
            for size in (None, 3)
        )
        equal(chunks, at_once)
    keep_first, bound = (2, 1e-6) if scheme == "rope" else (0, 1e-9)  # scores of kept tokens come from float32 tables
    caches = [wrapper.net.new_cache(3, window=5, keep_first=keep_first) for _ in range(2)]
    equal(
        forced(wrapper, prompts, script, cache=caches[0], prefill_chunk_size=3),
        forced(wrapper, prompts, script, cache=caches[1]),
        bound,
    )


def test_each_turn_of_a_conversation_may_be_read_in_chunks() -> None:
    wrapper = wrap("rope")
    prompts, first, turns, second = ragged(7, 3), ids(2, 4, seed=5), ragged(2, 9, seed=7), ids(2, 5, seed=9)
    cache = wrapper.net.new_cache(2)
    forced(wrapper, prompts, first, cache=cache, prefill_chunk_size=2)
    got = forced(wrapper, turns, second, cache=cache, prefill_chunk_size=4)
    equal(got, expected(wrapper, prompts, first, turns, second))
    equal(
        forced(wrapper, None, first, cache=cache, prefill_chunk_size=4),
        expected(wrapper, prompts, first, turns, second, first),
    )


def test_given_positions_are_split_with_the_tokens() -> None:
    wrapper, prompts, script = wrap("rope"), ragged(9, 4), ids(2, 4, seed=3)
    positions = torch.arange(9).expand(2, -1) * torch.tensor([[1], [3]])
    options = {"positions": positions}
    equal(
        forced(wrapper, prompts, script, prefill_chunk_size=2, **options), forced(wrapper, prompts, script, **options)
    )


def test_an_encoder_decoder_reads_its_target_prompt_in_chunks() -> None:
    sizes = {"num_tokens": NUM_TOKENS, "max_seq_len": 20, "depth": 2, "heads": 1, "attn_dim_head": 8}
    sides = {f"{side}_{name}": value for side in ("enc", "dec") for name, value in sizes.items()}
    torch.manual_seed(0)
    model = XTransformer(dim=8, enc_rotary_pos_emb=True, dec_rotary_pos_emb=True, **sides).double().eval()
    source, mask = ids(2, 6), torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    start = ragged(9, 3)
    want = model.generate(source, start, 8, mask, **GREEDY)
    assert torch.equal(model.generate(source, start, 8, mask, prefill_chunk_size=2, **GREEDY), want)


@pytest.mark.parametrize("kind", KINDS)
def test_frequencies_of_the_length_are_exact_within_it_and_refused_past_it(kind: str) -> None:
    wrapper = wrap({"kind": "rope", "scaling": KINDS[kind](length_policy="recompute")})
    inside = ids(2, 5), ids(2, TRAINED - 5, seed=3)
    equal(forced(wrapper, *inside, prefill_chunk_size=2), expected(wrapper, *inside))
    for prompt, count, positions in (
        (ids(2, TRAINED), 1, None),
        (ids(2, 5), TRAINED - 4, None),
        (ids(2, 3), 2, torch.tensor([[0, 4, 8]])),
    ):
        with pytest.raises(InputError, match=r"prefill_chunk_size=2 .* passes the trained length within this call"):
            wrapper.generate(prompt, count, positions=positions, prefill_chunk_size=2)
    wrapper.generate(ids(2, TRAINED), 1, prefill_chunk_size=TRAINED)  # a single pass
    fixed, prompts, script = wrap({"kind": "rope", "scaling": KINDS[kind]()}), ragged(11, 6), ids(2, 4, seed=3)
    equal(forced(fixed, prompts, script, prefill_chunk_size=3), forced(fixed, prompts, script))


def test_a_stream_that_fails_between_two_chunks_leaves_the_cache_as_it_was() -> None:
    for window in (None, 4):
        wrapper, prompts, turn, script = wrap(), ids(2, 7), ids(2, 9, seed=4), ids(2, 3, seed=5)
        caches = [wrapper.net.new_cache(2, window=window) for _ in range(2)]
        for cache in caches:
            wrapper.generate(prompts, 2, seed=1, cache=cache)
        calls = []

        def fail_at_the_fourth(*_, calls=calls) -> None:
            calls.append(1)
            if len(calls) == 4:
                raise RuntimeError("out of memory")

        handle = wrapper.net.register_forward_pre_hook(fail_at_the_fourth)
        with pytest.raises(RuntimeError, match="out of memory"):
            next(wrapper.stream(turn, 3, cache=caches[0], prefill_chunk_size=1))
        handle.remove()
        equal(
            forced(wrapper, turn, script, cache=caches[0], prefill_chunk_size=1),
            forced(wrapper, turn, script, cache=caches[1]),
        )


@pytest.mark.parametrize("size", [0, -3, 1.5, True, "4"])
def test_a_size_that_is_no_count_is_refused(size) -> None:
    with pytest.raises(InputError, match=r"prefill_chunk_size=.* must be an integer of at least 1, or None"):
        wrap().generate(ids(1, 3), 1, prefill_chunk_size=size)
    with pytest.raises(InputError, match="prefill_chunk_size needs cache_kv=True"):
        wrap().generate(ids(1, 3), 1, prefill_chunk_size=2, cache_kv=False)


class Largest(TorchDispatchMode):
    """The largest result of any operation and of matrix products, without tensors that share memory with the cache."""

    def __init__(self):
        super().__init__()
        self.any, self.product, self.logit_rows = 0, 0, 0
        self.cached: dict[int, torch.UntypedStorage] = {}
        """By address; held, as the address of a freed one is reused by other results."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for found in out if isinstance(out, tuple | list) else (out,):
            if not isinstance(found, Tensor):
                continue
            name = func._schema.name.split("::")[1]
            if name in ("new_zeros", "zeros"):  # what a cache is made of
                self.cached[found.untyped_storage().data_ptr()] = found.untyped_storage()
            if found.untyped_storage().data_ptr() in self.cached:
                continue
            self.any = max(self.any, found.numel())
            if name in ("mm", "addmm", "bmm") and found.dtype == torch.float64:
                self.product = max(self.product, found.numel())
                self.logit_rows = max(self.logit_rows, found.shape[0] if found.shape[-1] == NUM_TOKENS else 0)
        return out


def largest(wrapper: AutoregressiveWrapper, length: int, size: int | None) -> Largest:
    with Largest() as seen:
        wrapper.generate(ids(2, length), 1, prefill_chunk_size=size, **GREEDY)
    return seen


@pytest.mark.parametrize("scheme", ["rope", "alibi", "cope", "forgetting"])
def test_memory_is_bounded_by_the_chunk(scheme: str) -> None:
    wrapper = wrap(scheme, max_seq_len=1024)
    once, chunks, longer = (largest(wrapper, *case) for case in ((256, None), (256, 8), (512, 8)))
    hidden = 4 * wrapper.net.config.layers.dim
    assert once.product >= 2 * 256 * hidden
    assert chunks.any < once.any / 4
    assert longer.any <= 2.1 * chunks.any  # the scores of a chunk [B H 8 T], or the ids: linear in the prompt
    assert {seen.logit_rows for seen in (once, chunks, longer)} == {2}  # one row of logits per prompt
