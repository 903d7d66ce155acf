"""Every family of encoders: our logits or hidden states equal those of transformers, on every way through, and the way back."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.support.published.compare import both, quietly, takes
from tests.support.published.encoders import CASES, Encoded, expected, padded, words
from tests.support.rounding import assert_same
from x_positional import PretrainedError, TransformerWrapper, from_pretrained
from x_positional.errors import InputError
from x_positional.models.language import TokenEncoder
from x_positional.pretrained.tensors.files import open_tensors

every = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
by_name = {case.name: case for case in CASES}


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, case: Encoded) -> None:
    assert theirs.std() > 0.1, "values that hardly differ prove nothing"
    assert_same(ours, theirs)


@every
@torch.no_grad()
def test_plain_and_past_the_window(case: Encoded):
    theirs, ours, _ = both(case)
    tokens = words(case, 2, case.length)
    assert_close(ours(tokens), expected(theirs, tokens), case)
    assert isinstance(ours, TransformerWrapper)
    assert isinstance(ours, TokenEncoder) == (case.auto == "AutoModel")


@every
@torch.no_grad()
@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
def test_padded(case: Encoded, left: bool):
    theirs, ours, _ = both(case)
    tokens, mask, positions = padded(case, left)
    # RoBERTa finds padding by its id; the others count it as text unless they are told positions
    given = {"position_ids": positions} if takes(theirs, "position_ids") and not case.shift else {}
    assert_close(ours(tokens, mask=mask)[mask], expected(theirs, tokens, mask, **given)[mask], case)


@every
@torch.no_grad()
def test_shifted_and_jumping_positions(case: Encoded):
    theirs, ours, _ = both(case)
    if not case.jumping:
        pytest.skip("the published code counts slots (the case says so)")
    tokens = words(case, 2, 9)
    positions = torch.tensor([[1, 1, 2, 1, 3, 1, 1, 2, 1], [1] * 9]).cumsum(-1) + 3
    assert_close(ours(tokens, positions=positions), expected(theirs, tokens, position_ids=positions + case.shift), case)


@every
@torch.no_grad()
def test_token_types(case: Encoded):
    theirs, ours, _ = both(case)
    tokens = words(case, 2, 9)
    types = torch.randint(0, 3, (2, 9), generator=torch.Generator().manual_seed(1))
    if not case.types:
        with pytest.raises(InputError, match="this model has no token type embeddings"):
            ours(tokens, token_types=types)
        return
    assert_close(ours(tokens, token_types=types), expected(theirs, tokens, token_type_ids=types), case)
    assert (ours(tokens) - ours(tokens, token_types=types)).abs().max() > 1e-2
    for wrong in (types + 1, types.float(), types[:, :8], -types - 1):
        with pytest.raises(InputError, match="token_types must be integers from 0 to 2 of shape"):
            ours(tokens, token_types=wrong)


@every
@torch.no_grad()
def test_packed_equals_separate(case: Encoded):
    _, ours, _ = both(case)
    tokens = words(case, 1, case.length)
    lengths = [6, 9, case.length - 15]
    alone = [ours(part) for part in tokens.split(lengths, dim=1)]
    assert_close(ours(tokens, seq_lens=lengths), torch.cat(alone, 1), case)


@every
@torch.no_grad()
def test_the_way_back(case: Encoded, tmp_path: Path):
    theirs, ours, folder = both(case)
    ours.save_pretrained(tmp_path, format="hf")
    before, after = open_tensors(folder), load_file(tmp_path / "model.safetensors")
    for name, tensor in after.items():
        if case.renamed and name.startswith("cls."):
            continue
        there = name if name in before.names() else name.split(".", 1)[1]
        assert torch.equal(before.read(there), tensor), f"{name} is not bit by bit what was read"
    auto = getattr(transformers, case.auto)
    again = quietly(auto.from_pretrained, tmp_path, attn_implementation=case.attention)
    assert type(again) is type(theirs)
    tokens = words(case, 2, case.length)
    equal = 0 if not case.renamed else 1e-6  # the other head multiplies in another order
    torch.testing.assert_close(expected(again, tokens), expected(theirs, tokens), atol=equal, rtol=equal)


@every
@torch.no_grad()
def test_our_own_format(case: Encoded, tmp_path: Path):
    _, ours, _ = both(case)
    ours.save_pretrained(tmp_path)
    again = from_pretrained(tmp_path)
    tokens = words(case, 2, case.length)
    assert type(again) is type(ours)
    assert torch.equal(again(tokens), ours(tokens))


def rewritten(case: Encoded, folder: Path, changes: Mapping[str, torch.Tensor | None] = MappingProxyType({})) -> Path:
    """A copy of a model's folder with other tensors; None takes one out."""
    _, _, source = both(case)
    shutil.copy(source / "config.json", folder)
    tensors = {**load_file(source / "model.safetensors"), **changes}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, folder / "model.safetensors")
    return folder


