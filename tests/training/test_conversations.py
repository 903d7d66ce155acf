"""Conversations to rows: which tokens are targets, what is truncated, packing without leaks, and errors that name the line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.chat_models import TEMPLATE, chat_tokenizer, conversations, jsonl, llama, turn
from x_positional import AutoregressiveWrapper
from x_positional.errors import UserError
from x_positional.training.finetune.config import ChatConfig
from x_positional.training.finetune.conversations import Conversation, Reader, fitted
from x_positional.training.finetune.packing import PackedRows, packed

TOKENIZER = chat_tokenizer()
THINKING = TEMPLATE.replace("m['content']", "(m['content'] if loop.last else m['content'] | upper)")
"""Renders all messages but the last one differently, as templates that drop earlier thoughts do."""


def read(record: dict[str, Any], **config: Any) -> Conversation:
    return Reader(TOKENIZER, ChatConfig(**config)).conversation(record)


def targets(one: Conversation) -> str:
    return TOKENIZER.decode(one.tokens[one.targets], special=True)


def test_answers_and_their_end_are_targets():
    messages = [*turn("1+1?", "2"), *turn("2+2?", "four")]
    one = read({"messages": messages})
    assert TOKENIZER.decode(one.tokens, special=True) == TOKENIZER.chat(messages, reply=False)
    assert targets(one) == "2<|im_end|>four<|im_end|>"
    assert targets(read({"messages": messages}, answers="last")) == "four<|im_end|>"


def test_a_prompt_has_the_ids_that_it_has_in_generation():
    messages = turn("1+1?", "2")
    one = read({"messages": messages})
    prompt = TOKENIZER.encode_chat(messages[:1])
    assert one.tokens[: len(prompt)].tolist() == prompt
    assert one.targets[len(prompt)]
    assert not one.targets[: len(prompt)].any()


def test_completions_and_texts():
    one = read({"prompt": "1+1=", "completion": "2"})
    assert TOKENIZER.decode(one.tokens, special=True) == "1+1=2<|im_end|>"
    assert targets(one) == "2<|im_end|>"
    assert read({"text": "abc"}).targets.all()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not JSON"),
        ("[1]", r"a conversation is \{\"messages\""),
        ('{"question": "?"}', "this line has the keys question"),
        ('{"prompt": 1, "completion": "x"}', "prompt=1 must be a string"),
        ('{"messages": []}', "messages must be a non-empty list"),
        ('{"messages": [{"role": "user"}]}', "message 1 must be"),
        (json.dumps({"messages": turn("a", "b")[:1]}), "has no answer: no message has the role assistant"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, reason: str):
    file = tmp_path / "chats.jsonl"
    file.write_text(json.dumps(conversations(1)[0]) + "\n\n" + line + "\n")
    with pytest.raises(UserError, match=rf"chats\.jsonl:3: .*{reason}"):
        Reader(TOKENIZER, ChatConfig()).read(file)


def test_every_character_of_json_is_read(tmp_path: Path):
    """A byte order mark, characters that other formats end a line at, and half of a surrogate pair."""
    text = "a\u2028b\x85c"
    line = json.dumps({"prompt": text, "completion": text}, ensure_ascii=False)
    broken = '{"prompt": "\\ud800", "completion": "\\ud800"}'
    file = tmp_path / "chats.jsonl"
    file.write_bytes(f"\ufeff{line}\r\n{broken}\n".encode())
    (_, one), (number, two) = Reader(TOKENIZER, ChatConfig()).read(file)
    assert TOKENIZER.decode(one.tokens, special=True) == text + text + "<|im_end|>"
    assert (number, targets(two)) == (2, "?<|im_end|>")


def test_files_that_hold_nothing(tmp_path: Path):
    reader = Reader(TOKENIZER, ChatConfig())
    with pytest.raises(UserError, match=r"contains no conversations"):
        reader.read(jsonl(tmp_path / "empty.jsonl", []))
    with pytest.raises(UserError, match=r"cannot read .*No such file"):
        reader.read(tmp_path / "missing.jsonl")


def test_a_template_that_changes_earlier_messages(tmp_path: Path):
    messages = [*turn("a", "b"), *turn("c", "d")]
    reader = Reader(chat_tokenizer(THINKING), ChatConfig())
    with pytest.raises(
        UserError, match=r":1: the chat template renders message 2 differently in a longer conversation"
    ):
        reader.read(jsonl(tmp_path / "chats.jsonl", [{"messages": messages}]))
    last = Reader(chat_tokenizer(THINKING), ChatConfig(answers="last"))
    with pytest.raises(UserError, match="renders message 4 differently"):  # the question too depends on what follows
        last.read(jsonl(tmp_path / "chats.jsonl", [{"messages": messages}]))


def test_no_template(tmp_path: Path):
    with pytest.raises(UserError, match="test has no chat template, which messages need"):
        Reader(chat_tokenizer(None), ChatConfig()).read(jsonl(tmp_path / "chats.jsonl", conversations(1)))


def of_lengths(*lengths: int) -> list[tuple[int, Conversation]]:
    """Conversations whose last two tokens are targets."""
    found = []
    for number, length in enumerate(lengths, start=1):
        tokens = np.arange(length) % 250
        found.append((number, Conversation(tokens, tokens >= tokens[-1] - 1)))
    return found


def test_what_is_too_long():
    found = of_lengths(5, 9, 7)
    with pytest.raises(
        UserError, match=r"f:2: the conversation has 9 tokens, 3 more than a row \(6\); 2 of 3 are too long"
    ):
        fitted(found, 6, ChatConfig(), Path("f"))
    kept, notes = fitted(found, 6, ChatConfig(too_long="skip"), Path("f"))
    assert [len(one) for one in kept] == [5]
    assert notes == ["f: 2 of 3 conversations of more than 6 tokens skipped"]
    kept, notes = fitted(found, 6, ChatConfig(too_long="truncate"), Path("f"))
    assert [len(one) for one in kept] == [5, 6]  # the answer of the second is past the end
    assert notes[0] == "f: 2 of 3 conversations truncated to 6 tokens (4 tokens cut)"
    assert notes[1] == "f: 1 conversations without a token to predict skipped"
    with pytest.raises(UserError, match="no conversation has a token to predict"):
        fitted(found[1:2], 6, ChatConfig(too_long="truncate"), Path("f"))


@pytest.mark.parametrize("seed", range(3))
def test_every_conversation_is_in_one_row(seed: int):
    lengths = np.random.Generator(np.random.PCG64(seed)).integers(1, 60, 200).tolist()
    rows = packed(lengths, 64, seed)
    assert sorted(index for row in rows for index in row) == list(range(200))
    used = [sum(lengths[index] for index in row) for row in rows]
    assert max(used) <= 64
    assert sum(used) / (64 * len(rows)) > 0.9


def test_each_epoch_visits_each_row_once_in_another_order():
    rows = PackedRows([one for _, one in of_lengths(*range(4, 24))], 24, seed=5)
    orders = [
        [rows.batch(epoch * len(rows) + place, 1)["tokens"].tolist() for place in range(len(rows))] for epoch in (0, 1)
    ]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])
    again = PackedRows([one for _, one in of_lengths(*range(4, 24))], 24, seed=5)
    assert torch.equal(again.batch(len(rows) + 1, 2)["tokens"], rows.batch(len(rows) + 1, 2)["tokens"])


@torch.no_grad()
@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("position", ["rope", "absolute"])
def test_packed_rows_have_the_losses_of_their_conversations(position: str, pack: bool):
    """The summed loss of all rows is that of each conversation alone, in float64: none sees another, positions begin at 0."""
    found = [read(record) for record in conversations(9)]
    model = AutoregressiveWrapper(llama(position).double())
    rows = PackedRows(found, 150, seed=0, pack=pack)
    assert (len(rows) < len(found)) == pack
    together = model(**rows.rows(range(len(rows))), reduction="sum")
    alone = []
    for one in found:
        tokens, answers = torch.from_numpy(one.tokens)[None], torch.from_numpy(one.targets)[None]
        alone.append(model(tokens, loss_mask=answers, reduction="sum"))
    assert together.item() == pytest.approx(sum(alone).item(), rel=1e-12)
    count = sum(int(one.targets.sum()) for one in found)
    assert int((rows.rows(range(len(rows)))["labels"] != -100).sum()) == count
