"""Checkpoints written before the modules moved into folders still load, bit for bit, and every state-dict key is unchanged."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.support.old_models import CLASSES, FIXTURES, NEEDS, SAVED, keys, outputs
from x_positional import from_pretrained
from x_positional.schemes.registry import REGISTRY

TERMS = 2 * (24 + 8 + 32 + 24 + 24 + 48) + 2 * 24
"""Summed terms on the way from an input to a logit: two layers of (qkv, scores, values, out, up, down), embedding, logits."""
KEYS = json.loads((FIXTURES / "state_dict_keys.json").read_text("utf-8"))


def state(name: str) -> dict[str, Tensor]:
    """The state dict that loading the checkpoint gave at the time; in the native form, what the file holds."""
    if SAVED[name][0] == "native":
        return load_file(FIXTURES / name / "model.safetensors")
    stored = load_file(FIXTURES / f"{name}.safetensors")
    return {key.removeprefix("state."): tensor for key, tensor in stored.items() if key.startswith("state.")}


def rebuilt(name: str) -> Any:
    """The same model, built today from its flags, with the saved weights."""
    model = SAVED[name][1]().eval()
    model.load_state_dict(state(name))
    return model


def rounding(logits: Tensor) -> float:
    """How far two float32 runs of one model may be apart: each of TERMS terms rounds by eps/2 of the scale, in both runs."""
    return TERMS * torch.finfo(torch.float32).eps * float(logits.abs().max())


@pytest.mark.parametrize("name", SAVED)
def test_every_tensor_is_equal(name: str):
    loaded, want = from_pretrained(FIXTURES / name).state_dict(), state(name)
    assert loaded.keys() == want.keys()
    assert [key for key in want if not torch.equal(loaded[key], want[key])] == []


@pytest.mark.parametrize("name", SAVED)
def test_logits_are_those_of_the_model_built_from_flags(name: str):
    assert torch.equal(outputs(from_pretrained(FIXTURES / name).eval()), outputs(rebuilt(name)))


@pytest.mark.parametrize("name", SAVED)
def test_logits_are_those_of_the_time(name: str):
    then = load_file(FIXTURES / f"{name}.safetensors")["logits"]
    torch.testing.assert_close(outputs(from_pretrained(FIXTURES / name).eval()), then, rtol=0, atol=rounding(then))


@pytest.mark.parametrize("name", SAVED)
def test_the_bound_on_logits_sees_a_changed_weight(name: str):
    """A tenth more of a single weight matrix moves the logits more than ten times further than rounding may."""
    model, then = rebuilt(name), load_file(FIXTURES / f"{name}.safetensors")["logits"]
    with torch.no_grad():
        next(p for key, p in model.named_parameters() if "to_qkv" in key or "to_q" in key).mul_(1.1)
    assert (outputs(model) - then).abs().max() > 10 * rounding(then)


def cases() -> list[tuple[str, str]]:
    return [(name, kind) for name in KEYS for kind in KEYS[name]["schemes"]]


@pytest.mark.parametrize(("name", "kind"), cases())
def test_state_dict_keys_are_unchanged(name: str, kind: str):
    want = sorted([*KEYS[name]["common"], *KEYS[name]["schemes"][kind]])
    assert keys(CLASSES[name](NEEDS.get(kind, kind))) == want


def test_every_scheme_and_class_of_the_time_is_covered():
    assert KEYS.keys() == CLASSES.keys()
    covered = {kind for _, kind in cases()}
    assert covered <= set(REGISTRY)
    assert len(covered) == 17
