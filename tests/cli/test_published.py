"""The console script on published models: generate, convert and verify, and what they say when something is wrong."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.support.command_line import Call
from tests.support.published.compare import perturb, quietly
from tests.support.published.decoders_llama import LLAMA
from tests.support.published.encoders import PLAIN
from tests.support.published.gguf_models import CONFIG, llama, write_gguf
from tests.support.published.seq2seq_cases import T5
from tests.support.rounding import assert_same
from x_positional import AutoregressiveWrapper, Decoder, TransformerWrapper, from_pretrained, load_tokenizer
from x_positional.pretrained.tokenizers.text import byte_letters, byte_tokenizer

VIT = {
    "hidden_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 20,
    "patch_size": 4,
    "num_labels": 5,
}


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "small.gguf", llama())


@pytest.fixture
def folder(gguf_file: Path, tmp_path: Path) -> Path:
    """The same model as transformers writes it, with its tokenizer."""
    path = tmp_path / "small"
    quietly(llama().save_pretrained, path)
    load_tokenizer(gguf_file).save(path)
    return path


def saved(folder: Path, model: str, **config: object) -> Path:
    """A small perturbed model of transformers in a folder."""
    cls = getattr(transformers, model)
    torch.manual_seed(0)
    made = quietly(cls, cls.config_class(**config)).eval()
    perturb(made)
    quietly(made.save_pretrained, folder)
    return folder


def test_generate_gives_the_same_text_from_a_file_and_a_folder(call: Call, gguf_file: Path, folder: Path):
    common = ["--prompt", "hello", "--max-new-tokens", 12, "--temperature", 0, "--no-stop"]
    code, out, err = call("generate", gguf_file, *common)
    assert code == 0
    assert out.startswith("hello")
    assert len(out) > 10
    assert re.search(r"\[12 tokens, [\d.,]+ tokens/s, small\.gguf\]", err)
    assert "use --chat to get a reply" in err
    assert call("generate", folder, *common)[1] == out
    assert call("generate", folder, *common, "--no-cache")[1] == out
    for speculate in (["--prompt-lookup", 4], ["--draft", gguf_file]):
        code, text, err = call("generate", folder, *common, *speculate)
        assert (code, text) == (0, out)
        assert re.search(r"\[speculative decoding: \d+ of \d+ proposed tokens accepted", err)
    code, _, err = call("generate", folder, *common, "--prompt-lookup", 4, "--draft", folder)
    assert (code, "cannot be combined" in err) == (2, True)


def test_generate_with_int8_weights(call: Call, gguf_file: Path, folder: Path, tmp_path: Path):
    common = ["--prompt", "hello", "--max-new-tokens", 12, "--temperature", 0, "--no-stop", "--quantize", "int8"]
    code, out, _ = call("generate", gguf_file, *common)
    assert code == 0
    small = from_pretrained(gguf_file, quantize="int8")
    words = load_tokenizer(gguf_file)
    ids = torch.tensor([words.encode("hello")])
    new = AutoregressiveWrapper(small).generate(ids, 12, temperature=0.0)
    assert out == "hello" + words.decode(new[0]) + "\n"
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = float("inf")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    code, _, err = call("generate", folder, *common)
    assert (code, "this model cannot be quantized" in err, "not finite" in err) == (2, True, True)


def test_generate_draws_repeatably(call: Call, gguf_file: Path):
    def text(*options: object) -> str:
        code, out, _ = call("generate", gguf_file, "--prompt", "he", "--max-new-tokens", 12, "--no-stop", *options)
        assert code == 0
        return out

    assert text("--seed", 1) == text("--seed", 1) != text("--seed", 2)
    assert text("--seed", 1, "--top-k", 1) == text("--temperature", 0)


def test_chat_asks_by_the_template_and_prints_the_answer_alone(call: Call, gguf_file: Path, folder: Path):
    code, out, err = call(
        "generate", gguf_file, "--prompt", "hello", "--chat", "--max-new-tokens", 9, "--temperature", 0, "--no-stop"
    )
    words, model = load_tokenizer(gguf_file), transformers.AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([words.encode_chat([{"role": "user", "content": "hello"}])])
    whole = torch.ones_like(ids)  # the id of padding stands in the template too
    expected = quietly(model.generate, ids, attention_mask=whole, max_new_tokens=9, do_sample=False, eos_token_id=None)
    assert (code, out) == (0, words.decode(expected[0, ids.shape[1] :]) + "\n")
    assert "--chat" not in err


def test_generation_stops_where_the_model_ends(call: Call, folder: Path):
    """A model that says its end at once: the head has that token's row alone."""
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = torch.zeros_like(tensors["lm_head.weight"])
    tensors["model.norm.weight"] = torch.zeros_like(tensors["model.norm.weight"])
    save_file(tensors, folder / "model.safetensors")  # all logits are 0, and the first id is the likeliest
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 0]}))
    assert call("generate", folder, "--prompt", "he", "--temperature", 0)[1] == "he\n"