@torch.no_grad()
def test_files_as_old_as_bert_call_gains_gamma(tmp_path: Path):
    case = by_name["bert"]
    _, ours, source = both(case)
    held = load_file(source / "model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in held.items()
    }
    assert set(old) != set(held)
    again = from_pretrained(rewritten(case, tmp_path, {**dict.fromkeys(held), **old}))
    tokens = words(case, 2, 9)
    assert torch.equal(again(tokens), ours(tokens))


@torch.no_grad()
def test_a_head_that_is_there_twice_is_read_once(tmp_path: Path):
    case = by_name["bert"]
    _, ours, source = both(case)
    held = load_file(source / "model.safetensors")
    bias, table = held["cls.predictions.bias"], held["bert.embeddings.word_embeddings.weight"]
    twice = {"cls.predictions.decoder.bias": bias.clone(), "cls.predictions.decoder.weight": table.clone()}
    tokens = words(case, 2, 9)
    again = from_pretrained(rewritten(case, tmp_path, twice))
    assert again.config.tie_embedding
    assert torch.equal(again(tokens), ours(tokens))
    other = {**twice, "cls.predictions.decoder.weight": table + 1.0}
    assert not from_pretrained(rewritten(case, tmp_path, other)).config.tie_embedding
    only = {**twice, "cls.predictions.bias": None}
    assert torch.equal(from_pretrained(rewritten(case, tmp_path, only))(tokens), ours(tokens))
    with pytest.raises(PretrainedError, match=r"unexpected tensor .*decoder\.bias in"):
        from_pretrained(rewritten(case, tmp_path, {**twice, "cls.predictions.decoder.bias": bias + 1.0}))


@torch.no_grad()
def test_the_tensors_say_whether_there_is_a_head(tmp_path: Path):
    case = by_name["bert body"]
    folder = rewritten(case, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({key: v for key, v in config.items() if key != "architectures"}))
    assert type(from_pretrained(folder)) is TokenEncoder
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["BertForMaskedLM"]}))
    with pytest.raises(PretrainedError, match=r"cls\.predictions\.transform\.dense\.weight is missing"):
        from_pretrained(folder)
    head = rewritten(by_name["bert"], tmp_path)
    (head / "config.json").write_text(json.dumps({**config, "architectures": ["BertForPreTraining"]}))
    assert type(from_pretrained(head)) is TransformerWrapper


@torch.no_grad()
def test_the_discriminator_of_deberta_v3_is_left_alone(tmp_path: Path):
    case = by_name["deberta"]
    _, ours, _ = both(case)
    again = from_pretrained(rewritten(case, tmp_path, {"mask_predictions.dense.weight": torch.ones(32, 32)}))
    tokens = words(case, 2, 9)
    assert torch.equal(again(tokens), ours(tokens))


