"""Every family of encoder-decoders: our logits and tokens equal those of transformers, and the way back."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.support.published.compare import Published, both, folder_of, ids, perturb, quietly
from tests.support.published.seq2seq_cases import CASES, START, T5, T5GEMMA, expected, sources
from tests.support.rounding import assert_same
from x_positional import IncompatibleConfig, PretrainedError, XTransformer, from_pretrained
from x_positional.config.seq2seq import Seq2SeqConfig
from x_positional.models.language import TokenEncoder
from x_positional.pretrained.tensors.files import open_tensors

every = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
by_name = {case.name: case for case in CASES}
NEW = 17
"""Past every distance that has a bucket of its own."""


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, case: Published) -> None:
    assert theirs.std() > 0.1, "logits that hardly differ prove nothing"
    assert_same(ours, theirs)


@every
@torch.no_grad()
def test_plain_and_long(case: Published):
    theirs, ours, _ = both(case)
    src, tgt = ids(2, case.length), ids(2, 19, seed=1)
    assert isinstance(ours, XTransformer)
    assert_close(ours.logits(src, tgt), expected(theirs, src, tgt), case)


@every
@torch.no_grad()
@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
def test_padded_sources(case: Published, left: bool):
    theirs, ours, _ = both(case)
    src, mask = sources(left)
    tgt = ids(3, 9, seed=1)
    got = ours.logits(src, tgt, mask=mask)
    if case.padded or not left:
        assert_close(got, expected(theirs, src, tgt, mask), case)
    alone = [expected(theirs, row[keep][None], t[None]) for row, keep, t in zip(src, mask, tgt, strict=True)]
    assert_close(got, torch.cat(alone), case)


@every
@torch.no_grad()
def test_padded_targets(case: Published):
    theirs, ours, _ = both(case)
    src, tgt = ids(3, 7), ids(3, 9, seed=1)
    keep = torch.arange(9) >= torch.tensor([0, 4, 6])[:, None]
    got = ours.logits(src, tgt, tgt_mask=keep)
    if case.padded:
        assert_close(got[keep], expected(theirs, src, tgt, tgt_mask=keep)[keep], case)
    for row in range(3):
        alone = expected(theirs, src[row : row + 1], tgt[row][keep[row]][None])
        assert_close(got[row][keep[row]], alone[0], case)


@every
@torch.no_grad()
@pytest.mark.parametrize("cache_kv", [True, False], ids=["cached", "read again"])
def test_greedy_tokens(case: Published, cache_kv: bool):
    theirs, ours, _ = both(case)
    src, mask = sources(left=False)
    expected_tokens = quietly(
        theirs.generate,
        src,
        attention_mask=mask.long(),
        do_sample=False,
        num_beams=1,
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert (expected_tokens[:, 0] == START).all()
    start = torch.full((3, 1), START)
    got = ours.generate(src, start, NEW, mask, temperature=0.0, cache_kv=cache_kv)
    torch.testing.assert_close(got, expected_tokens[:, 1:])


@every
def test_the_loss(case: Published):
    theirs, ours, _ = both(case)
    src, tgt = ids(2, 11), ids(2, 9, seed=1)
    loss = theirs(
        src, attention_mask=torch.ones_like(src), decoder_input_ids=tgt[:, :-1], labels=tgt[:, 1:].contiguous()
    ).loss
    assert_same(ours(src, tgt), loss)


@every
@torch.no_grad()
def test_the_way_back(case: Published, tmp_path: Path):
    theirs, ours, folder = both(case)
    ours.save_pretrained(tmp_path, format="hf")
    before, after = open_tensors(folder), load_file(tmp_path / "model.safetensors")
    for name, tensor in after.items():
        assert torch.equal(before.read(name), tensor), f"{name} is not bit by bit what was read"
    again = quietly(transformers.AutoModelForSeq2SeqLM.from_pretrained, tmp_path, attn_implementation=case.attention)
    assert type(again) is type(theirs)
    src, tgt = ids(2, case.length), ids(2, 9, seed=1)
    torch.testing.assert_close(expected(again, src, tgt), expected(theirs, src, tgt), atol=0, rtol=0)


@every
@torch.no_grad()
def test_a_config_made_anew(case: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As a model of one's own, and read with the attention that transformers prefers."""
    theirs, ours, _ = both(case)
    family = ours.origin.family.model_type
    monkeypatch.setattr(ours, "origin", None)
    ours.save_pretrained(tmp_path, format="hf", model_type=family)
    again = quietly(transformers.AutoModelForSeq2SeqLM.from_pretrained, tmp_path)
    src, tgt = ids(2, case.length), ids(2, 9, seed=1)
    assert_same(expected(again, src, tgt), expected(theirs, src, tgt))