def test_an_empty_prompt_begins_a_text(call: Call, gguf_file: Path):
    assert call("generate", gguf_file, "--prompt", "", "--max-new-tokens", 3)[0] == 0


@pytest.mark.parametrize("form", ["hf", "native"])
def test_convert_writes_what_both_sides_read(call: Call, gguf_file: Path, form: str, tmp_path: Path):
    code, out, _ = call("convert", gguf_file, "target", "--format", form)
    assert code == 0
    for name in ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"):
        assert re.search(rf"[\d,]+  {name}", out)
    assert ("verify target" in out) == (form == "hf")
    assert "generate target" in out
    tokens = torch.arange(20)[None]
    ours, again = from_pretrained(gguf_file), from_pretrained(tmp_path / "target")
    assert torch.equal(again(tokens), ours(tokens))
    words = load_tokenizer(tmp_path / "target")
    assert words.encode("hello 12") == load_tokenizer(gguf_file).encode("hello 12")
    assert words.ends == (1,)
    if form == "hf":
        theirs = quietly(transformers.AutoModelForCausalLM.from_pretrained, tmp_path / "target")
        assert_same(theirs(tokens).logits, ours(tokens))
        assert theirs.generation_config.eos_token_id in (1, [1])


def test_convert_copies_the_words_of_a_folder_and_casts(call: Call, folder: Path, tmp_path: Path):
    (folder / "special_tokens_map.json").write_text("{}")
    assert call("convert", folder, "target", "--dtype", "bfloat16")[0] == 0
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json"):
        assert (tmp_path / "target" / name).read_bytes() == (folder / name).read_bytes()
    assert {t.dtype for t in load_file(tmp_path / "target" / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "target" / "config.json").read_text())["dtype"] == "bfloat16"


def test_convert_without_words_says_so(call: Call, tmp_path: Path):
    path = write_gguf(tmp_path / "m.gguf", llama(), more={"tokenizer.ggml.pre": "odd"})
    code, out, _ = call("convert", path, "target")
    assert code == 0
    assert "no tokenizer was written" in out
    assert "pre='odd'" in out
    assert "generate" not in out


@pytest.fixture
def run_dir(call: Call, tmp_path: Path) -> Path:
    """A run of a family's architecture, on bytes."""
    config = f"""
model:
  num_tokens: 256
  max_seq_len: 32
  layers: {{kind: decoder, dim: 32, depth: 2, heads: 2, head_dim: 16, position: rope, norm: {{kind: rms}},
            ff: {{glu: true, bias: false, activation: silu}}}}
data: {{path: {tmp_path / "text.txt"}}}
optimizer: {{warmup_steps: 1}}
run: {{dir: {tmp_path / "run"}, steps: 2, batch_size: 2, device: cpu}}
"""
    (tmp_path / "text.txt").write_text("3 plus 4 is 7.\n" * 400)
    (tmp_path / "config.yaml").write_text(config)
    code, out, err = call("train", tmp_path / "config.yaml")
    assert code == 0, out + err
    return tmp_path / "run"


