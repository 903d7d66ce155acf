"""Write the tokenizer of a model beside its weights, as transformers reads it."""

import shutil
from pathlib import Path

from x_positional.pretrained.folder import Folder
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
    if tokenizer.ends and not (target / GENERATION).exists():
        write_json(target / GENERATION, {"eos_token_id": list(tokenizer.ends)})
