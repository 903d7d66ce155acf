"""Tokenizers and chat templates of folders: what is read, what is streamed, what is refused."""

import json
import random
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.support.published.compare import quietly
from tests.support.published.gguf_models import SPECIAL
from x_positional import load_tokenizer
from x_positional.errors import MissingExtra, PretrainedError
from x_positional.pretrained.folder import list_folder
from x_positional.pretrained.tokenizers.chat import ChatTemplate
from x_positional.pretrained.tokenizers.text import TextStream
from x_positional.pretrained.tokenizers.write import write_tokenizer

TEXT = "The quick brown fox jumps. naïve café 東京タワー 🎉👩‍👩‍👧 ¡Olé! \n\n  x = f(1)\tend. "
MESSAGES = [
    {"role": "user", "content": 'Hi <b>"there"</b>'},
    {"role": "assistant", "content": "é"},
    {"role": "user", "content": "More?"},
]


def byte_level() -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        [TEXT * 3],
        trainers.BpeTrainer(
            vocab_size=330,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=SPECIAL,
            show_progress=False,
        ),
    )
    return backend


def pieces_of_sentences() -> Tokenizer:
    """As SentencePiece does it: a mark for the space before each word, and bytes for what is not known."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    backend.train_from_iterator(
        ["The quick brown fox jumps. x = f(1) end. " * 3],
        trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False),
    )
    return backend


def word_pieces() -> Tokenizer:
    letters = "abcdefghijklmnopqrstuvwxyz=()"
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "the",
        "fox",
        "##es",
        "jump",
        "##s",
        ".",
        *letters,
        *(f"##{letter}" for letter in letters if letter != "s"),
    ]
    backend = Tokenizer(models.WordPiece({name: i for i, name in enumerate(vocabulary)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    backend.post_processor = processors.TemplateProcessing(
        single=["[CLS]", "$A", "[SEP]"], special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    backend.add_special_tokens(vocabulary[:4])
    return backend


def folder(path: Path, backend: Tokenizer | None, *, config: Any = None, **files: Any) -> Path:
    """A model's folder: files by name without `.json`, objects or text."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config or {}))
    if backend is not None:
        backend.save(str(path / "tokenizer.json"))
    for name, content in files.items():
        if isinstance(content, str):
            (path / f"{name}.jinja").write_text(content)
        else:
            (path / f"{name}.json").write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("make", [byte_level, pieces_of_sentences, word_pieces])
def test_pieces_of_a_stream_are_the_whole_text(make: Any, tmp_path: Path):
    words = load_tokenizer(folder(tmp_path, make()))
    ids = words.encode(TEXT)
    draw = random.Random(1)
    anything = [draw.randrange(words.backend.get_vocab_size()) for _ in range(300)]
    for sequence in (ids, ids * 3, anything, anything[7:], []):
        stream = words.decoder()
        pieces = [stream.feed(i) for i in sequence]
        for piece, sofar in zip(pieces, range(1, len(pieces) + 1), strict=True):
            whole = words.decode(sequence[:sofar])
            assert not piece.endswith("\N{REPLACEMENT CHARACTER}")
            assert "".join(pieces[:sofar]) == whole[: len("".join(pieces[:sofar]))]
        assert "".join(pieces) + stream.finish() == words.decode(sequence)


def test_no_half_character_is_ever_printed(tmp_path: Path):
    words = load_tokenizer(folder(tmp_path, byte_level()))
    text = "日本🎉é" * 5
    stream = words.decoder()
    said = "".join(stream.feed(i) for i in words.encode(text))
    assert said == text
    assert stream.finish() == ""
    half = words.encode("日")[:-1]
    cut = words.decoder()
    assert "".join(cut.feed(i) for i in half) == ""
    assert set(cut.finish()) == {"\N{REPLACEMENT CHARACTER}"}


def test_a_stream_decodes_few_ids_again():
    asked: list[int] = []

    def decode(ids: list[int]) -> str:
        asked.append(len(ids))
        return "".join(map(chr, ids))

    stream = TextStream(decode)
    assert "".join(stream.feed(97 + i % 26) for i in range(2000)) == "".join(chr(97 + i % 26) for i in range(2000))
    assert max(asked) == 2


def test_ids_are_those_of_transformers(tmp_path: Path):
    path = folder(tmp_path, word_pieces(), tokenizer_config={"tokenizer_class": "PreTrainedTokenizerFast"})
    theirs = quietly(transformers.PreTrainedTokenizerFast.from_pretrained, path)
    ours = load_tokenizer(path)
    assert ours.encode("The foxes jump.") == theirs("The foxes jump.").input_ids
    assert ours.encode("The fox", special=False) == theirs("The fox", add_special_tokens=False).input_ids == [4, 5]
    assert ours.decode([2, 4, 5, 3]) == "the fox"
    assert ours.decode([2, 4, 3], special=True) == "[CLS] the [SEP]"


def test_padding_and_cutting_left_in_a_file_are_not_followed(tmp_path: Path):
    backend = word_pieces()
    backend.enable_padding(length=20)
    backend.enable_truncation(max_length=4)
    ids = load_tokenizer(folder(tmp_path, backend)).encode("the fox jump the fox")
    assert ids == [2, 4, 5, 7, 4, 5, 3]


def test_special_tokens_and_ends_from_every_file(tmp_path: Path):
    settings = {"bos_token": {"content": "<|start|>", "lstrip": False}, "eos_token": "<|end|>", "pad_token": None}
    path = folder(
        tmp_path,
        byte_level(),
        config={"eos_token_id": 7},
        tokenizer_config=settings,
        generation_config={"eos_token_id": [9, 7]},
    )
    words = load_tokenizer(path)
    assert words.special == {"bos_token": "<|start|>", "eos_token": "<|end|>"}
    assert words.ends == (9, 7, SPECIAL.index("<|end|>"))


