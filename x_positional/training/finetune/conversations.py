"""Conversations in JSON Lines files: each line is rendered by the chat template, encoded, and its answers marked as targets."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from x_positional.errors import PretrainedError, UserError, listed, shown
from x_positional.pretrained.tokenizers.text import TextTokenizer
from x_positional.progress import Track, silent
from x_positional.training.finetune.config import ChatConfig

ASSISTANT = "assistant"
FORMS = '{"messages": [...]}, {"prompt": ..., "completion": ...} or {"text": ...}'
MAX_SHOWN = 8
"""Lines that an error lists; the rest are counted."""


@dataclass(frozen=True)
class Conversation:
    """Token ids [T], and which of them the model learns to predict, [T] bool."""

    tokens: np.ndarray
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)


class Malformed(Exception):
    """Why a line is not a conversation to train on."""


@dataclass(frozen=True)
class Reader:
    """Reads conversations for one model.

    Args:
        tokenizer: The model's tokenizer and chat template.
        config: Which messages are targets.
    """

    tokenizer: TextTokenizer
    config: ChatConfig

    def read(self, file: Path, track: Track = silent) -> list[tuple[int, Conversation]]:
        """(line number, conversation) of each line that is not blank. Raises `UserError` with every line that is malformed."""
        try:
            # Only a line feed ends a line: a string of JSON may hold U+2028 and U+0085, which splitlines would split at.
            lines = file.read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise UserError(f"cannot read {file}: {reason}") from error
        found, problems = [], []
        for number, line in track(list(enumerate(lines, start=1)), "reading conversations"):
            if not line.strip():
                continue
            try:
                found.append((number, self.conversation(_record(line))))
            except Malformed as problem:
                problems.append(f"{file}:{number}: {problem}")
        if problems:
            more = [f"and {len(problems) - MAX_SHOWN} more lines"] if len(problems) > MAX_SHOWN else []
            raise UserError(listed("cannot train on these conversations:", [*problems[:MAX_SHOWN], *more]))
        if not found:
            raise UserError(f"{file} contains no conversations; each line must be {FORMS}")
        return found

    def conversation(self, record: dict[str, Any]) -> Conversation:
        """The tokens and targets of one line. Raises `Malformed`."""
        pieces = list(self._pieces(record))
        tokens = [token for ids, _ in pieces for token in ids]
        targets = [target for ids, target in pieces for _ in ids]
        return Conversation(np.asarray(tokens, dtype=np.int64), np.asarray(targets, dtype=bool))

    def _pieces(self, record: dict[str, Any]) -> Iterator[tuple[list[int], bool]]:
        if record.keys() >= {"messages"}:
            yield from self._messages(record["messages"])
        elif record.keys() >= {"prompt", "completion"}:
            prompt, completion = (_string(record, name) for name in ("prompt", "completion"))
            yield self._encode(prompt, special=True), False
            yield [*self._encode(completion), *self._end()], True
        elif record.keys() >= {"text"}:
            yield [*self._encode(_string(record, "text"), special=True), *self._end()], True
        else:
            raise Malformed(
                f"a conversation is {FORMS}; this line has the keys {', '.join(sorted(record)) or '(none)'}"
            )

    def _end(self) -> tuple[int, ...]:
        """The token after a completion, if the tokenizer has one."""
        return self.tokenizer.ends[:1]

    def _messages(self, messages: Any) -> Iterator[tuple[list[int], bool]]:
        """Text between answers, and answers. Each piece is encoded alone: so a prompt has the ids that it has in generation."""
        if self.tokenizer.template is None:
            raise UserError(
                f"{self.tokenizer.source} has no chat template, which messages need; give the conversations as prompt and "
                "completion, or as text"
            )
        answers = _answers(messages)
        if self.config.answers == "last":
            answers = answers[-1:]
        text, done = self._render(messages, reply=False), 0
        for index in answers:
            before = self._render(messages[:index], reply=True)
            through = text if index + 1 == len(messages) else self._render(messages[: index + 1], reply=False)
            if not (text.startswith(through) and through.startswith(before) and len(before) >= done):
                raise Malformed(
                    f"the chat template renders message {index + 1} differently in a longer conversation, so its tokens are "
                    "unknown; train on the last answer only (--answers last) or end each conversation at its answer"
                )
            yield self._encode(text[done : len(before)]), False
            yield from self._answer(text[len(before) : len(through)])
            done = len(through)
        yield self._encode(text[done:]), False

    def _answer(self, text: str) -> Iterator[tuple[list[int], bool]]:
        """An answer is a target up to its end token: generation stops there, so what the template adds is not predicted."""
        ids, ends = self._encode(text), set(self.tokenizer.ends)
        last = max((place for place, token in enumerate(ids) if token in ends), default=len(ids) - 1)
        yield ids[: last + 1], True
        yield ids[last + 1 :], False

    def _encode(self, text: str, special: bool = False) -> list[int]:
        clean = text.encode("utf-8", "replace").decode()  # JSON can contain lone surrogates
        return self.tokenizer.encode(clean, special) if clean or special else []

    def _render(self, messages: Sequence[Any], *, reply: bool) -> str:
        try:
            return self.tokenizer.chat(messages, reply=reply)
        except PretrainedError as error:
            raise Malformed(f"the chat template failed: {error.problems[0]}") from error


def _record(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"not JSON: {error}") from error
    if not isinstance(record, dict):
        raise Malformed(f"a conversation is {FORMS}; this line is {shown(record)}")
    return record


def _string(record: dict[str, Any], name: str) -> str:
    if not isinstance(record[name], str):
        raise Malformed(f"{name}={shown(record[name])} must be a string")
    return record[name]


def _answers(messages: Any) -> list[int]:
    """Indices of the assistant's messages, in a list whose messages are well-formed. Raises `Malformed`."""
    if not isinstance(messages, list) or not messages:
        raise Malformed("messages must be a non-empty list")
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str) or "content" not in message:
            raise Malformed(f'message {number} must be {{"role": ..., "content": ...}}; got {shown(message)}')
    found = [index for index, message in enumerate(messages) if message["role"] == ASSISTANT]
    if not found:
        raise Malformed("the conversation has no answer: no message has the role assistant")
    return found


