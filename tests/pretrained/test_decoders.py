"""Every family of decoders: our logits equal those of transformers, on every way through, and the way back."""

from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from tests.support.draws import in_turns
from tests.support.published.compare import Published, both, ids, left_padded, quietly, takes, their_logits
from tests.support.published.decoders import CASES
from tests.support.rounding import assert_same
from x_positional import AutoregressiveWrapper
from x_positional.pretrained.tensors.files import open_tensors


def name_of(value: object) -> str:
    return value.name if isinstance(value, Published) else str(value)


every = pytest.mark.parametrize("case", CASES, ids=name_of)


NEW = 9


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, case: Published) -> None:
    assert theirs.std() > 0.1, "logits that hardly differ prove nothing"
    assert_same(ours, theirs)


@every
@torch.no_grad()
def test_plain_and_long(case: Published):
    theirs, ours, _ = both(case)
    tokens = ids(2, case.length)
    assert_close(ours(tokens), their_logits(theirs, tokens), case)


@every
@torch.no_grad()
def test_left_padded(case: Published):
    theirs, ours, _ = both(case)
    tokens, mask, positions = left_padded(ids(3, case.length), [case.length, case.length - 5, 4])
    expected = their_logits(theirs, tokens, mask, positions if takes(theirs, "position_ids") else None)
    if not case.padded:
        pytest.skip("the published code counts padding as text; ours does not (the case says where)")
    assert_close(ours(tokens, mask=mask)[mask], expected[mask], case)


@every
@torch.no_grad()
def test_shifted_and_jumping_positions(case: Published):
    theirs, ours, _ = both(case)
    if not takes(theirs, "position_ids") or not case.jumping:
        pytest.skip("the published code takes no position_ids, or reads them wrongly (the case says where)")
    tokens = ids(2, 9)
    steps = torch.tensor([[1, 1, 2, 1, 3, 1, 1, 2, 1], [1] * 9])
    positions = steps.cumsum(-1) + 3
    assert_close(ours(tokens, positions=positions), their_logits(theirs, tokens, None, positions), case)


@torch.no_grad()
@pytest.mark.parametrize(("case", "static"), in_turns(CASES, [False, True]), ids=name_of)
def test_greedy_tokens(case: Published, static: bool):
    theirs, ours, _ = both(case)
    lengths = [7, 4] if case.padded else [7, 7]
    rows = ids(2, 7, seed=3)
    tokens, mask, _ = left_padded(rows, lengths)
    settings = {
        "do_sample": False,
        "max_new_tokens": NEW,
        "min_new_tokens": NEW,
        "pad_token_id": 0,
        "eos_token_id": None,
    }
    expected = quietly(theirs.generate, tokens, attention_mask=mask.long(), **settings)[:, 7:]
    wrapper = AutoregressiveWrapper(ours)
    cache = ours.new_cache(2, max_len=7 + NEW, rereads=True) if static else None
    prompts = [row[7 - n :] for row, n in zip(rows, lengths, strict=True)]
    if static and not cacheable(ours):
        pytest.skip("frequencies follow the length of the text, so a cache would hold keys of another table")
    got = wrapper.generate(prompts, NEW, temperature=0.0, restrict_to_max_seq_len=False, cache=cache)
    torch.testing.assert_close(got, expected)


@every
@torch.no_grad()
def test_cached_chunks(case: Published):
    _, ours, _ = both(case)
    if not cacheable(ours):
        pytest.skip("frequencies follow the length of the text, so a cache would hold keys of another table")
    tokens = ids(2, case.length)
    cache, pieces, start = ours.new_cache(2), [], 0
    for size in (5, 1, 1, 4, case.length):
        pieces.append(ours(tokens[:, start : start + size], cache=cache))
        start = min(start + size, case.length)
        if start == case.length:
            break
    assert_close(torch.cat(pieces, 1), ours(tokens), case)


@every
@torch.no_grad()
def test_packed_equals_separate(case: Published):
    _, ours, _ = both(case)
    tokens = ids(1, case.length)
    lengths = [6, 9, case.length - 15]
    alone = [ours(part) for part in tokens.split(lengths, dim=1)]
    assert_close(ours(tokens, seq_lens=lengths), torch.cat(alone, 1), case)


@torch.no_grad()
@pytest.mark.parametrize(("case", "known"), in_turns(CASES, [True, False]), ids=name_of)
def test_the_way_back(case: Published, known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    theirs, ours, folder = both(case)
    family = ours.origin.family.model_type
    if not known:  # as a model of one's own: every key is made from the fields of ours
        monkeypatch.setattr(ours, "origin", None)
    ours.save_pretrained(tmp_path, format="hf", model_type=family)
    before, after = open_tensors(folder), load_file(tmp_path / "model.safetensors")
    for name, tensor in after.items():
        assert torch.equal(before.read(name), tensor), f"{name} is not bit by bit what was read"
    again = quietly(transformers.AutoModelForCausalLM.from_pretrained, tmp_path, attn_implementation=case.attention)
    assert type(again) is type(theirs)
    tokens = ids(2, case.length)
    torch.testing.assert_close(their_logits(again, tokens), their_logits(theirs, tokens), atol=0, rtol=0)


def cacheable(model: torch.nn.Module) -> bool:
    return all(scheme.capabilities().kv_cacheable for scheme in model.attn_layers.position_schemes)