def test_a_run_becomes_a_model_of_transformers(call: Call, run_dir: Path, tmp_path: Path):
    code, out, err = call("convert", run_dir, "target")
    assert code == 0, err
    assert "verify target" in out
    assert call("verify", "target")[0] == 0
    words = load_tokenizer(tmp_path / "target")
    theirs = quietly(transformers.AutoTokenizer.from_pretrained, tmp_path / "target")
    for text in ("3 plus 4", "é東🎉\x00Ā\n"):
        assert words.encode(text) == theirs(text).input_ids == list(text.encode())
        assert words.decode(words.encode(text)) == text
    common = ["--prompt", "3 plus", "--temperature", 0]
    assert (
        call("generate", "target", *common, "--max-new-tokens", 9)[1]
        == call("generate", run_dir, *common, "--length", 9)[1]
    )


def test_letters_are_those_of_byte_level_tokenizers():
    from tokenizers.pre_tokenizers import ByteLevel

    assert len(set(byte_letters())) == 256
    assert set(byte_letters()) == set(ByteLevel.alphabet())
    cut = ByteLevel(add_prefix_space=False, use_regex=False)
    for text in ("".join(map(chr, range(128))), "é\u0800\U00010000\U0010ffffÿ"):
        pieces = "".join(piece for piece, _ in cut.pre_tokenize_str(text))
        assert pieces == "".join(byte_letters()[byte] for byte in text.encode())
    assert byte_tokenizer().encode("Āa") == [0xC4, 0x80, 97]


def test_a_model_that_no_family_has_is_written_with_code(call: Call, tmp_path: Path):
    layers = Decoder(dim=16, depth=1, heads=2, attn_dim_head=8, position="cope")
    TransformerWrapper(num_tokens=20, max_seq_len=9, attn_layers=layers).save_pretrained(tmp_path / "own")
    code, _, err = call("convert", "own", "target", "--no-code")
    assert code == 2
    assert "cannot be written for transformers" in err
    assert "--code" in err
    assert not (tmp_path / "target" / "config.json").exists()
    code, out, _ = call("convert", "own", "target", "--to", "hf")
    assert (code, "modeling_x_positional.py" in out, "verify" in out) == (0, True, False)
    for path in ("own", "target"):
        code, _, err = call("verify", path)
        assert (code, "own format" in err) == (2, True)
    assert call("convert", "target", "again", "--format", "native")[0] == 0
    assert (tmp_path / "again" / "config.json").read_bytes() == (tmp_path / "own" / "config.json").read_bytes()


def verdicts(out: str) -> dict[str, str]:
    """Check -> the last word of its row."""
    names = ("plain", "left padded", "right padded", "shifted positions", "cached", "past the window", "another size")
    rows = {name: row for name in names for row in out.splitlines() if row.startswith(f"{name}  ")}
    return {name: row.rstrip().rsplit("  ", 1)[-1].strip() for name, row in rows.items()}


def test_verify_shows_all_checks(call: Call, tmp_path: Path):
    saved(tmp_path / "m", "MistralForCausalLM", **{**LLAMA, "sliding_window": 5})
    code, out, _ = call("verify", "m")
    assert code == 0, out
    assert out.startswith("m: mistral, logits in float32, compared with transformers' MistralForCausalLM")
    names = ("plain", "left padded", "shifted positions", "cached", "past the window")
    assert verdicts(out) == dict.fromkeys(names, "ok")
    assert "equal: no difference exceeds 0.0001 of the largest value" in out
    differences = [float(number) for number in re.findall(r" (\d\.\de[-+]\d\d) ", out)]
    assert len(differences) == 10
    assert max(differences) < 1e-5


