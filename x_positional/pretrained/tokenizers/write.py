"""Write the tokenizer of a model beside its weights, as transformers reads it."""

import shutil
from pathlib import Path

from x_positional.pretrained.folder import Folder, read_json
from x_positional.pretrained.tensors.write import write_json
from x_positional.pretrained.tokenizers.text import GENERATION, TOKENIZER, TextTokenizer

COPIED = (
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    GENERATION,
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
)
"""Files of the tokenizer, copied unchanged."""


def write_tokenizer(tokenizer: TextTokenizer, target: Path, folder: Folder | None) -> None:
    """Write a tokenizer, its chat template and its end tokens to `target`.

    Args:
        tokenizer: What to write.
        target: An existing folder.
        folder: Where the tokenizer was read from, if that is a folder: its files are copied unchanged.
    """
    if folder is not None and TOKENIZER in folder.files:
        for name in COPIED:
            file = folder.find(name)
            if file is not None:
                shutil.copyfile(file, target / name)
    else:
        tokenizer.save(target)
    generation = read_json(target / GENERATION) if (target / GENERATION).exists() else {}
    if tokenizer.ends and generation.get("eos_token_id") is None:
        write_json(target / GENERATION, {**_ids(tokenizer), **generation, "eos_token_id": list(tokenizer.ends)})


def _ids(tokenizer: TextTokenizer) -> dict[str, int]:
    """The ids that `generate` of transformers begins and pads texts with, where there are such tokens."""
    tokens = {name: tokenizer.special.get(name) for name in ("bos_token", "pad_token")}
    ids = {f"{name}_id": tokenizer.backend.token_to_id(text) for name, text in tokens.items() if text is not None}
    return {name: number for name, number in ids.items() if number is not None}
