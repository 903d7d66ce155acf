"""`x-positional generate` with a published model: its tokenizer, its chat template, its text as it comes."""

import sys
import time
from pathlib import Path

from rich.console import Console

from x_positional.cli.published import loaded, opened
from x_positional.cli.sample import Sampling, device_of, stream_pieces
from x_positional.errors import UserError
from x_positional.models.language import TransformerWrapper
from x_positional.pretrained.tokenizers.text import TextTokenizer


def talk(path: Path, prompt: str, sampling: Sampling, *, chat: bool, device: str, dtype: str | None) -> None:
    """Write the continuation of a prompt, or the answer to it, to the standard output and the speed to the standard error."""
    console = Console(stderr=True)
    source = opened(path, console)
    words = source.tokenizer()
    ids = read_prompt(words, prompt, chat)
    model = loaded(source, console, dtype, device_of(device))
    if not (isinstance(model, TransformerWrapper) and model.has_head and model.config.layers.kind == "decoder"):
        raise UserError(f"{source.path} holds a {source.config['model_type']} model that gives no next token")
    if not chat:
        print(prompt, end="", flush=True)
    began, count = time.perf_counter(), 0
    try:
        for piece in stream_pieces(model, ids, words.ends, words.decoder(), sampling):
            print(piece, end="", flush=True)
            count += 1
    except ValueError as error:  # lengths and options that the model refuses
        raise UserError(str(error)) from error
    print(flush=True)
    seconds = time.perf_counter() - began
    print(f"[{count} tokens, {count / seconds:,.1f} tokens/s, {source.path.name}]", file=sys.stderr)
    if words.template is not None and not chat:
        print("[this model was trained to answer: --chat gives it the prompt as a question]", file=sys.stderr)


def read_prompt(words: TextTokenizer, prompt: str, chat: bool) -> list[int]:
    """Ids of the prompt. An empty one is what begins a text, where the model has that."""
    if chat:
        return words.encode_chat([{"role": "user", "content": prompt}])
    ids = words.encode(prompt)
    if ids:
        return ids
    start = words.special.get("bos_token", words.special.get("eos_token"))
    if start is None:
        raise UserError("--prompt is empty, and this model has no token that begins a text; give at least one word")
    return words.encode(start, special=False)
