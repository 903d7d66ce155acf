"""One model as a class of transformers' own and with code: the same arguments mean the same."""

from typing import Any

import pytest
import torch

from tests.support.export_models import own
from tests.support.hf_models import load, loaded
from tests.support.rounding import assert_same
from x_positional import TransformerWrapper
from x_positional.hf.caching import CACHE_NAME

FAMILIES = {
    "LlamaForCausalLM": {},
    "GPT2LMHeadModel": {
        "head_dim": 8,
        "position": {"kind": "absolute", "scale": 1.0},
        "norm": {"kind": "layer", "bias": True},
        "attn": {"bias": True},
        "ff": {"activation": "gelu_tanh"},
    },
}
TOKENS = torch.randint(0, 67, (2, 11), generator=torch.Generator().manual_seed(5))
MASK = torch.ones_like(TOKENS)
MASK[0, :4] = 0
POSITIONS = (MASK.cumsum(-1) - 1).clamp(min=0)
"""As `generate` of transformers makes them of a mask."""
LABELS = TOKENS.masked_fill(torch.rand(2, 11, generator=torch.Generator().manual_seed(1)) < 0.3, -100)
LABELS[0, 4] = -100  # what padding predicts is noise
PACKED = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 0, 1], [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2]])
PREFIX = torch.ones(11, 11, dtype=torch.bool).tril()
PREFIX[:4, :4] = True
ADDITIVE = torch.where(PREFIX, 0.0, torch.finfo(torch.float32).min).expand(2, 1, 11, 11)
CALLS: dict[str, dict[str, Any]] = {
    "alone": {},
    "padded": {"attention_mask": MASK, "position_ids": POSITIONS},
    "shifted": {"position_ids": torch.arange(5, 16)[None]},
    "packed": {"position_ids": PACKED, "use_cache": False},
    "who sees whom": {"attention_mask": ADDITIVE},
    "labels": {"labels": LABELS},
    "labels of a step": {"labels": LABELS, "num_items_in_batch": torch.tensor(31)},
    "padded labels": {"labels": LABELS.masked_fill(MASK == 0, -100), "attention_mask": MASK, "position_ids": POSITIONS},
    "the last logits": {"logits_to_keep": 3},
    "some logits": {"logits_to_keep": torch.tensor([1, 4])},
    "states": {"output_hidden_states": True, "output_attentions": True},
    "a tuple": {"return_dict": False, "use_cache": False, "labels": LABELS},
}
MODELS: dict[str, tuple[TransformerWrapper, Any, Any]] = {}


@pytest.fixture(params=FAMILIES)
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """The model as transformers' own, and with code."""
    name = request.param
    if name not in MODELS:
        model, folder = own(**FAMILIES[name]), tmp_path_factory.mktemp("family")
        model.save_pretrained(folder, format="hf")
        theirs = load(folder, attn_implementation="eager")
        assert type(theirs).__name__ == name
        for module in theirs.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        MODELS[name] = model, theirs, loaded(model)
    return MODELS[name][1:]


def compared(one: Any, other: Any, kept: torch.Tensor) -> int:
    """Compares every tensor of two outputs, and returns how many there are. kept: [B T] bool, places that are not padding."""
    if isinstance(one, torch.Tensor):
        assert one.shape == other.shape
        if one.ndim == 3 and one.shape[1] == kept.shape[1]:
            one, other = one[kept], other[kept]
        if one.ndim == 4:
            one, other = one.movedim(2, 1)[kept], other.movedim(2, 1)[kept]
        assert_same(one, other)
        return 1
    if isinstance(one, tuple):
        assert len(one) == len(other)
        return sum(compared(a, b, kept) for a, b in zip(one, other, strict=True))
    return 0


@pytest.mark.parametrize("name", CALLS)
@torch.no_grad()
def test_arguments_mean_the_same(name: str, models: tuple[Any, Any]):
    theirs, ours = models
    given = CALLS[name]
    kept = MASK.bool() if given.get("attention_mask") is MASK else torch.ones_like(MASK).bool()
    want, found = theirs(TOKENS, **given), ours(TOKENS, **given)
    if isinstance(want, tuple):
        assert compared(found, want, kept) == 2
        return
    names = {key for key in found if key != CACHE_NAME}
    assert names == {key for key in want if key not in (CACHE_NAME, "cross_attentions")}
    assert sum(compared(found[key], want[key], kept) for key in sorted(names)) >= len(names)
    if name == "who sees whom":
        assert torch.equal(ours(TOKENS, attention_mask=PREFIX.expand(2, 1, 11, 11)).logits, found.logits)


@pytest.mark.parametrize("name", ["position_ids", "attention_mask", "labels"])
@torch.no_grad()
def test_an_ignored_argument_is_found(name: str, models: tuple[Any, Any]):
    theirs, ours = models
    given: dict[str, Any] = {"position_ids": PACKED, "attention_mask": MASK, "labels": LABELS, "use_cache": False}
    given = {key: value for key, value in given.items() if key in (name, "labels", "use_cache")}
    want = theirs(TOKENS, **given)
    without = ours(TOKENS, **{**given, name: TOKENS if name == "labels" else None})
    with pytest.raises(AssertionError):
        assert_same(without.loss, want.loss)


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
@torch.no_grad()
def test_the_same_tokens(settings: dict[str, Any], models: tuple[Any, Any]):
    theirs, ours = models
    given = {"attention_mask": MASK, "max_new_tokens": 9, "do_sample": False, "pad_token_id": 0, **settings}
    assert torch.equal(ours.generate(TOKENS, **given), theirs.generate(TOKENS, **given))


def test_the_same_gradients(models: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch):
    """Whole logits, and the loss by chunks that large ones take in training."""
    theirs, ours = models
    given = CALLS["padded labels"]
    gradients = []
    for model, chunks in ((theirs, False), (ours, False), (ours, True)):
        monkeypatch.setattr("x_positional.models.loss.chunks_pay", lambda *sizes, pays=chunks: pays)
        model.train()
        for items in (None, torch.tensor(31)):
            out = model(TOKENS, **given, num_items_in_batch=items)
            assert (out.logits is None) == chunks
            model.zero_grad()
            out.loss.backward()
            gradients.append((out.loss.detach(), model.get_input_embeddings().weight.grad.clone()))
        model.zero_grad()
        model.eval()
    for got, want in zip(gradients[2:], gradients[:2] * 2, strict=True):
        assert_same(got[0], want[0])
        assert_same(got[1], want[1])
