"""Models of strangers: whatever a file contains, loading it ends soon, in a PretrainedError or with the model."""

import json
import os
import shutil
import socket
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.support.published.compare import quietly
from tests.support.published.decoders_llama import LLAMA
from tests.support.published.gguf_models import llama, write_gguf
from x_positional import Decoder, PretrainedError, TransformerWrapper, from_pretrained, load_tokenizer


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    quietly(transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)).save_pretrained, root / "hf")
    layers = Decoder(dim=16, depth=1, heads=2, attn_dim_head=8, position={"kind": "dynamic", "depth": 2})
    TransformerWrapper(num_tokens=16, max_seq_len=8, attn_layers=layers).save_pretrained(root / "native")
    write_gguf(root / "tiny.gguf", llama())
    return root


def copied(whole: Path, name: str, tmp_path: Path) -> Path:
    source = whole / name
    if source.is_file():
        return Path(shutil.copy(source, tmp_path / name))
    return Path(shutil.copytree(source, tmp_path / name))


def refused(path: Path, word: str = "") -> None:
    """Refused in time and without memory that grows with what the file claims."""
    tracemalloc.start()
    started = time.process_time()
    with pytest.raises(PretrainedError) as error:
        from_pretrained(path)
    taken, (_, peak) = time.process_time() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert word in str(error.value), str(error.value)
    assert "http" not in str(error.value)
    assert taken < 2  # tracemalloc alone makes it several times slower
    assert peak < 100 << 20


CLAIMS = {
    "num_hidden_layers": (20_000, 1_000_000, 10**12, 10**400),
    "num_attention_heads": (10**8, 10**400),
    "num_key_value_heads": (10**8,),
    "vocab_size": (10**12, 2**63, 10**400),
    "hidden_size": (10**9, 10**18),
    "intermediate_size": (10**12,),
    "head_dim": (10**9,),
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in CLAIMS.items() for value in values])
def test_a_config_that_claims_more_than_its_tensors(key: str, value: int, whole: Path, tmp_path: Path):
    path = copied(whole, "hf", tmp_path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, key: value}))
    refused(path, f"{key}={value}")


@pytest.mark.parametrize(
    ("place", "value", "word"),
    [
        (("layers", "depth"), 20_000, "layers.depth=20000, but the checkpoint has only"),
        (("layers", "heads"), 10**8, "layers.heads=100000000, but the longest axis"),
        (("num_tokens",), 10**12, "num_tokens=1000000000000"),
        (("layers", "position", 0, "depth"), 10**6, "layers.position.depth=1000000"),
        (("layers", "position", 0, "dim"), 10**9, "layers.position.dim=1000000000"),
        (("layers",), 7, "config.json"),
        (("layers",), [[[[]]]], "config.json"),
    ],
)
def test_a_native_config_that_claims_more_than_its_tensors(
    place: tuple[Any, ...], value: Any, word: str, whole: Path, tmp_path: Path
):
    path = copied(whole, "native", tmp_path)
    config = json.loads((path / "config.json").read_text())
    at = config["model"]
    for step in place[:-1]:
        at = at[step]
    at[place[-1]] = value
    (path / "config.json").write_text(json.dumps(config))
    refused(path, word)


def patched(path: Path, key: str, form: str, value: Any) -> Path:
    """The same GGUF file with another number for a key."""
    data = bytearray(path.read_bytes())
    place = data.find(key.encode()) + len(key) + 4
    data[place : place + struct.calcsize(form)] = struct.pack(form, value)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("key", "form", "value", "word"),
    [
        ("llama.block_count", "<I", 10**5, "num_hidden_layers=100000, but the checkpoint has only"),
        ("llama.block_count", "<I", 2**32 - 1, "num_hidden_layers=4294967295"),
        ("llama.block_count", "<I", 0, "llama.block_count=0 must be a positive integer"),
        ("llama.attention.head_count", "<I", 2**32 - 1, "head_count=4294967295 exceeds the width 64"),
        ("llama.attention.head_count", "<I", 0, "head_count=0 must be a positive integer"),
        ("llama.attention.head_count", "<I", 3, "heads=3"),
        ("llama.attention.head_count_kv", "<I", 2**32 - 1, "num_key_value_heads=4294967295"),
        ("llama.embedding_length", "<I", 2**32 - 1, "hidden_size=4294967295"),
        ("llama.rope.dimension_count", "<I", 2**32 - 1, ""),
        ("llama.rope.dimension_count", "<I", 0, "dimension_count=0"),
        ("llama.rope.freq_base", "<f", float("nan"), "freq_base=nan"),
        ("llama.attention.layer_norm_rms_epsilon", "<f", float("inf"), "epsilon=inf"),
        ("tokenizer.ggml.tokens", "<I", 9, ""),
        ("tokenizer.ggml.tokens", "<IQ", (9, 2**60), ""),
        ("tokenizer.ggml.token_type", "<IQ", (5, 2**60), ""),
        ("tokenizer.ggml.tokens", "<IQ", (77, 2), ""),
    ],
)
def test_a_gguf_file_that_claims_more_than_its_tensors(
    key: str, form: str, value: Any, word: str, whole: Path, tmp_path: Path
):
    path = copied(whole, "tiny.gguf", tmp_path)
    if isinstance(value, tuple):
        data = bytearray(path.read_bytes())
        place = data.find(key.encode()) + len(key) + 4
        data[place : place + struct.calcsize(form)] = struct.pack(form, *value)
        path.write_bytes(data)
    else:
        patched(path, key, form, value)
    refused(path, word)


