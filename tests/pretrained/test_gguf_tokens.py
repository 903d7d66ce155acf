"""Tokenizers out of GGUF metadata: the ids of those that the vocabularies come from."""

from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tests.support.published.compare import quietly
from tests.support.published.gguf_models import CHAT, MERGES, SPECIAL, VOCABULARY, llama, write_gguf
from x_positional import load_tokenizer
from x_positional.errors import PretrainedError

TEXTS = [
    "hello world",
    "  hello 12 1212 hello's HELLO'S\n\n x",
    "naïve cafe\u0301 東京 🎉🎉\t\t",
    "a<|end|>b <think>hello</think>",
    "def f(x):\r\n    return x**2 # 123456  \n",
    "",
    " ",
    "١٢ ½ ²",
]


def tokenizer(folder: Path, **more: Any):
    written = {f"tokenizer.ggml.{key}": value for key, value in more.items()}
    return load_tokenizer(write_gguf(folder / "model.gguf", llama(), more=written))


def peer(pre: str) -> Tokenizer:
    """The pre-tokenizer of the families that each name stands for, out of the parts that their own files name."""
    merges = [tuple(merge.split(" ")) for merge in MERGES]
    vocabulary = {name: i for i, name in enumerate(VOCABULARY)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    parts = {"gpt-2": [level], "smollm": [pre_tokenizers.Digits(individual_digits=True), level]}
    backend.pre_tokenizer = pre_tokenizers.Sequence(parts[pre])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    return backend


@pytest.mark.parametrize("pre", ["gpt-2", "smollm"])
def test_ids_are_those_of_the_parts(pre: str, tmp_path: Path):
    ours, theirs = tokenizer(tmp_path, pre=pre), peer(pre)
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text).ids
        assert ours.decode(ours.encode(text), special=True) == text


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2", "gpt-2"])
def test_ids_are_those_that_transformers_reads(pre: str, tmp_path: Path):
    ours = tokenizer(tmp_path, pre=pre, add_bos_token=False)
    theirs = quietly(transformers.AutoTokenizer.from_pretrained, tmp_path, gguf_file="model.gguf")
    for text in TEXTS:
        if pre == "qwen2" and "e\u0301" in text:
            continue  # Qwen's own files compose characters first, and that reader does not
        assert ours.encode(text) == theirs(text, add_special_tokens=False).input_ids, text


def test_digits_are_cut_as_the_name_says(tmp_path: Path):
    twelve = VOCABULARY.index("12")
    assert twelve in tokenizer(tmp_path, pre="gpt-2").encode("12")
    assert twelve in tokenizer(tmp_path, pre="llama-bpe").encode("12")
    assert twelve not in tokenizer(tmp_path, pre="smollm").encode("12")
    assert twelve not in tokenizer(tmp_path, pre="qwen2").encode("12")


def test_qwen_composes_characters(tmp_path: Path):
    qwen, gpt2 = tokenizer(tmp_path, pre="qwen2"), tokenizer(tmp_path, pre="gpt-2")
    assert qwen.encode("e\u0301") == qwen.encode("\u00e9") == gpt2.encode("\u00e9") != gpt2.encode("e\u0301")


def test_a_word_that_is_a_token_needs_no_merges(tmp_path: Path):
    names = [*VOCABULARY, "world"]
    kinds = [3, 3, 4] + [1] * (len(names) - 3)
    given = {"tokens": names, "token_type": kinds, "add_bos_token": False}
    assert tokenizer(tmp_path, pre="llama-bpe", **given).encode("world") == [len(names) - 1]
    assert len(tokenizer(tmp_path, pre="gpt-2", **given).encode("world")) == 5


@pytest.mark.parametrize(
    ("given", "start", "end"),
    [
        ({"pre": "smollm"}, [], []),
        ({"pre": "llama-bpe"}, [0], []),
        ({"pre": "llama-bpe", "add_bos_token": False}, [], []),
        ({"pre": "smollm", "add_bos_token": True, "add_eos_token": True}, [0], [1]),
    ],
)
def test_texts_begin_and_end_as_the_file_says(given: dict[str, Any], start: list[int], end: list[int], tmp_path: Path):
    words = tokenizer(tmp_path, **given)
    assert words.encode("hello") == [*start, VOCABULARY.index("hello"), *end]
    assert words.encode("hello", special=False) == [VOCABULARY.index("hello")]


def test_special_tokens_and_the_template(tmp_path: Path):
    words = tokenizer(tmp_path, eot_token_id=2)
    assert words.special == {"bos_token": "<|start|>", "eos_token": "<|end|>", "pad_token": "<|end|>"}
    assert words.ends == (1, 2)
    assert words.template is not None
    assert words.template.text == CHAT
    ids = words.encode_chat([{"role": "user", "content": "hello"}])
    assert words.decode(ids, special=True) == "<|start|>user\nhello<|end|>\n<|start|>assistant\n"
    assert [i for i in ids if i < 2] == [0, 1, 0]
    assert words.decode(words.encode("<think><|end|>")) == "<think>"  # kept whole, but no special token


def test_a_whole_tokenizer_json_inside_wins(tmp_path: Path):
    inside = peer("gpt-2").to_str()
    path = write_gguf(tmp_path / "model.gguf", llama(), more={"tokenizer.huggingface.json": inside})
    assert VOCABULARY.index("12") in load_tokenizer(path).encode("12")


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"model": "llama"}, ["model='llama': only 'gpt2'", "The model itself loads"]),
        ({"model": "bert"}, ["model='bert'"]),
        ({"model": None}, ["model=None"]),
        ({"pre": None}, ["pre is missing"]),
        ({"pre": "smolm"}, ["pre='smolm'", "'smollm'"]),
        ({"merges": ["q q"]}, ["out of vocabulary"]),
    ],
)
def test_what_cannot_be_rebuilt_is_refused(given: dict[str, Any], parts: list[str], tmp_path: Path):
    with pytest.raises(PretrainedError, match="cannot be rebuilt") as caught:
        tokenizer(tmp_path, **given)
    for part in parts:
        assert part in str(caught.value)


def test_it_is_written_as_transformers_reads_it(tmp_path: Path):
    ours = tokenizer(tmp_path, pre="llama-bpe")
    ours.save(tmp_path / "folder")
    theirs = quietly(transformers.AutoTokenizer.from_pretrained, tmp_path / "folder")
    again = load_tokenizer(tmp_path / "folder")
    messages = [{"role": "user", "content": "hello 12"}]
    for text in TEXTS:
        assert theirs(text).input_ids == again.encode(text) == ours.encode(text)
    assert theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == ours.chat(messages)
    assert again.chat(messages) == ours.chat(messages)
    assert (again.special, theirs.eos_token, theirs.bos_token) == (ours.special, "<|end|>", "<|start|>")
