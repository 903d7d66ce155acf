"""`x-positional generate`: text from a checkpoint, written as it is drawn.

Shapes: B batch, T tokens.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from x_positional.cli.published import checkpoint_of
from x_positional.errors import UserError
from x_positional.models.autoregressive import AutoregressiveWrapper
from x_positional.models.language import TransformerWrapper, build_model
from x_positional.training.checkpoints.checkpoint import TOKENIZER, Checkpoint, load_model
from x_positional.training.data.tokens import StreamDecoder, Tokenizer, load_tokenizer
from x_positional.training.load import parse_config


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to draw. stop: end at the id that ends a document, where the tokenizer has one."""

    length: int = 512
    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    cache: bool = True
    stop: bool = True

    @property
    def filters(self) -> tuple[list[str], list[dict[str, Any]]]:
        """Names and options of the filters asked for, applied in this order."""
        wanted = [
            ("top_k", {"k": self.top_k}, self.top_k),
            ("top_p", {"thres": self.top_p}, self.top_p),
            ("min_p", {"min_p": self.min_p}, self.min_p),
        ]
        chosen = [(name, options) for name, options, value in wanted if value is not None]
        return [name for name, _ in chosen], [options for _, options in chosen]


def sample_text(run: Path, prompt: str, sampling: Sampling, device: str) -> None:
    """Write prompt and continuation to the standard output, and the speed to the standard error."""
    checkpoint = checkpoint_of(run)
    net = load_net(checkpoint, device)
    tokenizer = checkpoint_tokenizer(checkpoint)
    ids = prompt_ids(prompt, tokenizer)
    print(prompt, end="", flush=True)
    began, count = time.perf_counter(), 0
    try:
        for text in stream_text(net, ids, tokenizer, sampling):
            print(text, end="", flush=True)
            count += 1
    except ValueError as error:  # lengths and options that the model refuses
        raise UserError(str(error)) from error
    print(flush=True)
    seconds = time.perf_counter() - began
    print(f"[{count} tokens, {count / seconds:,.0f} tokens/s, {checkpoint.path}]", file=sys.stderr)


def stream_text(
    net: TransformerWrapper, ids: list[int], tokenizer: Tokenizer | None, sampling: Sampling
) -> Iterator[str]:
    """The text of each new token, in order; a piece is empty while a character is incomplete."""
    end = tokenizer.document_end if tokenizer is not None else None
    decoder = None if tokenizer is None else tokenizer.decoder()
    yield from stream_pieces(net, ids, () if end is None else (end,), decoder, sampling)


def stream_pieces(
    net: TransformerWrapper, ids: Sequence[int], ends: Sequence[int], decoder: StreamDecoder | None, sampling: Sampling
) -> Iterator[str]:
    """The text of each new token; without a decoder their numbers. ends: ids after which all is said."""
    names, options = sampling.filters
    ends = ends if sampling.stop else ()
    tokens = AutoregressiveWrapper(net).stream(
        torch.tensor([ids], device=next(net.parameters()).device),
        sampling.length,
        eos_token=ends or None,
        temperature=sampling.temperature,
        filter_logits_fn=names or None,
        filter_kwargs=options or None,
        cache_kv=sampling.cache,
        seed=sampling.seed,
    )
    for token in tokens:
        number = int(token[0])
        if number in ends:
            break
        yield f" {number}" if decoder is None else decoder.feed(number)
    rest = "" if decoder is None else decoder.finish()
    if rest:
        yield rest


def device_of(name: str) -> str:
    """A device by name; `auto` is CUDA where there is one."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


def load_net(checkpoint: Checkpoint, device: str) -> TransformerWrapper:
    """The model of a checkpoint on `device`; raises `UserError` when the device is not there."""
    device = device_of(device)
    config = parse_config(checkpoint.config_text(), str(checkpoint.path))
    net = build_model(config.model)
    load_model(net, checkpoint.model_tensors(), checkpoint.path)
    try:
        return net.to(device).eval()
    except (RuntimeError, AssertionError) as error:  # torch raises either for a device it does not have
        raise UserError(f"--device {device} cannot be used: {error}") from error


def checkpoint_tokenizer(checkpoint: Checkpoint) -> Tokenizer | None:
    """The tokenizer of the run; None when it was trained on bare ids."""
    name = checkpoint.trainer["tokenizer"]
    if name == TOKENIZER:
        return load_tokenizer(str(checkpoint.path / TOKENIZER))
    return None if name is None else load_tokenizer(name)


def prompt_ids(prompt: str, tokenizer: Tokenizer | None) -> list[int]:
    """Ids of the prompt. An empty prompt starts a new document; without a tokenizer the prompt is ids itself."""
    if tokenizer is None:
        try:
            return [int(word) for word in prompt.replace(",", " ").split()] or [0]
        except ValueError as error:
            raise UserError(f"this model was trained on bare token ids, so --prompt must be ids: {error}") from error
    ids = [int(token) for token in tokenizer.encode(prompt.encode())]
    if ids:
        return ids
    if tokenizer.document_end is None:
        raise UserError(
            "--prompt is empty, and this tokenizer has no id that starts a document; give at least one token"
        )
    return [tokenizer.document_end]
