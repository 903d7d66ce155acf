"""Passkey retrieval: prompts that fit their length, a model that knows the answer, and those that cannot be tried."""

import re

import pytest
import torch

from x_positional import AutoregressiveWrapper, Decoder, TransformerWrapper
from x_positional.errors import ArgumentError, UserError
from x_positional.evidence.evaluation.passkey import PasskeySettings, passkey_prompt, passkey_scores


class Bytes:
    """A token a byte, after one that begins every text."""

    def encode(self, text: str) -> list[int]:
        return [256, *text.encode()]

    def decode(self, ids) -> str:
        return bytes(i for i in ids if i < 256).decode(errors="replace")


CODEC = Bytes()


def model(position: str = "alibi") -> TransformerWrapper:
    torch.manual_seed(0)
    layers = Decoder(dim=16, depth=1, heads=2, attn_dim_head=8, position=position)
    return TransformerWrapper(num_tokens=257, max_seq_len=512, attn_layers=layers)


@pytest.mark.parametrize("length", [290, 400, 1000, 4001])
@pytest.mark.parametrize("depth", [0.0, 0.3, 1.0])
def test_a_prompt_is_the_longest_that_fits(length: int, depth: float):
    ids, room = passkey_prompt(CODEC, length, depth, "12345")
    text = CODEC.decode(ids)
    assert length - 90 <= len(ids) + room <= length
    assert text.endswith("The pass key is")
    assert text.count("12345") == 2
    before, after = (part.count("The grass is green") for part in text.split("The pass key is 12345", 1))
    assert before == round(depth * (before + after))


def test_a_length_without_room_has_the_reason():
    with pytest.raises(UserError, match="100 tokens have no room for the task, which takes"):
        passkey_prompt(CODEC, 100, 0.5, "12345")
    scores = passkey_scores(model(), CODEC, [100], PasskeySettings(trials=1))
    assert {score.reason is not None and score.trials == 0 for score in scores} == {True}


def test_answers_are_compared_exactly(monkeypatch: pytest.MonkeyPatch):
    """A model that repeats the number where it stands at the start, and its first four digits elsewhere."""

    def generate(self: AutoregressiveWrapper, prompt: torch.Tensor, room: int, **options: object) -> torch.Tensor:
        text = CODEC.decode(prompt.tolist())
        key = re.findall(r"pass key is (\d+)", text)[0]
        at_start = text.split("\n")[1].startswith("The pass key")
        return torch.tensor(CODEC.encode(f" {key if at_start else key[:4]}.\n")[1:][:room])

    monkeypatch.setattr(AutoregressiveWrapper, "generate", generate)
    scores = passkey_scores(model(), CODEC, [400, 800], PasskeySettings(depths=(0.0, 1.0), trials=2))
    assert [(s.length, s.depth, s.correct, s.trials) for s in scores] == [
        (400, 0.0, 2, 2),
        (400, 1.0, 0, 2),
        (800, 0.0, 2, 2),
        (800, 1.0, 0, 2),
    ]


def test_an_untrained_model_answers_nothing_and_a_table_ends():
    settings = PasskeySettings(depths=(0.5,), trials=1)
    assert [s.correct for s in passkey_scores(model(), CODEC, [300, 600], settings)] == [0, 0]
    inside, past = passkey_scores(model("absolute"), CODEC, [300, 600], settings)
    assert (inside.reason, inside.trials) == (None, 1)
    assert "positions end at 512" in (past.reason or "")


def test_numbers_depend_on_the_seed_alone():
    keys = [PasskeySettings().key(trial) for trial in range(20)]
    assert keys == [PasskeySettings(depths=(0.5,)).key(trial) for trial in range(20)]
    assert {len(key) for key in keys} == {5}
    assert len({*keys, PasskeySettings(seed=1).key(0)}) == 21
    with pytest.raises(ArgumentError, match="trials=0"):
        PasskeySettings(trials=0)
