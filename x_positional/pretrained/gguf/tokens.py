"""The tokenizer that a GGUF file holds: its vocabulary, its merges and how it splits text, as metadata."""

from dataclasses import dataclass
from typing import Any

from x_positional.errors import PretrainedError, did_you_mean
from x_positional.pretrained.extras import needed
from x_positional.pretrained.gguf.file import GgufFile
from x_positional.pretrained.tokenizers.chat import ChatTemplate
from x_positional.pretrained.tokenizers.text import TextTokenizer

BYTE_PAIRS = "gpt2"
"""The `tokenizer.ggml.model` of byte pairs, whatever the model around them is."""
CONTROL, USER_DEFINED = 3, 4
"""Values of `tokenizer.ggml.token_type`: a special token, and one that is always kept whole."""
PREFIX = "tokenizer.ggml."
SPECIAL = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "sep_token": "seperator",
    "pad_token": "padding",
    "mask_token": "mask",
}
"""Theirs in a folder -> here."""
ENDS = ("eos", "eot", "eom")


@dataclass(frozen=True)
class Splitting:
    """How text is cut before merging: each pattern cuts the pieces of the one before. whole: a piece that is a token is
    taken as it is. begins: a text begins with the bos token unless the file says otherwise. composed: NFC first."""

    patterns: tuple[str, ...]
    whole: bool = False
    begins: bool = False
    composed: bool = False


WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2 = Splitting((WORDS,))
DIGITS = Splitting((r"\p{N}", WORDS))
LLAMA3 = Splitting((GPT4.format(digits=r"\p{N}{1,3}"),), whole=True, begins=True)
QWEN2 = Splitting((GPT4.format(digits=r"\p{N}"),), composed=True)
SPLITTINGS = {
    "gpt-2": GPT2,
    "mpt": GPT2,
    "olmo": GPT2,
    "phi-2": GPT2,
    "smollm": DIGITS,
    "starcoder": DIGITS,
    "refact": DIGITS,
    "command-r": DIGITS,
    "codeshell": DIGITS,
    "llama-bpe": LLAMA3,
    "llama3": LLAMA3,
    "llama-v3": LLAMA3,
    "qwen2": QWEN2,
    "deepseek-r1-qwen": QWEN2,
}
"""By `tokenizer.ggml.pre`."""


def gguf_tokenizer(file: GgufFile) -> TextTokenizer:
    """The tokenizer of a file. Raises PretrainedError with the reason why it cannot be built."""
    tokenizers = needed("tokenizers", "tokenizers of GGUF files need")
    names = file.get(f"{PREFIX}tokens") or []
    whole = file.get("tokenizer.huggingface.json")
    try:
        backend = tokenizers.Tokenizer.from_str(whole) if whole else _byte_pairs(file, names)
    except PretrainedError:
        raise
    except Exception as error:  # the package raises bare Exception for every malformed vocabulary
        raise _refused(file, f"the package tokenizers says: {error}") from error
    ids = {ours: file.get(f"{PREFIX}{theirs}_token_id") for ours, theirs in SPECIAL.items()}
    special = {name: names[i] for name, i in ids.items() if i is not None and i < len(names)}
    ends = [file.get(f"{PREFIX}{name}_token_id") for name in ENDS]
    template = file.get("tokenizer.chat_template")
    return TextTokenizer(
        backend,
        special,
        tuple(dict.fromkeys(i for i in ends if i is not None)),
        None if template is None else ChatTemplate(template, special, file.source),
        file.source,
    )


def _byte_pairs(file: GgufFile, names: list[str]) -> Any:
    """Byte pair encoding over bytes that are written as letters, as GPT-2 began it."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    splitting = _splitting(file)
    merges = [
        (merge[0] + first, second)
        for merge in file.get(f"{PREFIX}merges") or []
        for first, _, second in [merge[1:].partition(" ")]
    ]
    vocabulary = {name: i for i, name in enumerate(names)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=splitting.whole))
    cuts = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in splitting.patterns]
    backend.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    if splitting.composed:
        backend.normalizer = normalizers.NFC()  # type: ignore[assignment]
    kinds = file.get(f"{PREFIX}token_type") or []
    marked = [(name, kind) for name, kind in zip(names, kinds, strict=False) if kind in (CONTROL, USER_DEFINED)]
    backend.add_tokens([AddedToken(name, normalized=False, special=kind == CONTROL) for name, kind in marked])
    around = []
    for place, name, usual in (("bos", "bos", splitting.begins), ("eos", "eos", False)):
        i = file.get(f"{PREFIX}{name}_token_id")
        if i is not None and file.get(f"{PREFIX}add_{place}_token", usual):
            around.append((place, names[i], i))
    if around:
        before = [token for place, token, _ in around if place == "bos"]
        after = [token for place, token, _ in around if place == "eos"]
        backend.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
            single=[*before, "$A", *after], special_tokens=[(token, i) for _, token, i in around]
        )
    return backend


def _splitting(file: GgufFile) -> Splitting:
    model, pre = file.get(f"{PREFIX}model"), file.get(f"{PREFIX}pre")
    if model != BYTE_PAIRS:
        raise _refused(
            file,
            f"tokenizer.ggml.model={model!r}: only 'gpt2', byte pairs with their merges, can be rebuilt exactly. "
            "The model itself loads; take tokenizer.json from where it was published, and give ids.",
        )
    if pre in SPLITTINGS:
        return SPLITTINGS[pre]
    if pre is None:
        raise _refused(
            file, "tokenizer.ggml.pre is missing, so nothing says how text is split. Older converters left it out."
        )
    raise _refused(
        file, f"tokenizer.ggml.pre={pre!r}: how it splits text is not known here; {did_you_mean(str(pre), SPLITTINGS)}"
    )


def _refused(file: GgufFile, reason: str) -> PretrainedError:
    return PretrainedError(f"the tokenizer of {file.source} cannot be built:", [reason])