@pytest.mark.parametrize("offset", [8, 16])
@pytest.mark.parametrize("count", [2**64 - 1, 2**40, 10**6])
def test_counts_of_a_gguf_header(offset: int, count: int, whole: Path, tmp_path: Path):
    path = copied(whole, "tiny.gguf", tmp_path)
    data = bytearray(path.read_bytes())
    data[offset : offset + 8] = struct.pack("<Q", count)
    path.write_bytes(data)
    refused(path, "truncated" if count != 10**6 else "")


def test_tensors_of_a_gguf_file_that_overlap(whole: Path, tmp_path: Path):
    path = copied(whole, "tiny.gguf", tmp_path)
    data = bytearray(path.read_bytes())
    place = data.find(b"blk.1.ffn_up.weight") + len("blk.1.ffn_up.weight") + 4 + 16 + 4
    data[place : place + 8] = struct.pack("<Q", 0)
    path.write_bytes(data)
    refused(path, "overlap")


def fifo(path: Path) -> None:
    os.mkfifo(path)


def bound(path: Path) -> None:
    socket.socket(socket.AF_UNIX).bind(os.path.relpath(path))


SPECIAL: dict[str, Callable[[Path], None]] = {
    "fifo": fifo,
    "socket": bound,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "folder": Path.mkdir,
    "loop": lambda path: path.symlink_to(path.name),
}


@pytest.mark.skipif(os.name == "nt", reason="POSIX files")
@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "x.gguf",
        "tokenizer.json",
        "chat_template.jinja",
    ],
)
def test_nothing_but_regular_files_is_opened(kind: str, name: str, whole: Path, tmp_path: Path, monkeypatch: Any):
    path = copied(whole, "hf", tmp_path)
    (path / name).unlink(missing_ok=True)
    monkeypatch.chdir(path)  # names of sockets are short
    if name == "x.gguf":
        (path / "config.json").unlink()
    if name == "chat_template.jinja":
        write_tokenizer(path)
    SPECIAL[kind](path / name)
    with pytest.raises(PretrainedError, match="cannot be read"):
        (load_tokenizer if name in ("tokenizer.json", "chat_template.jinja") else from_pretrained)(path)
    if kind != "folder" and name == "config.json":
        with pytest.raises(PretrainedError, match=r"not a regular file|no such file"):
            from_pretrained(path / name)


def write_tokenizer(path: Path) -> None:
    from x_positional.pretrained.tokenizers.text import byte_tokenizer

    byte_tokenizer().save(path)


def test_links_stay_in_the_folder_or_in_the_cache_of_the_hub(whole: Path, tmp_path: Path):
    hub = tmp_path / "models--a--b"
    snapshot, blobs = hub / "snapshots" / "0123", hub / "blobs"
    snapshot.mkdir(parents=True)
    shutil.copytree(whole / "hf", blobs)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    tokens = torch.arange(9)[None] + 1
    assert torch.equal(from_pretrained(snapshot)(tokens), from_pretrained(whole / "hf")(tokens))
    (tmp_path / "link").symlink_to(whole / "hf")
    assert torch.equal(from_pretrained(tmp_path / "link")(tokens), from_pretrained(whole / "hf")(tokens))
    for name in ("config.json", "model.safetensors"):
        path = copied(whole, "hf", tmp_path)
        (path / name).rename(tmp_path / name)
        (path / name).symlink_to(tmp_path / name)
        refused(path, "outside of the folder")
        shutil.rmtree(path)


JSONS = {
    "empty": b"",
    "a number": b"5",
    "a list": b"[]",
    "deep lists": b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"a": ' * 100_000 + b"1" + b"}" * 100_000,
    "deeper than any config": b'{"model_type": "llama", "a": ' + b"[" * 100 + b"]" * 100 + b"}",
    "NaN": b'{"model_type": "llama", "rope_theta": NaN}',
    "Infinity": b'{"model_type": "llama", "rope_theta": -Infinity}',
    "an infinite number": b'{"model_type": "llama", "rope_theta": 1e999}',
    "a key twice": b'{"model_type": "llama", "hidden_size": 1, "hidden_size": 2}',
    "long digits": b'{"model_type": "llama", "hidden_size": ' + b"9" * 100_000 + b"}",
    "no text": b"\xff\xfe\x00",
    "a surrogate": b'{"model_type": "\\ud800"}',
    "cut": b'{"model_type": "lla',
}


@pytest.mark.parametrize("name", JSONS)
@pytest.mark.parametrize("file", ["config.json", "model.safetensors.index.json"])
def test_bad_json(name: str, file: str, whole: Path, tmp_path: Path):
    path = copied(whole, "hf", tmp_path)
    (path / file).write_bytes(JSONS[name])
    refused(path, file if name != "a surrogate" else "")