def test_the_ids_of_a_copied_tokenizer_are_named_for_generate(tmp_path: Path):
    """Also where the settings of generate that are copied name none; ids that they name are kept."""
    settings = {"bos_token": "<|start|>", "eos_token": "<|end|>", "pad_token": None}
    path = folder(tmp_path / "from", byte_level(), tokenizer_config=settings, generation_config={"temperature": 0.6})
    (tmp_path / "to").mkdir()
    write_tokenizer(load_tokenizer(path), tmp_path / "to", list_folder(path))
    found = json.loads((tmp_path / "to" / "generation_config.json").read_text())
    ends = [SPECIAL.index("<|end|>")]
    assert found == {"bos_token_id": SPECIAL.index("<|start|>"), "eos_token_id": ends, "temperature": 0.6}
    (path / "generation_config.json").write_text('{"eos_token_id": 9}')
    write_tokenizer(load_tokenizer(path), tmp_path / "to", list_folder(path))
    assert (tmp_path / "to" / "generation_config.json").read_text() == '{"eos_token_id": 9}'


TEMPLATES = {
    "plain": "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m['content'] | trim }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}",
    "blocks": "{% for m in messages %}\n    {% if m['role'] == 'user' %}\nU: {{ m['content'] }}\n    {% else %}\n"
    "{% generation %}A: {{ m['content'] }}\n{% endgeneration %}\n    {% endif %}\n{% endfor %}\n",
    "json": "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m | tojson }}{% endfor %}"
    "{{ tools | tojson(indent=2) if tools else 'none' }}",
    "date": "{{ strftime_now('%Y') }}{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% endfor %}{{ ns.n }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_give_the_text_of_transformers(name: str, tmp_path: Path):
    settings = {"bos_token": "<|start|>", "eos_token": "<|end|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    path = folder(tmp_path, byte_level(), tokenizer_config=settings, chat_template=TEMPLATES[name])
    ours, theirs = load_tokenizer(path), quietly(transformers.PreTrainedTokenizerFast.from_pretrained, path)
    for reply in (True, False):
        for words in ({}, {"tools": [{"type": "function", "function": {"name": "f", "description": "<é>"}}]}):
            expected = theirs.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=reply, **words)
            assert ours.chat(MESSAGES, reply=reply, **words) == expected
    assert ours.encode_chat(MESSAGES) == theirs.apply_chat_template(MESSAGES, add_generation_prompt=True)["input_ids"]


def test_the_year_is_this_year():
    assert ChatTemplate("{{ strftime_now('%Y') }}", {}, "here").render([]) == str(datetime.now().year)


@pytest.mark.parametrize(
    ("settings", "file", "expected"),
    [
        ({"chat_template": "key"}, None, "key"),
        ({"chat_template": "key"}, "file", "file"),
        ({"chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]}, None, "d"),
        ({"chat_template": [{"name": "rag", "template": "r"}]}, None, "r"),
    ],
)
def test_where_a_template_is_found(settings: dict[str, Any], file: str | None, expected: str, tmp_path: Path):
    files = {} if file is None else {"chat_template": file}
    words = load_tokenizer(folder(tmp_path, byte_level(), tokenizer_config=settings, **files))
    assert words.chat([]) == expected


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{{ raise_exception('roles must take turns') }}",
        "{{ 1 + 'a' }}",
        "{% for %}",
        "{{ messages[7].content.x }}",
        "{{ 1 / 0 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_templates_reach_nothing_and_their_faults_are_said(text: str):
    messages = list(MESSAGES)
    with pytest.raises(PretrainedError, match="chat template of somewhere failed"):
        ChatTemplate(text, {}, "somewhere").render(messages)
    assert messages == MESSAGES


def test_what_raise_exception_says_is_passed_on():
    with pytest.raises(PretrainedError, match="roles must take turns"):
        ChatTemplate("{{ raise_exception('roles must take turns') }}", {}, "x").render([])


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(PretrainedError, match=r"tokenizer\.json is missing"):
        load_tokenizer(folder(tmp_path / "a", None))
    (folder(tmp_path / "b", None) / "tokenizer.model").write_bytes(b"0")
    with pytest.raises(PretrainedError, match=r"tokenizer\.model but no tokenizer\.json.*save_pretrained"):
        load_tokenizer(tmp_path / "b")
    (folder(tmp_path / "c", None) / "tokenizer.json").write_text("{}")
    with pytest.raises(PretrainedError, match=r"tokenizer\.json cannot be read"):
        load_tokenizer(tmp_path / "c")
    words = load_tokenizer(folder(tmp_path / "d", byte_level(), chat_template="x"))
    with pytest.raises(PretrainedError, match="has no chat template"):
        load_tokenizer(folder(tmp_path / "e", byte_level())).chat(MESSAGES)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtra, match=r"chat templates need jinja2: pip install 'x-positional\[pretrained\]'"):
        words.chat(MESSAGES)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(
        MissingExtra, match=r"tokenizer.json needs tokenizers: pip install 'x-positional\[pretrained\]'"
    ):
        load_tokenizer(tmp_path / "d")


def test_added_tokens_survive(tmp_path: Path):
    backend = byte_level()
    backend.add_tokens([AddedToken("<|tool|>", normalized=False)])
    words = load_tokenizer(folder(tmp_path, backend))
    assert len(words.encode("<|tool|>")) == 1
