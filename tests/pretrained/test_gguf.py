"""GGUF files: the logits are those of the model that was written, and what cannot be followed is refused with a reason."""

import dataclasses
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers

from tests.support.published.compare import ids, quietly, their_logits
from tests.support.published.gguf_models import CONFIG, llama, small, write_gguf
from tests.support.rounding import assert_same
from x_positional import AutoregressiveWrapper, from_pretrained, quantize
from x_positional.errors import MissingExtra, PretrainedError
from x_positional.modules.quantized import Int8Embedding
from x_positional.pretrained.gguf import architectures as gguf_architectures
from x_positional.pretrained.gguf.file import GgufFile
from x_positional.pretrained.gguf.header import read_header
from x_positional.pretrained.source import open_source

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 100,
}
CASES = {
    "plain": ({}, {}),
    "tied": ({"tie_word_embeddings": True}, {}),
    "biases": ({"attention_bias": True, "mlp_bias": True}, {}),
    "wide heads": ({"head_dim": 20}, {}),
    "llama3": ({"head_dim": 32, "rope_parameters": LLAMA3}, {}),
    "linear": (
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0}},
        {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 3.0},
    ),
    "yarn": (
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 500.0,
                "factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
        {
            "llama.rope.scaling.type": "yarn",
            "llama.rope.scaling.factor": 4.0,
            "llama.rope.scaling.original_context_length": 16,
        },
    ),
}


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_logits_are_those_of_what_was_written(name: str, tmp_path: Path):
    config, more = CASES[name]
    theirs = llama(**config)
    ours = from_pretrained(write_gguf(tmp_path / "model.gguf", theirs, more=more))
    tokens = ids(2, 40)
    expected = their_logits(theirs, tokens)
    assert expected.std() > 0.1
    assert_same(ours(tokens), expected)
    new = AutoregressiveWrapper(ours).generate(tokens[:, :5], 8, temperature=0.0)
    sequence = tokens[:, :5]
    for _ in range(8):
        sequence = torch.cat([sequence, their_logits(theirs, sequence)[:, -1:].argmax(-1)], 1)
    assert torch.equal(new, sequence[:, 5:])


@pytest.mark.parametrize(
    ("model", "architecture", "config"),
    [
        ("Qwen2ForCausalLM", "qwen2", {}),
        ("Qwen2ForCausalLM", "qwen2", {"tie_word_embeddings": True}),
        ("Qwen3ForCausalLM", "qwen3", {"head_dim": 128}),  # what the other reader takes, whatever the file says
        ("MistralForCausalLM", "llama", {"sliding_window": None}),
    ],
)
@torch.no_grad()
def test_other_architectures(model: str, architecture: str, config: dict, tmp_path: Path):
    theirs = small(model, **config)
    path = write_gguf(tmp_path / "model.gguf", theirs, architecture=architecture)
    tokens = ids(2, 40)
    assert_same(from_pretrained(path)(tokens), their_logits(theirs, tokens))
    again = quietly(transformers.AutoModelForCausalLM.from_pretrained, tmp_path, gguf_file=path.name)
    assert_same(from_pretrained(path)(tokens), their_logits(again, tokens))


@torch.no_grad()
def test_a_head_of_the_usual_width_need_not_be_said(tmp_path: Path):
    theirs = small("Qwen3ForCausalLM", head_dim=16)
    without = dict.fromkeys(
        ("qwen3.attention.key_length", "qwen3.attention.value_length", "qwen3.rope.dimension_count")
    )
    path = write_gguf(tmp_path / "model.gguf", theirs, architecture="qwen3", more=without)
    assert_same(from_pretrained(path)(ids(2, 9)), their_logits(theirs, ids(2, 9)))