@every
@pytest.mark.parametrize("value", [True, False, None])
def test_a_direction_is_refused(case: Published, value: bool | None):
    """Some kernels of transformers make the encoder causal, others follow it in the decoder alone."""
    _, ours, _ = both(case)
    family, hf = ours.origin.family, ours.origin.config
    assert not family.to_fields(hf)[1]
    assert any("is_causal" in problem for problem in family.to_fields({**hf, "is_causal": value})[1])
    for side in ("encoder", "decoder"):
        if isinstance(hf.get(side), dict):
            inner = {**hf, side: {**hf[side], "is_causal": value}}
            assert any(f"{side}: is_causal" in problem for problem in family.to_fields(inner)[1])


@every
@torch.no_grad()
def test_our_own_format(case: Published, tmp_path: Path):
    _, ours, _ = both(case)
    ours.save_pretrained(tmp_path)
    again = from_pretrained(tmp_path)
    src, tgt = ids(2, 7), ids(2, 9, seed=1)
    assert torch.equal(again.logits(src, tgt), ours.logits(src, tgt))
    shared = again.decoder.net.token_emb.weight is again.encoder.token_emb.weight
    assert shared == ours.config.tie_token_emb
    assert again.config == ours.config
    assert Seq2SeqConfig.from_yaml(_written(ours.config.to_yaml(), tmp_path / "model.yaml")) == ours.config


def _written(text: str, path: Path) -> Path:
    path.write_text(text)
    return path


def rewritten(source: Path, folder: Path, tensors: Mapping[str, torch.Tensor | None], **config: object) -> Path:
    """A copy with other tensors and keys; None takes one out."""
    said = {**json.loads((source / "config.json").read_text()), **config}
    (folder / "config.json").write_text(json.dumps({key: value for key, value in said.items() if value is not None}))
    held = {**load_file(source / "model.safetensors"), **tensors}
    save_file(
        {name: tensor.clone() for name, tensor in held.items() if tensor is not None}, folder / "model.safetensors"
    )
    return folder