def test_a_classifier_is_not_read(tmp_path: Path):
    folder = rewritten(by_name["bert body"], tmp_path, {"classifier.weight": torch.zeros(2, 32)})
    with pytest.raises(PretrainedError, match=r"unexpected tensor classifier\.weight in the checkpoint"):
        from_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("bert body", {"is_decoder": True}, "is_decoder=True: causal BERT is unsupported"),
        ("bert body", {"position_embedding_type": "relative_key"}, "relative positions are unsupported"),
        ("bert body", {"hidden_act": "mish"}, "unsupported hidden_act='mish'"),
        ("bert body", {"is_causal": True}, "is_causal=True: in transformers it makes an encoder causal in some"),
        ("deberta", {"conv_kernel_size": 3}, "the convolution at the first layer"),
        ("deberta", {"relative_attention": False}, "without relative attention is another architecture"),
        ("deberta", {"pos_att_type": None}, "without relative attention is another architecture"),
        ("deberta", {"pos_att_type": "c2p", "share_att_key": False}, "separate projections need both terms"),
        ("deberta", {"embedding_size": 16}, "embedding_size=16 with hidden_size=32"),
        ("modernbert body", {"layer_types": ["chunked_attention"] * 5}, "unsupported layer_types: chunked_attention"),
    ],
)
def test_what_is_not_read_is_refused(name: str, changes: dict, message: str, tmp_path: Path):
    folder = rewritten(by_name[name], tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(PretrainedError, match=message):
        from_pretrained(folder)


def test_older_spellings_of_a_config(tmp_path: Path):
    """ModernBERT's thetas and pattern as the first files have them; Nomic BERT's sizes."""
    _, ours, source = both(by_name["modernbert"])
    folder = rewritten(by_name["modernbert"], tmp_path)
    config = json.loads((source / "config.json").read_text())
    for gone in ("rope_parameters", "layer_types"):
        del config[gone]
    older = {"global_rope_theta": 160000.0, "local_rope_theta": 10000.0, "global_attn_every_n_layers": 3}
    (folder / "config.json").write_text(json.dumps({**config, **older}))
    tokens = words(by_name["modernbert"], 2, 23)
    with torch.no_grad():
        assert torch.equal(from_pretrained(folder)(tokens), ours(tokens))
    _, ours, source = both(by_name["nomic_bert body"])
    folder = rewritten(by_name["nomic_bert body"], tmp_path)
    config = json.loads((source / "config.json").read_text())
    names = {
        "hidden_size": "n_embd",
        "num_attention_heads": "n_head",
        "intermediate_size": "n_inner",
        "num_hidden_layers": "n_layer",
        "max_position_embeddings": "n_positions",
    }
    del config["head_dim"]
    (folder / "config.json").write_text(json.dumps({names.get(key, key): value for key, value in config.items()}))
    assert from_pretrained(folder).config == ours.config


def test_a_bert_of_ones_own_is_written_and_another_model_is_not(tmp_path: Path):
    fields = {
        "num_tokens": 19,
        "max_seq_len": 12,
        "token_types": 2,
        "tie_embedding": True,
        "tie_embedding_scale": 1.0,
        "logits_bias": True,
        "head": {},
        "emb_norm": {"bias": True},
        "layers": {
            "kind": "encoder",
            "dim": 24,
            "depth": 2,
            "heads": 3,
            "head_dim": 8,
            "norm_place": "post",
            "position": {"kind": "absolute", "scale": 1.0},
            "norm": {"bias": True},
            "attn": {"bias": True},
        },
    }
    model = TransformerWrapper.from_config(fields).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    two_eps = {**fields, "emb_norm": {"bias": True, "eps": 1e-12}}  # and one key has to say both
    with pytest.raises(
        PretrainedError, match=r"closest family is bert:\n.*it needs .*norm.eps=1e-05 \(this model: 1e-12\)"
    ):
        TransformerWrapper.from_config(two_eps).save_pretrained(tmp_path, format="hf", code=False)
    model.save_pretrained(tmp_path, format="hf")
    theirs = quietly(transformers.AutoModelForMaskedLM.from_pretrained, tmp_path)
    assert type(theirs).__name__ == "BertForMaskedLM"
    tokens = torch.randint(0, 19, (2, 12))
    with torch.no_grad():
        assert_same(model(tokens), expected(theirs, tokens))
