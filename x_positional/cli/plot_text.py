"""`x-positional plot --text`: what a trained model attends to in a text.

H heads, T tokens.
"""

import sys
from functools import partial
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from x_positional.cli.generate import checkpoint_tokenizer, load_net, prompt_ids
from x_positional.cli.published import checkpoint_of, is_published, loaded, opened
from x_positional.errors import ArgumentError, UserError
from x_positional.models.language import TransformerWrapper
from x_positional.plotting.draw_attention import TextMaps, draw_attention
from x_positional.plotting.gallery import write_page
from x_positional.pretrained.tokenizers.text import TextStream, TextTokenizer
from x_positional.schemes.base import lowest_limit
from x_positional.training.cpu import resolve_device
from x_positional.training.data.tokenizer import StreamDecoder

FOLDER = Path("plots")
MOST_BYTES = 2**30
"""Of the maps of all layers and heads; more tokens than fit are left out, with a note."""


def plot_text(source: Path, text: str, layer: int | None, head: int | None, out: Path | None) -> None:
    """Draw the attention maps of a text and print the names of the files.

    Args:
        source: Run folder, checkpoint or published model.
        text: The text; "-" reads it from stdin.
        layer: From 1; None is every layer.
        head: From 1; None is every head.
        out: Folder for the files. Default: `plots/` and the name of `source`.

    Raises:
        UserError, PretrainedError: The model or the text does not fit.
        MissingExtra: matplotlib is not installed.
    """
    if source.suffix in (".yaml", ".yml"):
        raise UserError(
            f"--text needs trained weights, and {source} is a config. Pass the folder of a run, or a published model"
        )
    text = _read(text)
    net, ids, decoder = _published(source, text) if is_published(source) else _trained(source, text)
    kept = ids[: _most_tokens(net)]
    if len(kept) < len(ids):
        print(f"[the text has {len(ids)} tokens; the first {len(kept)} are plotted]", file=sys.stderr)
    try:
        picture = draw_attention(maps_of(net, kept, decoder), layer, head)
    except ArgumentError as error:
        raise UserError(f"--{error}") from error
    folder = out or FOLDER / (source.resolve().stem if source.is_file() else source.name)
    folder.mkdir(parents=True, exist_ok=True)
    file, page = folder / f"{picture.name}.png", folder / f"{picture.name}.html"
    file.write_bytes(picture.png)
    facts = f"{len(kept)} tokens. Layers and heads are numbered from 1."
    write_page(page, f"Attention of {folder.name}", facts, [picture])
    print(file)
    print(f"{page} explains it")


def maps_of(net: TransformerWrapper, ids: list[int], decoder: StreamDecoder | None) -> TextMaps:
    """What the model attends to in a text of these ids. decoder: None for a model without a tokenizer."""
    tokens = torch.tensor([ids], device=next(net.parameters()).device)
    try:
        with torch.inference_mode():
            _, maps = net(tokens, return_embeddings=True, return_attention=True)
    except ValueError as error:
        raise UserError(str(error)) from error
    names = [str(number) if decoder is None else decoder.feed(number) for number in ids]
    return TextMaps([found[0].float().cpu() for found in maps], names)


def _read(text: str) -> str:
    """The text, read from stdin for "-". Raises UserError where it is empty or not UTF-8."""
    try:
        text = sys.stdin.read() if text == "-" else text
        text.encode()  # bytes that are not UTF-8 arrive as lone surrogates
    except UnicodeError as error:
        raise UserError("the text is not valid UTF-8; convert it first") from error
    if not text.strip():
        raise UserError("--text is empty, so there is nothing to attend to")
    return text


def _trained(source: Path, text: str) -> tuple[TransformerWrapper, list[int], StreamDecoder | None]:
    """The model of a run, the text as its ids, and what names them."""
    checkpoint = checkpoint_of(source)
    net, tokenizer = load_net(checkpoint, "auto"), checkpoint_tokenizer(checkpoint)
    if tokenizer is None:
        return net, prompt_ids(text, None), None
    return net, prompt_ids(text, tokenizer), tokenizer.decoder()


def _published(source: Path, text: str) -> tuple[TransformerWrapper, list[int], StreamDecoder]:
    """The same of a published model, whose special tokens are shown too."""
    console = Console(stderr=True)
    found = opened(source, console)
    tokenizer: TextTokenizer = found.tokenizer()
    net: Any = loaded(found, console, None, resolve_device("auto"))
    if not isinstance(net, TransformerWrapper):
        raise UserError(
            f"{source} is a {found.config['model_type']} model, whose attention maps --text does not draw: it needs a decoder or "
            "an encoder of text. In Python, pass return_attention=True to the model"
        )
    return net, tokenizer.encode(text), TextStream(partial(tokenizer.decode, special=True))


def _most_tokens(net: TransformerWrapper) -> int:
    """How many tokens the scheme supports, and the maps of all layers have room for."""
    layers = net.attn_layers
    room = isqrt(MOST_BYTES // (4 * len(layers.blocks) * layers.dims.heads))
    limit = lowest_limit(layers.position_schemes)
    return room if limit is None else min(room, limit)