JUNK: tuple[Any, ...] = (True, -1, 0, 1.5, "", "x", [], [[]], [None], {}, {"a": []}, None)


@pytest.mark.filterwarnings("ignore:.*unknown keys")
@pytest.mark.parametrize("value", JUNK, ids=repr)
def test_values_of_the_wrong_type(value: Any, whole: Path, tmp_path: Path):
    """Every key of a config.json in turn: a model (where the value does not matter) or our error."""
    path = copied(whole, "hf", tmp_path)
    config = json.loads((path / "config.json").read_text())
    for key in (*config, "rope_scaling", "rope_theta", "text_config", "layer_types"):
        (path / "config.json").write_text(json.dumps({**config, key: value}))
        try:
            from_pretrained(path)
        except PretrainedError:
            continue


HEADERS = {
    "longer than the file": struct.pack("<Q", 2**40) + b"{}",
    "2^64 - 1": struct.pack("<Q", 2**64 - 1) + b"{}",
    "no object": struct.pack("<Q", 2) + b"[]",
    "a hole": {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}},
    "overlapping": {
        "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
    },
    "backwards": {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}},
    "a shape beyond its bytes": {"a": {"dtype": "F32", "shape": [2**60], "data_offsets": [0, 8]}},
    "an axis that overflows": {"a": {"dtype": "F32", "shape": [2**63, 2], "data_offsets": [0, 8]}},
    "an unknown dtype": {"a": {"dtype": "F33", "shape": [2], "data_offsets": [0, 8]}},
    "integers": {"a": {"dtype": "I32", "shape": [2], "data_offsets": [0, 8]}},
}


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("form", ["hf", "native"])
def test_headers_of_safetensors(name: str, form: str, whole: Path, tmp_path: Path):
    path, header = copied(whole, form, tmp_path), HEADERS[name]
    if isinstance(header, dict):
        text = json.dumps(header).encode()
        header = struct.pack("<Q", len(text)) + text
    (path / "model.safetensors").write_bytes(header + bytes(8))
    refused(path)


@pytest.mark.parametrize("form", ["hf", "native"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8, torch.complex64])
def test_tensors_that_are_no_floats(dtype: torch.dtype, form: str, whole: Path, tmp_path: Path):
    path = copied(whole, form, tmp_path)
    tensors = load_file(path / "model.safetensors")
    save_file({name: tensor.to(dtype) for name, tensor in tensors.items()}, path / "model.safetensors")
    refused(path)


@pytest.mark.parametrize("shard", ["../x.safetensors", "/etc/passwd", "..", "", ".", "a/b", "a\0b", 5, None, [], {}])
def test_shards_outside_of_the_folder(shard: Any, whole: Path, tmp_path: Path):
    path = copied(whole, "hf", tmp_path)
    names = load_file(path / "model.safetensors")
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(names, shard)}))
    refused(path, "model.safetensors.index.json")


TOKENIZERS: dict[str, Any] = {
    "empty": "",
    "a number": "5",
    "an unknown model": {"model": {"type": "BPF"}},
    "merges of unknown tokens": {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["b c"]}},
    "ids that overflow": {"model": {"type": "BPE", "vocab": {"a": 2**32}, "merges": []}},
    "negative ids": {"model": {"type": "WordLevel", "vocab": {"a": -1}, "unk_token": "a"}},
    "a broken regex": {
        "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated", "invert": False},
    },
    "no scores": {"model": {"type": "Unigram", "vocab": [], "unk_id": 5}},
    "deep": '{"a": ' * 10_000,
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_bad_tokenizers(name: str, whole: Path, tmp_path: Path):
    path, found = copied(whole, "hf", tmp_path), TOKENIZERS[name]
    (path / "tokenizer.json").write_text(found if isinstance(found, str) else json.dumps(found))
    with pytest.raises(PretrainedError, match=r"tokenizer"):
        load_tokenizer(path).encode("some text")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer_config.json", {"bos_token": 5}),
        ("tokenizer_config.json", {"eos_token": {"content": []}}),
        ("tokenizer_config.json", {"chat_template": 5}),
        ("tokenizer_config.json", {"chat_template": {"a": 1}}),
        ("tokenizer_config.json", {"chat_template": [{"name": [], "template": 5}]}),
        ("tokenizer_config.json", {"chat_template": [5]}),
        ("generation_config.json", {"eos_token_id": "x"}),
        ("generation_config.json", {"eos_token_id": [True]}),
        ("generation_config.json", {"eos_token_id": {"a": 1}}),
        ("generation_config.json", {"eos_token_id": -1}),
    ],
)
def test_bad_settings_of_a_tokenizer(file: str, content: Any, whole: Path, tmp_path: Path):
    path = copied(whole, "hf", tmp_path)
    write_tokenizer(path)
    (path / file).write_text(json.dumps(content))
    if content == {"chat_template": [5]}:
        assert load_tokenizer(path).template is None
        return
    with pytest.raises(PretrainedError, match=r"cannot be read"):
        load_tokenizer(path)