def fitted(
    found: Sequence[tuple[int, Conversation]], limit: int, config: ChatConfig, file: Path
) -> tuple[list[Conversation], list[str]]:
    """The conversations of at most `limit` tokens, as `too_long` asks, and notes about those that were changed or left out.

    Raises:
        UserError: A conversation is too long and `too_long` is `error`, or none is left.
    """
    long = [(number, len(one)) for number, one in found if len(one) > limit]
    if long and config.too_long == "error":
        number, length = max(long, key=lambda each: each[1])
        raise UserError(
            f"{file}:{number}: the conversation has {length} tokens, {length - limit} more than a row ({limit}); "
            f"{len(long)} of {len(found)} are too long. Raise data.seq_len if it is below model.max_seq_len, or "
            "set chat.too_long to truncate or skip"
        )
    kept, notes = [], []
    if config.too_long == "skip":
        kept = [one for _, one in found if len(one) <= limit]
    else:
        kept = [Conversation(one.tokens[:limit], one.targets[:limit]) for _, one in found]
    cut = sum(length - limit for _, length in long)
    if long and config.too_long == "truncate":
        notes.append(
            f"{file}: {len(long)} of {len(found)} conversations truncated to {limit} tokens ({cut} tokens cut)"
        )
    elif long:
        notes.append(f"{file}: {len(long)} of {len(found)} conversations of more than {limit} tokens skipped")
    # The first token of a row is predicted from nothing, so it is no target.
    answered = [one for one in kept if one.targets[1:].any()]
    if len(answered) < len(kept):
        notes.append(f"{file}: {len(kept) - len(answered)} conversations without a token to predict skipped")
    if not answered:
        raise UserError(f"{file}: no conversation has a token to predict within {limit} tokens")
    return answered, notes