@torch.no_grad()
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_t5_is_scaled_by_its_config_and_tied_by_its_tensors(scaled: bool, tied: bool, tmp_path: Path):
    """Files of T5 1.1 say `tie_word_embeddings: false`, which means no scale, and hold two tensors, or one."""
    _, _, source = both(by_name["t5"])
    head = torch.randn(67, 32, generator=torch.Generator().manual_seed(1))
    folder = rewritten(
        source,
        tmp_path,
        {} if tied else {"lm_head.weight": head},
        scale_decoder_outputs=None,
        tie_word_embeddings=scaled,
    )
    theirs = quietly(transformers.AutoModelForSeq2SeqLM.from_pretrained, folder)
    ours = from_pretrained(folder)
    src, tgt = ids(2, 9), ids(2, 7, seed=1)
    assert_close(ours.logits(src, tgt), expected(theirs, src, tgt), by_name["t5"])
    assert (ours.config.decoder.logits_scale is None) != scaled
    assert ours.config.decoder.tie_embedding == tied
    back = tmp_path / "back"
    ours.save_pretrained(back, format="hf")
    again = quietly(transformers.AutoModelForSeq2SeqLM.from_pretrained, back)
    torch.testing.assert_close(expected(again, src, tgt), expected(theirs, src, tgt), atol=0, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", ["t5", "bart"])
def test_copies_of_the_shared_table(name: str, tmp_path: Path):
    case = by_name[name]
    _, ours, source = both(case)
    prefix = "" if name == "t5" else "model."
    shared, copies = (
        f"{prefix}shared.weight",
        [f"{prefix}{side}.embed_tokens.weight" for side in ("encoder", "decoder")],
    )
    table = load_file(source / "model.safetensors")[shared]
    src, tgt = ids(2, 9), ids(2, 7, seed=1)
    for tensors in (
        dict.fromkeys(copies, table),
        {shared: None, copies[1]: table},
        {shared: None, "lm_head.weight": table},
    ):
        again = from_pretrained(rewritten(source, tmp_path, tensors))
        assert torch.equal(again.logits(src, tgt), ours.logits(src, tgt))
    with pytest.raises(
        PretrainedError, match=r"unexpected tensor (model\.)?encoder\.embed_tokens\.weight in the checkpoint"
    ):
        from_pretrained(rewritten(source, tmp_path, {copies[0]: table + 1}))
    with pytest.raises(PretrainedError, match=r"shared\.weight is missing"):
        from_pretrained(rewritten(source, tmp_path, {shared: None}))


@torch.no_grad()
def test_a_bart_without_the_bias_of_its_logits(tmp_path: Path):
    theirs, _, source = both(by_name["bart"])
    folder = rewritten(source, tmp_path, {"final_logits_bias": None})
    src, tgt = ids(2, 9), ids(2, 7, seed=1)
    bare = from_pretrained(folder).logits(src, tgt)
    assert_close(bare + theirs.final_logits_bias, expected(theirs, src, tgt), by_name["bart"])
    assert theirs.final_logits_bias.abs().max() > 0.05


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "settings"),
    [("T5", T5), ("UMT5", T5), ("T5Gemma", {**T5GEMMA, "is_encoder_decoder": False, "attn_implementation": "eager"})],
)
def test_an_encoder_alone(name: str, settings: dict, tmp_path: Path):
    cls = getattr(transformers, f"{name}EncoderModel")
    theirs = quietly(cls, quietly(cls.config_class, **settings)).eval()
    perturb(theirs)
    folder = folder_of(f"{name} encoder", "encoder")
    quietly(theirs.save_pretrained, folder)
    ours = from_pretrained(folder)
    assert type(ours) is TokenEncoder
    src, mask = sources(left=True)
    hidden = theirs(src, attention_mask=mask.long()).last_hidden_state
    assert_same(ours(src, mask=mask)[mask], hidden[mask])
    ours.save_pretrained(tmp_path, format="hf")
    again = quietly(cls.from_pretrained, tmp_path, attn_implementation=settings.get("attn_implementation"))
    assert torch.equal(again(src, attention_mask=mask.long()).last_hidden_state, hidden)


def test_feedforwards_that_are_not_known(tmp_path: Path):
    _, _, source = both(by_name["t5"])
    for said in ("gated-mish", "twice-gated-gelu"):
        with pytest.raises(PretrainedError, match=f"unsupported feed_forward_proj='{said}'"):
            from_pretrained(rewritten(source, tmp_path, {}, feed_forward_proj=said, dense_act_fn=None))


def test_what_no_family_has(tmp_path: Path):
    _, ours, source = both(by_name["t5"])
    shutil.copytree(source, tmp_path / "source")
    decoder = ours.config.decoder.model_copy(update={"logits_softcap": 3.0})
    other = XTransformer.from_config(ours.config.model_copy(update={"decoder": decoder}))
    with pytest.raises(
        PretrainedError, match=r"closest family is t5:\n.*it needs decoder\.logits_softcap=None \(this model: 3"
    ):
        other.save_pretrained(tmp_path, format="hf", code=False)


def test_sides_that_do_not_fit():
    config = both(by_name["t5"])[1].config
    swapped = config.model_copy(update={"encoder": config.decoder, "decoder": config.encoder})
    with pytest.raises(IncompatibleConfig, match="the encoder has layers of kind 'decoder'"):
        XTransformer.from_config(swapped)
    layers = config.decoder.layers
    for changes, message in (
        ({"cross_attend": False}, "would ignore the source"),
        ({"context_dim": 5}, "cross-attention expects 5 channels, but the encoder outputs 32"),
    ):
        decoder = config.decoder.model_copy(update={"layers": layers.model_copy(update=changes)})
        with pytest.raises(IncompatibleConfig, match=message):
            XTransformer.from_config(config.model_copy(update={"decoder": decoder}))
    more = config.decoder.model_copy(update={"num_tokens": 68})
    with pytest.raises(
        IncompatibleConfig, match=r"tie_token_emb=True shares one table, but the decoder's is \[68, 32\]"
    ):
        XTransformer.from_config(config.model_copy(update={"decoder": more}))
