"""`x-positional generate`: text from a training run or a published model, streamed as it is generated.

Shapes: B batch, T tokens.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from x_positional.cli.published import checkpoint_of, is_published, loaded, opened
from x_positional.errors import ArgumentError, UserError
from x_positional.generation.proposals import DraftModel, PromptLookup
from x_positional.generation.speculative import Speculate
from x_positional.models.autoregressive import AutoregressiveWrapper
from x_positional.models.language import TransformerWrapper, build_model
from x_positional.models.quantize import Quantization, quantize
from x_positional.models.seq2seq import XTransformer
from x_positional.pretrained.api import load_source
from x_positional.pretrained.integrity import TOKENIZER
from x_positional.pretrained.source import open_source
from x_positional.pretrained.tokenizers.text import TextTokenizer
from x_positional.training.checkpoints.checkpoint import Checkpoint
from x_positional.training.checkpoints.state import load_model
from x_positional.training.cpu import resolve_device
from x_positional.training.data.tokenizer import StreamDecoder, Tokenizer, load_tokenizer
from x_positional.training.load import parse_config

SEPARATOR = "\n\n---\n\n"
"""Between several continuations."""


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """The sampling options of the command line."""

    length: int = 512
    """New tokens, at most."""
    temperature: float = 0.8
    """0 is greedy decoding."""
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    cache: bool = True
    """Whether to use the key/value cache."""
    stop: bool = True
    """Whether to stop at an end token, if the tokenizer has one."""
    compile: bool | Literal["auto"] = "auto"
    """Whether to compile the decoding step."""
    prefill_chunk_size: int | None = None
    """Tokens of the prompt that are read at a time; None reads them at once."""
    prompt_lookup: int | None = None
    """Tokens to propose per pass, copied from earlier text."""
    draft: Path | None = None
    """A smaller model that proposes tokens."""
    start_token: int | None = None
    """The id that the target of an encoder-decoder begins with; None for the one that the model names."""
    num_beams: int = 1
    """Above 1, beam search."""
    num_return_sequences: int = 1
    """Continuations of the prompt, printed one after the other."""

    @property
    def filters(self) -> tuple[list[str], list[dict[str, Any]]]:
        """Names and options of the logit filters in use, in the order they are applied."""
        filters = [
            ("top_k", {"k": self.top_k}, self.top_k),
            ("top_p", {"thres": self.top_p}, self.top_p),
            ("min_p", {"min_p": self.min_p}, self.min_p),
        ]
        chosen = [(name, options) for name, options, value in filters if value is not None]
        return [name for name, _ in chosen], [options for _, options in chosen]


def prompt_text(prompt: str) -> str:
    """The prompt, read from stdin for '-'. Raises UserError where it is not UTF-8."""
    try:
        text = sys.stdin.read() if prompt == "-" else prompt
        text.encode()  # bytes that are not UTF-8 arrive as lone surrogates
    except UnicodeError as error:
        where = "the prompt on stdin" if prompt == "-" else "--prompt"
        raise UserError(f"{where} is not valid UTF-8; convert it first") from error
    return text


def generate_from_run(
    run: Path, prompt: str, options: GenerateOptions, device: str, quantization: Quantization | None = None
) -> None:
    """Write the prompt and its continuation to stdout, and the speed to stderr."""
    checkpoint = checkpoint_of(run)
    net = load_net(checkpoint, device, quantization)
    tokenizer = checkpoint_tokenizer(checkpoint)
    ids = prompt_ids(prompt, tokenizer)
    trained = parse_config(checkpoint.config_text(), str(checkpoint.path)).seq_len
    speculate = speculation(options, device, None)
    pieces = stream_text(net, ids, tokenizer, options, speculate)
    limits = LengthLimits(len(ids), trained, checkpoint.path)
    print_stream(prompt, pieces, str(checkpoint.path), limits)
    print_report(speculate)


def generate_from_published(
    path: Path,
    prompt: str,
    options: GenerateOptions,
    *,
    chat: bool,
    device: str,
    dtype: str | None,
    quantization: Quantization | None = None,
) -> None:
    """Write the continuation of the prompt, or with `chat` the reply to it, to stdout, and the speed to stderr."""
    console = Console(stderr=True)
    source = opened(path, console)
    tokenizer = source.tokenizer()
    ids = published_prompt_ids(tokenizer, prompt, chat)
    model = loaded(source, console, dtype, resolve_device(device), quantization=quantization)
    if isinstance(model, XTransformer):
        generate_from_source(model, ids, tokenizer, options, source.path.name)
        return
    if options.start_token is not None:
        raise UserError("--start-token is for encoder-decoders; put the token into --prompt")
    if not (isinstance(model, TransformerWrapper) and model.has_head and model.config.layers.kind == "decoder"):
        raise UserError(
            f"{source.path} contains a {source.config['model_type']} model, which does not predict the next token"
        )
    speculate = speculation(options, device, dtype)
    pieces = stream_pieces(model, ids, tokenizer.ends, tokenizer.decoder, options, speculate)
    limits = LengthLimits(len(ids), model.config.max_seq_len, source.path)
    print_stream("" if chat else prompt, pieces, source.path.name, limits)
    print_report(speculate)
    if tokenizer.template is not None and not chat:
        print("[this model has a chat template: use --chat to get a reply to the prompt]", file=sys.stderr)


def generate_from_source(
    model: XTransformer, ids: Sequence[int], tokenizer: TextTokenizer, options: GenerateOptions, name: str
) -> None:
    """Write what an encoder-decoder makes of a source to stdout, and the speed to stderr. Raises UserError."""
    if options.draft is not None:
        raise UserError(
            "--draft proposes tokens without the source, which this encoder-decoder attends to; use --prompt-lookup"
        )
    if options.start_token is None and not tokenizer.starts:
        raise UserError("this encoder-decoder does not name the token that a target begins with; pass --start-token ID")
    starts = tokenizer.starts if options.start_token is None else (options.start_token,)
    speculate, device = speculation(options, "cpu", None), next(model.parameters()).device
    ends = tokenizer.ends if options.stop else ()
    inputs = torch.tensor([ids], device=device), torch.tensor([starts], device=device)
    print_stream("", text_of(model, inputs, ends, tokenizer.decoder, options, speculate), name)
    print_report(speculate)


def speculation(options: GenerateOptions, device: str, dtype: str | None) -> Speculate | None:
    """Where the options take proposals from, if they do. Raises UserError."""
    if options.prompt_lookup is not None and options.draft is not None:
        raise UserError("--prompt-lookup and --draft cannot be combined: each proposes the next tokens")
    if options.prompt_lookup is not None:
        return PromptLookup(options.prompt_lookup)
    if options.draft is None:
        return None
    if not is_published(options.draft):
        return DraftModel(load_net(checkpoint_of(options.draft), device))
    console = Console(stderr=True)
    model = loaded(opened(options.draft, console), console, dtype, resolve_device(device))
    if not (isinstance(model, TransformerWrapper) and model.has_head):
        raise UserError(f"--draft {options.draft} does not predict the next token")
    return DraftModel(model)


def print_report(speculate: Speculate | None) -> None:
    """Print to stderr what was proposed and accepted."""
    if speculate is not None:
        print(f"[speculative decoding: {speculate.report}]", file=sys.stderr)


def print_stream(prompt: str, pieces: Iterable[str], model: str, limits: "LengthLimits | None" = None) -> None:
    """Print the prompt and each piece of text as it arrives; then, to stderr, tokens, speed and the name of the model.

    Args:
        prompt: Printed first.
        pieces: The text of each new token.
        model: Its name.
        limits: Lengths of the model; a text that is longer gets a note. None where they are unknown.
    """
    print(prompt, end="", flush=True)
    try:
        count, seconds = write_stream(pieces, lambda text: print(text, end="", flush=True))
    finally:  # an error begins on a line of its own
        print(flush=True)
    print(f"[{count} tokens, {count / seconds:,.1f} tokens/s, {model}]", file=sys.stderr)
    for note in () if limits is None else limits.notes(count):
        print(f"[{note}]", file=sys.stderr)


@dataclass(frozen=True)
class LengthLimits:
    """The lengths of a model that a text is compared with."""

    prompt: int
    """Tokens of the prompt."""
    trained: int
    """The trained length."""
    path: Path
    """The folder or file of the weights, beside which `eval` stores the measured length."""

    def notes(self, new: int) -> Iterator[str]:
        """Which lengths a text with this many new tokens exceeds, and what was measured there."""
        room = self.trained - self.prompt
        if new > room:
            where = "the prompt alone exceeds it" if room < 0 else f"passed after {room} new tokens"
            yield f"longer than the trained length: {where}; the model extrapolates from there"
        from x_positional.evidence.evaluation.stored import stored_length  # only here: its records take time to build

        try:
            measured = stored_length(self.path)
        except UserError as problem:
            yield f"measured length ignored: {problem}"
            return
        if measured is not None and self.prompt + new > measured.usable:
            yield f"{self.prompt + new:,} tokens: {measured.words()}"
        elif measured is not None and new > room:
            yield f"measured: the loss does not rise up to {measured.usable:,} tokens ({measured.protocol}, {measured.data})"


def write_stream(pieces: Iterable[str], write: Callable[[str], object]) -> tuple[int, float]:
    """Write each piece as it arrives; returns their number and the seconds they took.

    Raises:
        UserError: The model rejects the options or the length.
    """
    started, count = time.perf_counter(), 0
    try:
        for piece in pieces:
            write(piece)
            count += 1
    except ValueError as error:
        raise UserError(str(error)) from error
    return count, time.perf_counter() - started


def stream_text(
    net: TransformerWrapper,
    ids: list[int],
    tokenizer: Tokenizer | None,
    options: GenerateOptions,
    speculate: Speculate | None = None,
) -> Iterator[str]:
    """The text of each new token; "" while a character is incomplete."""
    end = tokenizer.document_end if tokenizer is not None else None
    decoder = None if tokenizer is None else tokenizer.decoder
    yield from stream_pieces(net, ids, () if end is None else (end,), decoder, options, speculate)


def stream_pieces(
    net: TransformerWrapper,
    ids: Sequence[int],
    ends: Sequence[int],
    decoder: Callable[[], StreamDecoder] | None,
    options: GenerateOptions,
    speculate: Speculate | None = None,
) -> Iterator[str]:
    """The text of each new token, or its id if there is no decoder; of several sequences, one after the other.

    Args:
        net: The model.
        ids: The prompt.
        ends: Ids that end the text.
        decoder: Makes a decoder of ids to text.
        options: How to sample.
        speculate: Where proposals come from, if tokens are proposed.
    """
    ends = ends if options.stop else ()
    prompt = torch.tensor([ids], device=next(net.parameters()).device)
    yield from text_of(AutoregressiveWrapper(net), (prompt,), ends, decoder, options, speculate)


def text_of(
    model: Any,
    inputs: tuple[torch.Tensor, ...],
    ends: Sequence[int],
    decoder: Callable[[], StreamDecoder] | None,
    options: GenerateOptions,
    speculate: Speculate | None,
) -> Iterator[str]:
    """The text that an AutoregressiveWrapper or XTransformer adds to its inputs; of several sequences, one after the other."""
    gap = ""
    for row in sequences(model, inputs, ends, options, speculate):
        for piece in decoded(row, ends, None if decoder is None else decoder()):
            yield gap + piece
            gap = ""
        gap = SEPARATOR


def sequences(
    model: Any,
    inputs: tuple[torch.Tensor, ...],
    ends: Sequence[int],
    options: GenerateOptions,
    speculate: Speculate | None,
) -> Iterator[Iterable[int]]:
    """The new ids of each sequence; those of a single one as they are drawn."""
    given = sampling(options, ends, speculate)
    if options.num_beams == 1 and options.num_return_sequences == 1:
        yield (int(token[0]) for token in model.stream(*inputs, options.length, **given))
        return
    given |= {"num_beams": options.num_beams, "num_return_sequences": options.num_return_sequences}
    yield from model.generate(*inputs, options.length, **given).tolist()


def sampling(options: GenerateOptions, ends: Sequence[int], speculate: Speculate | None) -> dict[str, Any]:
    """The options of the command line as those of `stream`."""
    names, filter_options = options.filters
    return {
        "eos_token": ends or None,
        "temperature": options.temperature,
        "filter_logits_fn": names or None,
        "filter_kwargs": filter_options or None,
        "cache_kv": options.cache,
        "compile": options.compile,
        "prefill_chunk_size": options.prefill_chunk_size,
        "speculate": speculate,
        "seed": options.seed,
    }


def decoded(row: Iterable[int], ends: Sequence[int], decoder: StreamDecoder | None) -> Iterator[str]:
    """The text of each id up to an end, or the ids if there is no decoder."""
    for number in row:
        if number in ends:
            break
        yield f" {number}" if decoder is None else decoder.feed(number)
    rest = "" if decoder is None else decoder.finish()
    if rest:
        yield rest


def load_net(checkpoint: Checkpoint, device: str, quantization: Quantization | None = None) -> TransformerWrapper:
    """The model of a checkpoint on `device`. Raises UserError if it cannot be quantized, or the device is unavailable."""
    device = resolve_device(device)
    config = parse_config(checkpoint.config_text(), str(checkpoint.path))
    if config.init is not None:
        net = load_source(open_source(checkpoint.path))
    else:
        tensors = checkpoint.model_tensors()
        wide = any(tensor.dtype == torch.float64 for tensor in tensors.values())  # run.precision=fp64
        net = build_model(config.model).to(torch.float64 if wide else None)
        load_model(net, tensors, checkpoint.path)
        net.eval()
    if quantization is not None:
        try:
            quantize(net, quantization)
        except ArgumentError as error:
            raise UserError(f"--quantize {quantization}: {error}") from error
    try:
        return net.to(device)
    except (RuntimeError, AssertionError) as error:  # torch raises either for an unavailable device
        raise UserError(f"--device {device} cannot be used: {error}") from error


def checkpoint_tokenizer(checkpoint: Checkpoint) -> Tokenizer | None:
    """The tokenizer of the run; None if it was trained on token ids."""
    name = checkpoint.entry("tokenizer")
    if name is None:
        return None
    tokenizer = load_tokenizer(str(checkpoint.verified(TOKENIZER)) if name == TOKENIZER else name)
    if "document_end" in checkpoint.trainer:  # older checkpoints do not name it
        tokenizer.document_end = checkpoint.entry("document_end")
    return tokenizer


def prompt_ids(prompt: str, tokenizer: Tokenizer | None) -> list[int]:
    """Ids of the prompt. An empty prompt starts a new document; without a tokenizer the prompt itself is ids."""
    if tokenizer is None:
        try:
            return [int(word) for word in prompt.replace(",", " ").split()] or [0]
        except ValueError as error:
            raise UserError(f"this model was trained on token ids, so --prompt must be token ids: {error}") from error
    ids = [int(token) for token in tokenizer.encode(prompt.encode())]
    if ids:
        return ids
    if tokenizer.document_end is None:
        raise UserError("--prompt is empty, and this tokenizer has no end-of-document token to start from")
    return [tokenizer.document_end]


def published_prompt_ids(tokenizer: TextTokenizer, prompt: str, chat: bool) -> list[int]:
    """Ids of the prompt, with `chat` inside the chat template. An empty prompt is the BOS token, or else the EOS token."""
    if chat:
        return tokenizer.encode_chat([{"role": "user", "content": prompt}])
    ids = tokenizer.encode(prompt)
    if ids:
        return ids
    start = tokenizer.special.get("bos_token", tokenizer.special.get("eos_token"))
    if start is None:
        raise UserError("--prompt is empty, and this tokenizer has neither a BOS nor an EOS token to start from")
    return tokenizer.encode(start, special=False)