def test_verify_finds_a_difference(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    saved(tmp_path / "m", "LlamaForCausalLM", **LLAMA)
    assert call("verify", "m", "--tolerance", 0)[0] == 1
    load = transformers.AutoModelForCausalLM.from_pretrained

    def disturbed(**settings: object) -> torch.nn.Module:
        model = load(**settings)
        model.model.norm.weight.data[3] += 0.05
        return model

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", disturbed)
    code, out, _ = call("verify", "m")
    assert code == 1
    assert set(verdicts(out).values()) == {"DIFFERS", "not run"}
    assert "different: these exceed 0.0001 of the largest value: plain, left padded, shifted positions, cached" in out
    assert "past the window was not run: no layer has a window" in out
    assert call("verify", "m", "--tolerance", 0.5)[0] == 0


def test_verify_takes_nan_for_a_difference(call: Call, tmp_path: Path):
    folder = saved(tmp_path / "m", "LlamaForCausalLM", **LLAMA)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    assert call("verify", "m")[0] == 1


@pytest.mark.parametrize(
    ("model", "config", "expected"),
    [
        ("BertForMaskedLM", PLAIN, {"plain", "right padded"}),
        ("BertModel", PLAIN, {"plain", "right padded"}),
        ("RobertaModel", {**PLAIN, "pad_token_id": 1}, {"plain", "right padded"}),
        ("T5ForConditionalGeneration", T5, {"plain", "right padded"}),
        (
            "OPTForCausalLM",
            {
                "vocab_size": 67,
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "ffn_dim": 44,
                "word_embed_proj_dim": 32,
                "num_attention_heads": 4,
                "max_position_embeddings": 64,
            },
            {"plain", "left padded", "shifted positions", "cached"},
        ),
        (
            "BloomForCausalLM",
            {"vocab_size": 67, "hidden_size": 32, "n_layer": 2, "n_head": 4},
            {"plain", "left padded", "cached"},
        ),
        ("ViTForImageClassification", VIT, {"plain", "another size"}),
        ("ViTModel", VIT, {"plain", "another size"}),
        ("Dinov2Model", VIT, {"plain", "another size"}),
        ("LlamaModel", LLAMA, {"plain", "left padded", "shifted positions", "cached"}),
    ],
)
def test_verify_knows_every_kind_of_family(call: Call, model: str, config: dict, expected: set[str], tmp_path: Path):
    saved(tmp_path / "m", model, **config)
    code, out, err = call("verify", "m")
    assert code == 0, out + err
    assert {name for name, verdict in verdicts(out).items() if verdict == "ok"} == expected
    assert f"transformers' {model}" in out


def test_verify_in_float64_is_sharper(call: Call, tmp_path: Path):
    saved(tmp_path / "m", "GPT2LMHeadModel", vocab_size=67, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    assert call("verify", "m", "--dtype", "float64", "--tolerance", 1e-12)[0] == 0
    assert call("verify", "m", "--dtype", "float32", "--tolerance", 1e-12)[0] == 1


def test_verify_says_how_to_run_past_a_large_window(call: Call, tmp_path: Path):
    saved(tmp_path / "m", "MistralForCausalLM", **{**LLAMA, "sliding_window": 20})
    code, out, _ = call("verify", "m", "--max-tokens", 30)
    assert code == 0
    assert "past the window was not run: the window is 20 tokens: --max-tokens 33 runs it" in out
    assert verdicts(call("verify", "m", "--max-tokens", 33)[1])["past the window"] == "ok"


def test_verify_reads_gguf_in_transformers_too(call: Call, gguf_file: Path):
    code, out, err = call("verify", gguf_file)
    assert code == 0, out + err
    assert "small.gguf: llama, logits in float32" in out


def test_verify_says_plainly_what_is_not_installed(call: Call, folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    code, _, err = call("verify", folder)
    assert code == 2
    assert "verify needs transformers" in err
    assert "x-positional[hf]" in err


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (
            ["generate", "{folder}", "--prompt", "x", "--dtype", "int8"],
            ["unknown --dtype int8; supported: float64, float32"],
        ),
        (["generate", "{folder}", "--prompt", "x", "--device", "tpu"], ["--device tpu cannot be used"]),
        (["generate", "{bert}", "--prompt", "x"], ["no readable tokenizer", "tokenizer.json is missing"]),
        (["generate", "{folder}/config.json", "--prompt", "x"], ["neither a GGUF file nor a folder"]),
        (["generate", "{run}", "--prompt", "x", "--chat"], ["--chat needs a published model"]),
        (["generate", "{folder}", "--prompt", "x", "--quantize", "int4"], ["'int4' is not", "int8"]),
        (["convert", "{folder}", "{bert}"], ["already contains a model"]),
        (["convert", "{folder}", "t", "--model-type", "lama"], ["unknown model_type='lama'", "llama"]),
        (["convert", "{folder}", "t", "--model-type", "bert"], ["cannot be written for transformers"]),
        (["convert", "{folder}", "t", "--format", "gguf"], ["gguf"]),
        (["convert", "nowhere", "t"], ["nowhere does not exist"]),
        (
            ["convert", "{run}", "t"],
            ["no x_positional checkpoint in", "a published model is a folder with config.json"],
        ),
        (["verify", "{run}"], ["it has no config.json, no GGUF file and no checkpoints", "it contains nothing"]),
        (["verify", "{folder}", "--dtype", "bfloat16"], ["unsupported --dtype bfloat16; supported: float32, float64"]),
        (["verify", "nowhere"], ["no such file or folder"]),
    ],
)
def test_a_mistake_is_answered_in_words(
    call: Call, folder: Path, arguments: list[str], parts: list[str], tmp_path: Path
):
    (tmp_path / "empty").mkdir()
    bert = saved(tmp_path / "bert", "BertModel", **PLAIN)
    places = {"{folder}": folder, "{bert}": bert, "{run}": tmp_path / "empty"}
    for name, place in places.items():
        arguments = [argument.replace(name, str(place)) for argument in arguments]
    code, _, err = call(*arguments)
    assert code == 2
    assert "Traceback" not in err
    for part in parts:
        assert part in " ".join(err.replace("│", " ").split())


def test_a_name_that_is_not_here_is_looked_for_on_the_hub(call: Call, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    code, _, err = call("generate", "org/model", "--prompt", "x")
    assert code == 2
    assert "not a local path" in err
    assert "huggingface_hub" in err


def test_an_encoder_gives_no_next_token(call: Call, folder: Path, tmp_path: Path):
    bert = saved(tmp_path / "bert", "BertModel", **{**PLAIN, "vocab_size": CONFIG["vocab_size"]})
    load_tokenizer(folder).save(bert)
    code, _, err = call("generate", bert, "--prompt", "hello")
    assert code == 2
    assert "does not predict the next token" in err


@pytest.mark.parametrize("model", ["T5ForConditionalGeneration", "BartForConditionalGeneration"])
def test_an_encoder_decoder_reads_the_prompt_as_its_source(call: Call, gguf_file: Path, tmp_path: Path, model: str):
    tokenizer = load_tokenizer(gguf_file)
    words = tokenizer.backend.get_vocab_size()
    t5 = {**T5, "vocab_size": words, "decoder_start_token_id": 3, "eos_token_id": 5}
    bart = {"vocab_size": words, "d_model": 36, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 3}
    bart |= {"decoder_attention_heads": 3, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40, "max_position_embeddings": 40}
    bart |= {"decoder_start_token_id": 3, "forced_bos_token_id": 4, "eos_token_id": 5, "pad_token_id": 1}
    path = saved(tmp_path / model, model, **(t5 if model.startswith("T5") else bart))
    tokenizer.save(path)
    common = ["--prompt", "hello", "--max-new-tokens", 8, "--temperature", 0, "--no-stop", "--dtype", "float32"]
    code, out, err = call("generate", path, *common)
    assert code == 0, err
    theirs = getattr(transformers, model).from_pretrained(path)
    source = torch.tensor([load_tokenizer(path).encode("hello")])
    steps = {"max_new_tokens": 8 + (not model.startswith("T5")), "do_sample": False, "num_beams": 1, "eos_token_id": -1}
    new = theirs.generate(source, **steps, forced_eos_token_id=None)[0, -8:].tolist()
    assert out.rstrip("\n") == load_tokenizer(path).decode(new).rstrip("\n")
    assert "8 tokens" in err
    own = tmp_path / "own"
    from_pretrained(path).save_pretrained(own)
    tokenizer.save(own)
    code, _, err = call("generate", own, *common)
    assert code == 2
    assert "pass --start-token ID" in err
    code, again, _ = call("generate", own, *common, "--start-token", 3)
    assert code == 0
    assert model.startswith("Bart") or again == out
    code, _, err = call("generate", path, *common, "--draft", path)
    assert code == 2
    assert "use --prompt-lookup" in err


def test_a_start_token_is_for_encoder_decoders(call: Call, gguf_file: Path):
    code, _, err = call("generate", gguf_file, "--prompt", "hello", "--start-token", 1)
    assert code == 2
    assert "--start-token is for encoder-decoders" in err
