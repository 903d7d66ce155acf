"""XTransformer: the encoder runs once, padding is ignored, and the two sides take any schemes."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tests.support.generation_models import GREEDY, NUM_TOKENS, SCHEMES, Script, equal, ids, perturbed, ragged
from x_positional import PromptLookup, XTransformer
from x_positional.errors import FlagError, InputError

SIDE = {"num_tokens": NUM_TOKENS, "max_seq_len": 40, "depth": 2, "heads": 3, "attn_dim_head": 12}
STEPS = 8


def build(encoder: str = "rope", decoder: str = "alibi", tie: bool = False, **flags) -> XTransformer:
    torch.manual_seed(0)
    sides = {f"{side}_{name}": value for side in ("enc", "dec") for name, value in SIDE.items()}
    sides |= {"enc_position": encoder, "dec_position": decoder, **flags}
    model = XTransformer(dim=26, tie_token_emb=tie, **sides)
    perturbed(model)
    return model


def padded(rows: list[Tensor], left: bool = False) -> tuple[Tensor, Tensor]:
    side = "left" if left else "right"
    source = pad_sequence(rows, batch_first=True, padding_value=7, padding_side=side)
    return source, pad_sequence([torch.ones_like(r) for r in rows], batch_first=True, padding_side=side).bool()


@torch.no_grad()
def naive(model: XTransformer, source: Tensor, target: Tensor) -> Tensor:
    """[S], [T] -> logits [T V] from one pass without a cache."""
    return model.decoder.net(target[None], context=model.encoder(source[None]))[0]


@torch.no_grad()
def nats(model: XTransformer, source: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(naive(model, source, target)[:-1], target[1:], reduction="none")


@pytest.mark.parametrize("decoder", SCHEMES)
@pytest.mark.parametrize("cache_kv", [True, False])
def test_ragged_sources_and_prompts_equal_each_alone_in_one_pass(decoder: str, cache_kv: bool) -> None:
    model = build("rope", decoder)
    sources, prompts, forced = ragged(9, 3, 6), ragged(1, 4, 2, seed=9), Script(ids(3, STEPS, seed=5))
    source, mask = padded(sources)
    got = model.generate(source, prompts, STEPS, mask=mask, filter_logits_fn=forced, cache_kv=cache_kv)
    assert torch.equal(got, forced.tokens)
    for row, (alone, prompt, said) in enumerate(zip(sources, prompts, forced.tokens, strict=True)):
        logits = naive(model, alone, torch.cat([prompt, said]))
        equal(forced.logits[row], logits[len(prompt) - 1 : -1])


@pytest.mark.parametrize(
    "encoder",
    [
        s
        for s in SCHEMES
        if s not in ("none", "cope", "forgetting", "cable", "fire", "xpos", "temperature", "log_n", "ssmax")
    ],
)
@pytest.mark.parametrize("left", [False, True])
def test_a_padded_source_equals_each_row_alone(encoder: str, left: bool) -> None:
    model, sources = build(encoder), ragged(9, 3, 6)
    source, mask = padded(sources, left)
    start = ids(3, 2)
    expected = [
        model.generate(row[None], first[None], STEPS, **GREEDY) for row, first in zip(sources, start, strict=True)
    ]
    assert torch.equal(model.generate(source, start, STEPS, mask=mask, **GREEDY), torch.cat(expected))
    loss = model(source, ids(3, 6), mask=mask)
    alone = torch.cat([nats(model, row, target) for row, target in zip(sources, ids(3, 6), strict=True)])
    equal(loss, alone.mean())
    assert abs(model(source, ids(3, 6)).item() - loss.item()) > 1e-4


def test_loss_with_a_padded_target_by_hand() -> None:
    model, sources, targets = build(), ragged(5, 7), ragged(6, 3, seed=8)
    source, mask = padded(sources)
    expected = torch.cat([nats(model, *pair) for pair in zip(sources, targets, strict=True)]).mean()
    target, tgt_mask = padded(targets)
    equal(model(source, target, mask=mask, tgt_mask=tgt_mask), expected)
    ignored = build(ignore_index=-1)
    equal(ignored(source, torch.where(tgt_mask, target, -1), mask=mask), expected)


def test_every_parameter_learns_from_the_loss() -> None:
    model = build()
    model(ids(2, 7), ids(2, 5)).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def count_calls(model: XTransformer) -> dict[str, int]:
    """How often the source is encoded, and its keys and values computed."""
    calls = {"encoder": 0, "to_kv": 0, "decoder": 0}

    def count(name: str):
        def hook(module, args):
            calls[name] += 1

        return hook

    model.encoder.register_forward_pre_hook(count("encoder"))
    model.decoder.net.register_forward_pre_hook(count("decoder"))
    for block in model.decoder.net.attn_layers.blocks:
        block.cross.to_kv.register_forward_pre_hook(count("to_kv"))
    return calls


def test_the_source_is_read_once_and_its_keys_are_computed_once() -> None:
    model, layers = build(), SIDE["depth"]
    calls = count_calls(model)
    model.generate(ids(2, 7), ids(2, 1), STEPS)
    assert calls == {"encoder": 1, "to_kv": layers, "decoder": STEPS}
    model.generate(ids(2, 7), ids(2, 1), STEPS, cache_kv=False)
    assert calls == {"encoder": 2, "to_kv": layers + layers * STEPS, "decoder": 2 * STEPS}


def test_the_source_matters_and_a_row_reads_only_its_own() -> None:
    model, source, start = build(), ids(2, 7), ids(2, 3)
    changed = source.clone()
    changed[1] = (changed[1] + 1) % NUM_TOKENS
    logits = [model.decoder.net(start, context=model.encoder(s)) for s in (source, changed)]
    assert torch.equal(logits[0][0], logits[1][0])
    assert (logits[0][1] - logits[1][1]).abs().min() > 1e-6


def test_prompt_lens_eos_seed_and_one_row() -> None:
    model, source = build(), ids(2, 7)
    prompts = ragged(3, 1)
    lengths = torch.tensor([3, 1])
    padded_prompts = pad_sequence(prompts, batch_first=True, padding_value=11)
    free = model.generate(source, prompts, 20, **GREEDY)
    assert torch.equal(model.generate(source, padded_prompts, 20, prompt_lens=lengths, **GREEDY), free)
    assert torch.equal(model.generate(source[:1], prompts[0], 20, **GREEDY), free[0])
    draws = [model.generate(source, prompts, 20, seed=s, temperature=2.0) for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    eos = int(free[0, 4])
    ended = model.generate(source[:1], prompts[:1], 20, eos_token=eos, **GREEDY)[0]
    assert ended.tolist() == free[0, : free[0].tolist().index(eos) + 1].tolist()


def test_tied_embeddings_are_one_tensor() -> None:
    model = build(tie=True)
    assert model.decoder.net.token_emb.weight is model.encoder.token_emb.weight
    untied = build(tie=False)
    assert untied.decoder.net.token_emb.weight is not untied.encoder.token_emb.weight
    assert sum(p.numel() for p in untied.parameters()) - sum(p.numel() for p in model.parameters()) == NUM_TOKENS * 26
    model(ids(2, 7), ids(2, 5)).backward()
    alone = build(tie=True)
    alone.decoder(ids(2, 5), context=alone.encoder(ids(2, 7)).detach()).backward()
    assert not torch.allclose(model.encoder.token_emb.weight.grad, alone.encoder.token_emb.weight.grad)
    with pytest.raises(FlagError, match=r"tie_token_emb=True shares one table.*\[13, 26\].*\[29, 26\]"):
        build(tie=True, dec_num_tokens=13)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"depth": 3}, "depth is not a flag of XTransformer; use enc_depth, dec_depth"),
        ({"enc_dpeth": 3}, "enc_dpeth is not a flag; did you mean enc_depth"),
        ({"dec_rotray_pos_emb": True}, "did you mean dec_rotary_pos_emb"),
        ({"dec_cross_attend": False}, "dec_cross_attend=False is refused"),
        ({"enc_tie_embedding": True}, "an encoder has none"),
        ({"enc_position": "none"}, "nothing tells one order of tokens from another"),
        ({"enc_position": "cope"}, "defined only under a causal mask"),
        ({"enc_position": "rpoe"}, "did you mean 'rope'"),
    ],
)
def test_flags_that_make_no_sense_are_refused(flags: dict, message: str) -> None:
    with pytest.raises((FlagError, ValueError), match=message):
        build(**flags)


@pytest.mark.parametrize(
    ("source", "start", "options", "message"),
    [
        (ids(2, 7), ids(3, 1), {}, r"context must have shape \[batch=3, tokens, dim=26\].*got \[2, 7, 26\]"),
        (ids(2, 7), ids(2, 0), {}, "the prompt is empty"),
        (ids(2, 0), ids(2, 1), {}, "neither of them empty"),
        (ids(2, 7) + NUM_TOKENS, ids(2, 1), {}, "is outside 0..28"),
        (ids(2, 7).float(), ids(2, 1), {}, "integer ids"),
        (ids(2, 7), ids(2, 1), {"mask": torch.ones(2, 6).bool()}, r"mask must have shape"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(source: Tensor, start: Tensor, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build().generate(source, start, 4, **options)


def test_the_mode_of_every_part_comes_back() -> None:
    model = build(enc_ff_dropout=0.5, dec_attn_dropout=0.5)
    model.train()
    model.encoder.eval()
    before = [part.training for part in model.modules()]
    first = model.generate(ids(2, 7), ids(2, 1), STEPS, **GREEDY)
    assert torch.equal(first, model.generate(ids(2, 7), ids(2, 1), STEPS, **GREEDY))
    with pytest.raises(InputError):
        model.generate(ids(2, 7), ids(3, 1), STEPS)
    assert [part.training for part in model.modules()] == before


def test_describe_says_what_each_side_has() -> None:
    text = build("rope", "alibi").describe()
    encoder, decoder = text.split("decoder\n")
    assert encoder.startswith("encoder\n")
    assert "rope" in encoder.lower()
    assert "alibi" in decoder.lower()


def test_a_stream_gives_the_tokens_of_generate() -> None:
    model, sources, prompts = build(), ragged(9, 3, 6), ragged(1, 4, 2, seed=9)
    source, mask = padded(sources)
    options = {"mask": mask, "seed": 3, "eos_token": 5}
    want = model.generate(source, prompts, STEPS, **options)
    got = torch.stack(list(model.stream(source, prompts, STEPS, **options)), dim=1)
    assert torch.equal(got, want)
    one = list(model.stream(ids(1, 5), ids(2), 1, **GREEDY))
    assert torch.equal(one[0], model.generate(ids(1, 5), ids(1, 2), 1, **GREEDY)[:, 0])


@pytest.mark.parametrize("decoder", ["alibi", "rope", "absolute", "forgetting"])
def test_a_kept_cache_continues_with_its_source(decoder: str) -> None:
    model, sources, prompts = build(decoder=decoder), ragged(9, 3, 6), ragged(1, 4, 2, seed=9)
    source, mask = padded(sources)
    want = model.generate(source, prompts, STEPS, mask=mask, **GREEDY)
    first, cache = model.generate(source, prompts, 3, mask=mask, return_cache=True, **GREEDY)
    again = cache.copy()
    rest = model.generate(None, None, STEPS - 3, cache=cache, **GREEDY)
    assert torch.equal(torch.cat([first, rest], dim=1), want)
    rest = torch.stack(list(model.stream(source, None, STEPS - 3, mask, cache=again, **GREEDY)), dim=1)
    assert torch.equal(torch.cat([first, rest], dim=1), want)
    with pytest.raises(InputError, match="different context"):
        model.generate(source.roll(1, 1), None, 2, mask, cache=cache, **GREEDY)


def test_positions_and_proposals_of_the_target() -> None:
    model, source = build(), ids(1, 6)
    start = ids(1, 3)
    shifted = model.generate(source, start, STEPS, positions=torch.arange(3)[None] + 4, **GREEDY)
    assert torch.equal(shifted, model.generate(source, start, STEPS, **GREEDY))  # alibi sees distances alone
    spread = model.generate(source, start, STEPS, positions=torch.tensor([[0, 5, 9]]), cache_kv=False, seed=0)
    assert torch.equal(spread, model.generate(source, start, STEPS, positions=torch.tensor([[0, 5, 9]]), seed=0))
    proposed = model.generate(source, start, STEPS, speculate=PromptLookup(), **GREEDY)
    assert torch.equal(proposed, model.generate(source, start, STEPS, **GREEDY))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "src=None continues with the source of a cache, and none was read into it"),
        ({"mask": torch.ones(1, 3, dtype=torch.bool)}, "mask was given without src"),
    ],
)
def test_a_missing_source_is_refused(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build().generate(None, ids(1, 2), 2, **options)