@torch.no_grad()
def test_rows_left_as_llama_cpp_wrote_them_would_give_another_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    theirs = llama()
    path, tokens = write_gguf(tmp_path / "model.gguf", theirs), ids(2, 20)
    unturned = dataclasses.replace(gguf_architectures.LLAMA, interleaved=())
    monkeypatch.setitem(gguf_architectures.ARCHITECTURES, "llama", unturned)
    assert (from_pretrained(path)(tokens) - their_logits(theirs, tokens)).abs().max() > 0.05


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_1", "Q5_0"])
@torch.no_grad()
def test_quantised_matrices_are_those_numbers_in_float32(kind: str, tmp_path: Path):
    theirs, stored = llama(), gguf.GGMLQuantizationType[kind]
    path = write_gguf(tmp_path / "model.gguf", theirs, kind=kind)
    assert GgufFile(path).storage("blk.0.ffn_up.weight") == kind
    before = their_logits(theirs, ids(2, 20))
    for matrix in theirs.parameters():
        if matrix.ndim == 2:
            matrix.copy_(torch.from_numpy(gguf.dequantize(gguf.quantize(matrix.numpy(), stored), stored).copy()))
    ours, expected = from_pretrained(path), their_logits(theirs, ids(2, 20))
    assert (before - expected).abs().max() > 1e-4
    assert_same(ours(ids(2, 20)), expected)
    assert {p.dtype for p in ours.parameters()} == {torch.float32}
    assert {p.dtype for p in from_pretrained(path, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


@torch.no_grad()
def test_int8_of_a_file(tmp_path: Path):
    """Equals the float model quantized in memory. The tied table is int8 too."""
    path = write_gguf(tmp_path / "model.gguf", llama(tie_word_embeddings=True))
    ours, tokens = from_pretrained(path, quantize="int8"), ids(2, 20)
    assert torch.equal(ours(tokens), quantize(from_pretrained(path))(tokens))
    assert isinstance(ours.token_emb, Int8Embedding)
    assert "int8 with a scale per row" in ours.describe()


@torch.no_grad()
def test_it_is_written_back_as_safetensors(tmp_path: Path):
    ours = from_pretrained(write_gguf(tmp_path / "model.gguf", llama(attention_bias=True)))
    ours.save_pretrained(tmp_path / "folder", format="hf")
    again = from_pretrained(tmp_path / "folder")
    assert torch.equal(again(ids(2, 9)), ours(ids(2, 9)))


def test_metadata_become_a_config(tmp_path: Path):
    path = write_gguf(
        tmp_path / "model.gguf", llama(head_dim=32, rope_parameters=LLAMA3), more={"general.name": "Small"}
    )
    config = dict(open_source(path).config)
    assert config["rope_parameters"] == LLAMA3
    assert config["rms_norm_eps"] == CONFIG["rms_norm_eps"]  # and not the nearest number of 32 bits
    assert {key: config[key] for key in CONFIG} == CONFIG
    assert config["tie_word_embeddings"] is False


def test_overrides_stretch_a_file_too(tmp_path: Path):
    theirs = llama()
    path = write_gguf(tmp_path / "model.gguf", theirs)
    rope = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
    stretched = from_pretrained(path, rope_parameters=rope)
    assert stretched.config.layers.position[0].scaling.factor == 2
    with pytest.raises(PretrainedError, match="did you mean 'rope_parameters'"):
        from_pretrained(path, rope_parameter=rope)


def test_a_folder_with_one_file_is_that_file(tmp_path: Path):
    write_gguf(tmp_path / "one.gguf", llama())
    assert from_pretrained(tmp_path).num_tokens == CONFIG["vocab_size"]
    write_gguf(tmp_path / "two.gguf", llama())
    with pytest.raises(PretrainedError, match=r"(?s)several models.*one\.gguf, two\.gguf"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        ({"llama.expert_count": 4}, ["expert_count=4: experts in GGUF files are unsupported"]),
        ({"llama.attention.value_length": 8}, ["keys have 16 channels and values 8"]),
        (
            {"llama.attention.head_count": None, "llama.block_count": None},
            ["llama.attention.head_count is missing", "llama.block_count is missing"],
        ),
        ({"llama.attention.head_count_kv": [2, 2, 4]}, ["head_count_kv differs by layer: [2, 2, 4]"]),
        ({"llama.rope.scaling.type": "longrope"}, ["scaling.type='longrope'; supported", "linear, yarn"]),
        ({"split.count": 3}, ["one of 3 parts", "--merge"]),
    ],
)
def test_what_cannot_be_followed_is_refused(more: dict, parts: list[str], tmp_path: Path):
    path = write_gguf(tmp_path / "model.gguf", llama(), more=more)
    with pytest.raises(PretrainedError) as caught:
        from_pretrained(path)
    for part in [*parts, "model.gguf"]:
        assert part in str(caught.value)


def test_an_unknown_architecture_names_the_nearest(tmp_path: Path):
    path = write_gguf(tmp_path / "model.gguf", llama(), architecture="llama9")
    with pytest.raises(PretrainedError, match=r"unsupported general\.architecture='llama9'; .*'llama'"):
        from_pretrained(path)


def test_divisors_of_no_known_rope_type_are_refused(tmp_path: Path):
    odd = {"rope_freqs.weight": np.linspace(1, 3, 8, dtype=np.float32)}
    path = write_gguf(tmp_path / "model.gguf", llama(), tensors=odd)
    with pytest.raises(PretrainedError, match="not those of rope_type='llama3'"):
        from_pretrained(path)


def test_unknown_metadata_of_the_model_warn_and_others_do_not(tmp_path: Path):
    path = write_gguf(tmp_path / "model.gguf", llama(), more={"llama.attention.odd": 3, "general.odd": 3})
    with pytest.warns(UserWarning, match=r"ignored: llama\.attention\.odd\. If") as caught:
        from_pretrained(path)
    assert caught[0].filename == __file__


def test_tensors_without_a_place_and_missing_ones_are_named(tmp_path: Path):
    path = write_gguf(
        tmp_path / "model.gguf",
        llama(),
        tensors={"blk.0.odd.weight": np.zeros(3, np.float32)},
        more={"llama.block_count": 4},
    )
    with pytest.raises(PretrainedError) as caught:
        from_pretrained(path)
    assert "unexpected tensor blk.0.odd.weight in" in str(caught.value)
    assert "model.layers.3.input_layernorm.weight is missing" in str(caught.value)


def test_damaged_files_and_other_files_are_refused(tmp_path: Path):
    whole = write_gguf(tmp_path / "model.gguf", llama()).read_bytes()
    for name, content, part in (
        ("cut.gguf", whole[: len(whole) // 2], "download it again"),
        ("stub.gguf", whole[:100], "download it again"),
        ("empty.gguf", b"", "download it again"),
        ("text.gguf", b"this is no model at all", "does not begin with b'GGUF'"),
        ("old.gguf", whole[:4] + b"\1\0\0\0" + whole[8:], "unsupported version 1; supported: 2 and 3"),
        ("big.gguf", whole[:4] + b"\0\0\0\3" + whole[8:], "or big-endian"),
        ("long.gguf", whole[:32] + b"\xff" * 8 + whole[40:], "the header is truncated"),
        ("model.bin", b"\x80\x04", "A pickle can run arbitrary code"),
        ("model.safetensors", b"0" * 99, "Pass the folder"),
        ("model.onnx", b"0" * 99, "neither a GGUF file nor a folder"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(PretrainedError, match=part):
            from_pretrained(path)


def test_every_value_of_the_metadata_is_read(tmp_path: Path):
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    given: dict[str, object] = {}
    for name, value in {
        "uint8": 200,
        "int8": -100,
        "uint16": 60000,
        "int16": -30000,
        "uint32": 2**32 - 1,
        "int32": -(2**31),
        "uint64": 2**63,
        "int64": -(2**62),
        "float32": 1e-5,
        "float64": 1e-300,
        "bool": True,
        "string": "é\n",
    }.items():
        getattr(writer, f"add_{name}")(f"a.{name}", value)
        given[f"a.{name}"] = value
    for name, values in {
        "words": ["a", "", "東"],
        "ints": [1, -2],
        "floats": [0.5, 2.0],
        "flags": [True, False],
    }.items():
        writer.add_array(f"a.{name}", values)
        given[f"a.{name}"] = values
    writer.add_custom_alignment(64)
    writer.add_tensor("x", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("y", np.arange(4, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile(path)
    assert {key: file.get(key) for key in file.metadata() if key.startswith("a.")} == given
    assert file.names() == {"x", "y"}
    assert torch.equal(file.read("x"), torch.arange(6.0).reshape(2, 3))
    assert torch.equal(file.read("y"), torch.arange(4.0))


def test_a_storage_without_an_inverse_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_gguf(tmp_path / "model.gguf", llama())

    def none(*_: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(gguf, "dequantize", none)
    with pytest.raises(PretrainedError, match="is stored as F32, which the installed gguf package cannot"):
        from_pretrained(path)


def test_rows_that_do_not_fill_their_blocks_are_refused(tmp_path: Path):
    path = write_gguf(tmp_path / "model.gguf", llama(), kind="Q8_0")
    header = read_header(path.read_bytes(), str(path))
    raw = path.read_bytes()
    at = raw.index(b"blk.0.ffn_up.weight") + len("blk.0.ffn_up.weight") + 4
    assert (
        raw[at : at + 8]
        == (64).to_bytes(8, "little")
        == header.tensors["blk.0.ffn_up.weight"].shape[1].to_bytes(8, "little")
    )
    path.write_bytes(raw[:at] + (50).to_bytes(8, "little") + raw[at + 8 :])
    with pytest.raises(
        PretrainedError, match=r"blk\.0\.ffn_up\.weight has rows of 50 numbers; Q8_0 needs a multiple of 32"
    ):
        from_pretrained(path)


def test_an_unknown_storage_is_refused(tmp_path: Path):
    path = write_gguf(tmp_path / "model.gguf", llama())
    raw = path.read_bytes()
    at = raw.index(b"blk.0.ffn_up.weight") + len("blk.0.ffn_up.weight") + 4 + 16
    path.write_bytes(raw[:at] + (999).to_bytes(4, "little") + raw[at + 4 :])
    with pytest.raises(PretrainedError, match=r"blk\.0\.ffn_up\.weight has storage format 999"):
        from_pretrained(path)


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_gguf(tmp_path / "model.gguf", llama())
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtra, match=r"needs gguf: pip install 'x-positional\[pretrained\]'"):
        from_pretrained(path)
