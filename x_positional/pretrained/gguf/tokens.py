"""The tokenizer in the metadata of a GGUF file: its vocabulary, its merges, and how it splits text."""

from dataclasses import dataclass
from typing import Any

from x_positional.errors import PretrainedError, did_you_mean, import_extra
from x_positional.pretrained.gguf.file import GgufFile
from x_positional.pretrained.tokenizers.chat import ChatTemplate
from x_positional.pretrained.tokenizers.text import TextTokenizer, tokenizer_error

BYTE_PAIRS = "gpt2"
"""The `tokenizer.ggml.model` of byte-level BPE, in files of every architecture."""
CONTROL, USER_DEFINED = 3, 4
"""Values of `tokenizer.ggml.token_type`: a special token, and a token that is never split."""
PREFIX = "tokenizer.ggml."
SPECIAL = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "sep_token": "seperator",
    "pad_token": "padding",
    "mask_token": "mask",
}
"""Name in tokenizer_config.json -> name in the metadata."""
END_TOKENS = ("eos", "eot", "eom")


@dataclass(frozen=True)
class Splitting:
    """How text is split into pieces before merging."""

    patterns: tuple[str, ...]
    """Regular expressions, applied in order; each splits the pieces of the previous one."""
    ignore_merges: bool = False
    """Whether a piece that is in the vocabulary is taken as it is."""
    add_bos: bool = False
    """Whether a text begins with the bos token if the file does not specify it."""
    nfc: bool = False
    """Whether text is normalised to NFC first."""


WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2 = Splitting((WORDS,))
DIGITS = Splitting((r"\p{N}", WORDS))
LLAMA3 = Splitting((GPT4.format(digits=r"\p{N}{1,3}"),), ignore_merges=True, add_bos=True)
QWEN2 = Splitting((GPT4.format(digits=r"\p{N}"),), nfc=True)
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
    """The tokenizer of a file. Raises PretrainedError with the reason why it cannot be rebuilt."""
    tokenizers = import_extra("tokenizers", "the tokenizer of a GGUF file needs", "pretrained")
    names = file.get(f"{PREFIX}tokens") or []
    whole = file.get("tokenizer.huggingface.json")
    try:
        backend = tokenizers.Tokenizer.from_str(whole) if whole else _byte_pairs(file, names)
    except PretrainedError:
        raise
    except BaseException as error:
        raise tokenizer_error(f"the tokenizer of {file.source} cannot be rebuilt:", error) from error
    ids = {name: file.get(f"{PREFIX}{key}_token_id") for name, key in SPECIAL.items()}
    special = {name: names[i] for name, i in ids.items() if i is not None and 0 <= i < len(names)}
    ends = [file.get(f"{PREFIX}{name}_token_id") for name in END_TOKENS]
    template = file.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise _unsupported(file, f"tokenizer.chat_template is a {type(template).__name__}; it must be a string.")
    return TextTokenizer(
        backend,
        special,
        tuple(dict.fromkeys(i for i in ends if i is not None)),
        None if template is None else ChatTemplate(template, special, file.source),
        file.source,
    )


def _byte_pairs(file: GgufFile, names: list[str]) -> Any:
    """Byte-level BPE, with bytes written as letters, as in GPT-2."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    splitting = _splitting(file)
    merges = [
        (merge[0] + first, second)
        for merge in file.get(f"{PREFIX}merges") or []
        for first, _, second in [merge[1:].partition(" ")]
    ]
    vocabulary = {name: i for i, name in enumerate(names)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=splitting.ignore_merges))
    splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in splitting.patterns]
    backend.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    if splitting.nfc:
        backend.normalizer = normalizers.NFC()  # type: ignore[assignment]
    kinds = file.get(f"{PREFIX}token_type") or []
    marked = [(name, kind) for name, kind in zip(names, kinds, strict=False) if kind in (CONTROL, USER_DEFINED)]
    backend.add_tokens([AddedToken(name, normalized=False, special=kind == CONTROL) for name, kind in marked])
    around = []
    for place, default in (("bos", splitting.add_bos), ("eos", False)):
        i = file.get(f"{PREFIX}{place}_token_id")
        if i is not None and file.get(f"{PREFIX}add_{place}_token", default):
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
        raise _unsupported(
            file,
            f"unsupported tokenizer.ggml.model={model!r}: only 'gpt2' (byte-level BPE) can be rebuilt exactly. The model itself "
            "loads: use the tokenizer.json of the original model, and pass token ids.",
        )
    if pre in SPLITTINGS:
        return SPLITTINGS[pre]
    if pre is None:
        raise _unsupported(
            file, "tokenizer.ggml.pre is missing, which specifies how text is split. Older converters omitted it."
        )
    raise _unsupported(
        file, f"unsupported tokenizer.ggml.pre={pre!r} (how text is split); {did_you_mean(str(pre), SPLITTINGS)}"
    )


def _unsupported(file: GgufFile, reason: str) -> PretrainedError:
    return PretrainedError(f"the tokenizer of {file.source} cannot be rebuilt:", [reason])
