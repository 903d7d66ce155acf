"""`inputs_embeds` and `prepend_embeds`: the forward pass and the loss equal those of the ids, for every setting between the lookup
and the layers; what does not fit is refused before anything runs."""

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from tests.support.rounding import assert_same
from tests.support.small_models import NUM_TOKENS, SIDE, close, decoder, ids
from x_positional import (
    AutoregressiveWrapper,
    Decoder,
    Encoder,
    TransformerWrapper,
    XTransformer,
    from_pretrained,
    quantize,
)
from x_positional.errors import InputError, PositionError
from x_positional.models import language
from x_positional.models.language import TokenEncoder
from x_positional.testing import Sizes
from x_positional.testing.subject import Subject
from x_positional.testing.suite import run_check

SETTINGS = {
    "plain": {},
    "scaled": {"emb_scale": 3.0},
    "l2norm": {"l2norm_embed": True},
    "normed": {"post_emb_norm": True},
    "typed": {"token_types": 3},
    "narrow": {"emb_dim": 10},
    "narrow, positions after the projection": {"emb_dim": 10, "emb_proj_first": True, "tie_embedding": False},
    "all": {"emb_scale": 3.0, "post_emb_norm": True, "token_types": 3, "emb_dim": 10},
}


def model(position="absolute", *, kind=Decoder, **fields) -> TransformerWrapper:
    torch.manual_seed(0)
    layers = kind(dim=24, depth=2, heads=3, head_dim=8, position=position)
    net = TransformerWrapper(num_tokens=NUM_TOKENS, max_seq_len=32, attn_layers=layers).config
    net = TransformerWrapper.from_config(net.model_copy(update=fields)).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return net


@pytest.mark.parametrize("fields", SETTINGS.values(), ids=SETTINGS)
@torch.no_grad()
def test_embeddings_of_ids_give_the_logits_of_the_ids(fields):
    net, tokens = model(**fields), ids(2, 9)
    x = net.embed_tokens(tokens)
    assert x.shape[-1] == fields.get("emb_dim", 24)
    types = ids(2, 9) % 3 if "token_types" in fields else None
    want = net(tokens, token_types=types)
    assert torch.equal(net(inputs_embeds=x, token_types=types), want)
    assert torch.equal(net(tokens[:, 4:], prepend_embeds=x[:, :4], token_types=types), want)
    assert torch.equal(net(inputs_embeds=x[:, 4:], prepend_embeds=x[:, :4], token_types=types), want)
    if types is not None:
        first = types.clone()
        first[:, :4] = 0
        got = net(tokens[:, 4:], prepend_embeds=x[:, :4], token_types=types[:, 4:])
        assert torch.equal(got, net(tokens, token_types=first))


@pytest.mark.parametrize("backend", ["eager", "blockwise", "sdpa", "flex"])
@torch.no_grad()
def test_positions_and_documents_cover_all_places(backend):
    net, tokens = decoder("rope", backend=backend), ids(2, 9)
    x, rest = net.embed_tokens(tokens)[:, :4], tokens[:, 4:]
    positions = torch.arange(9) * 2 + 1
    close(net(rest, prepend_embeds=x, positions=positions), net(tokens, positions=positions))
    documents = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1, 1, 1, 1]])
    want = net(tokens, document_ids=documents)
    close(net(rest, prepend_embeds=x, document_ids=documents), want)
    close(net(rest, prepend_embeds=x, seq_lens=[[5, 4], [4, 5]]), want)


@torch.no_grad()
def test_encoders_and_integer_weights_take_them_too():
    net, tokens = model("rope", kind=Encoder), ids(2, 9)
    close(net(tokens[:, 4:], prepend_embeds=net.embed_tokens(tokens[:, :4])), net(tokens))
    headless = TokenEncoder.from_config(net.config).eval()
    assert torch.equal(headless(inputs_embeds=headless.embed_tokens(tokens)), headless(tokens))
    small = quantize(model("rope", tie_embedding=True).bfloat16())
    assert torch.equal(small(inputs_embeds=small.embed_tokens(tokens)), small(tokens))


def test_a_learned_table_counts_prepended_places():
    net = model()
    net(ids(1, 28), prepend_embeds=torch.randn(1, 4, 24))
    with pytest.raises(PositionError, match="position 32 is out of range"):
        net(ids(1, 29), prepend_embeds=torch.randn(1, 4, 24))


def refusals(net: TransformerWrapper) -> dict[str, tuple[dict, str]]:
    tokens, x = ids(2, 5), torch.zeros(2, 3, 24)
    both = "pass exactly one of tokens and inputs_embeds, which replace the embeddings of tokens; got"
    shape = r"prepend_embeds must have shape \[batch, places, width\] = \[2, places, 24\], with at least one place; got"
    return {
        "neither": ({}, f"{both} neither"),
        "neither, prepended": ({"prepend_embeds": x}, f"{both} neither"),
        "both": ({"tokens": tokens, "inputs_embeds": x}, f"{both} both"),
        "width": ({"prepend_embeds": x[..., :5]}, rf"{shape} \[2, 3, 5\]. Project them"),
        "rank 2": ({"prepend_embeds": x[0]}, rf"{shape} \[3, 24\]. .* use prepend_embeds\[None\].expand\(2, -1, -1\)"),
        "rank 1": ({"prepend_embeds": x[0, 0]}, rf"{shape} \[24\]"),
        "rows": ({"prepend_embeds": x[:1]}, rf"{shape} \[1, 3, 24\]. Pass embeddings for each of the 2 rows"),
        "empty": ({"prepend_embeds": x[:, :0]}, rf"{shape} \[2, 0, 24\]"),
        "ids": ({"prepend_embeds": x.long()}, "must be torch.float32, .* got torch.int64. Pass ids as tokens"),
        "dtype": ({"prepend_embeds": x.half()}, r"got torch.float16. Use prepend_embeds.to\(torch.float32\)"),
        "device": ({"prepend_embeds": x.to("meta")}, "prepend_embeds is on meta, but the model is on cpu"),
        "list": ({"prepend_embeds": x.tolist()}, "must be a float tensor .*; got list"),
        "mask": (
            {"prepend_embeds": x, "mask": torch.ones(2, 3).bool()},
            r"mask must have shape \[2, 5\] .* or \[2, 8\]",
        ),
        "mask dtype": ({"prepend_embeds": x, "mask": torch.ones(2, 5)}, "mask must be bool"),
        "positions": (
            {"prepend_embeds": x, "positions": torch.arange(5)},
            "positions covers the 5 tokens, but not the 3",
        ),
        "documents": ({"prepend_embeds": x, "document_ids": torch.zeros(2, 5)}, "Pass document_ids for all 8 places"),
        "seq_lens": ({"prepend_embeds": x, "seq_lens": [2, 3]}, "add up to the 8 tokens of a row"),
        "targets": ({"prepend_embeds": x, "targets": tokens}, r"targets must be torch.int64 of shape \[2, 8\]"),
    }


@pytest.mark.parametrize("name", refusals(decoder()))
def test_what_does_not_fit_is_refused_with_the_way_out(name):
    net = decoder()
    given, reason = refusals(net)[name]
    tokens = {} if name.startswith("neither") or "tokens" in given else {"tokens": ids(2, 5)}
    with pytest.raises(InputError, match=reason):
        net(**tokens, **given)


def test_inputs_embeds_are_checked_alike():
    net = decoder()
    with pytest.raises(
        InputError, match=r"inputs_embeds must have shape \[batch, places, width\] = \[batch, places, 24\]"
    ):
        net(inputs_embeds=torch.zeros(2, 3, 5))
    with pytest.raises(InputError, match="token id 99 is outside"):
        net.embed_tokens(torch.tensor([[99]]))


@pytest.mark.parametrize("position", ["rope", "absolute"])
def test_a_compiled_model_takes_them_without_a_graph_break(position):
    net, tokens = decoder(position), ids(2, 9)
    torch._dynamo.reset()
    run, x = torch.compile(net, fullgraph=True, backend="eager"), net.embed_tokens(tokens)
    close(run(tokens[:, 4:], prepend_embeds=x[:, :4]), net(tokens))
    close(run(inputs_embeds=x), net(tokens))


@torch.no_grad()
def test_the_loss_of_embeddings_is_that_of_the_ids():
    net, tokens = decoder(), ids(2, 9)
    wrapper, x = AutoregressiveWrapper(net), net.embed_tokens(tokens)
    close(wrapper(inputs_embeds=x, labels=tokens), wrapper(tokens))
    labels = tokens.clone()
    labels[:, :4] = -100
    want = wrapper(tokens, labels=labels)
    close(wrapper(tokens[:, 4:], prepend_embeds=x[:, :4]), want)
    close(wrapper(inputs_embeds=x[:, 4:], prepend_embeds=x[:, :4], labels=labels[:, 4:]), want)
    close(wrapper(tokens[:, 8:], prepend_embeds=x[:, :8]), F.cross_entropy(net(tokens)[:, 7], tokens[:, 8]))
    documents = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 1, 1, 1]])
    got = wrapper(tokens[:, 4:], prepend_embeds=x[:, :4], document_ids=documents)
    close(got, wrapper(tokens, labels=labels, document_ids=documents))


@pytest.mark.parametrize("chunks", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_loss_of_a_padded_batch_is_that_of_its_rows(side, chunks, monkeypatch):
    if chunks:
        monkeypatch.setattr("x_positional.models.loss.chunks_pay", lambda *_, **__: True)
    net, soft = decoder(), torch.randn(2, 3, 24)
    wrapper = AutoregressiveWrapper(net)
    rows = [ids(1, 6)[0], ids(1, 3)[0]]
    tokens, mask = torch.zeros(2, 6, dtype=torch.long), torch.zeros(2, 6, dtype=torch.bool)
    for i, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(6 - len(row), 6)
        tokens[i, place], mask[i, place] = row, True

    def both(found: Tensor) -> tuple[Tensor, Tensor]:
        return found, torch.autograd.grad(found, soft)[0]

    soft.requires_grad_()
    alone = [wrapper(row[None], prepend_embeds=soft[i : i + 1]) for i, row in enumerate(rows)]
    want = both(sum(loss * len(row) for loss, row in zip(alone, rows, strict=True)) / 9)
    kept = torch.cat([torch.ones(2, 3, dtype=torch.bool), mask], 1)
    for given in (mask, kept):
        for got, expected in zip(both(wrapper(tokens, mask=given, prepend_embeds=soft)), want, strict=True):
            close(got, expected)
    kept[1, 1:3] = False  # a shorter prefix in the second row
    short = wrapper(rows[1][None], prepend_embeds=soft[1:, :1])
    close(wrapper(tokens, mask=kept, prepend_embeds=soft), (alone[0] * 6 + short * 3) / 9)


def test_a_soft_prompt_trains_while_the_model_is_frozen():
    net = decoder().requires_grad_(False)
    wrapper, tokens = AutoregressiveWrapper(net), ids(2, 7)
    soft = torch.randn(1, 3, 24, requires_grad=True)
    optimizer, before = torch.optim.Adam([soft], 0.05), [p.clone() for p in net.parameters()]
    losses = []
    for _ in range(8):
        loss = wrapper(tokens, prepend_embeds=soft.expand(2, -1, -1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    assert all(torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True))


def test_a_loss_of_embeddings_needs_labels_and_two_places():
    wrapper, x = AutoregressiveWrapper(decoder()), torch.zeros(2, 3, 24)
    with pytest.raises(InputError, match=r"inputs_embeds contain no ids to predict\. Pass labels"):
        wrapper(inputs_embeds=x)
    with pytest.raises(InputError, match=r"at least two places a row; inputs_embeds has shape \[2, 1, 24\]"):
        wrapper(inputs_embeds=x[:, :1], labels=ids(2, 1))
    with pytest.raises(InputError, match=r"labels must be integers of shape \[2, 5\]"):
        wrapper(ids(2, 5), prepend_embeds=x, labels=ids(2, 8))
    with pytest.raises(InputError, match="got neither"):
        wrapper()


@torch.no_grad()
def test_the_source_of_an_encoder_decoder():
    sides = {f"{side}_{name}": value for side in ("enc", "dec") for name, value in SIDE.items()}
    torch.manual_seed(0)
    net, src, tgt = XTransformer(dim=24, **sides).eval(), ids(2, 6), ids(2, 4)
    x, mask = net.encoder.embed_tokens(src), torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    start = [[1], [2]]
    for call in (
        lambda *a, **k: net(a[0], tgt, *a[1:], **k),
        lambda *a, **k: net.logits(a[0], tgt, *a[1:], **k),
        lambda *a, **k: net.generate(a[0], start, 5, *a[1:], temperature=0.0, **k),
    ):
        want = call(src, mask)
        assert_same(call(None, mask, inputs_embeds=x), want)
        assert_same(call(src[:, 2:], mask, src_prepend_embeds=x[:, :2]), want)
        assert_same(call(src[:, 2:], mask[:, 2:], src_prepend_embeds=x[:, :2]), want)
    with pytest.raises(InputError, match="got both"):
        net(src, tgt, inputs_embeds=x)


SMALL = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 8}
BART = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
}


@torch.no_grad()
def test_the_meaning_is_that_of_transformers_gemma_and_bart(tmp_path):
    tokens, x = ids(2, 7), torch.randn(2, 7, 16)
    torch.manual_seed(0)
    gemma = transformers.GemmaForCausalLM(
        transformers.GemmaConfig(vocab_size=NUM_TOKENS, num_key_value_heads=1, pad_token_id=0, **SMALL)
    ).eval()
    gemma.save_pretrained(tmp_path / "gemma")
    ours = from_pretrained(tmp_path / "gemma")
    assert_same(ours.embed_tokens(tokens), gemma.get_input_embeddings()(tokens))
    assert_same(ours(inputs_embeds=x), gemma(inputs_embeds=x).logits)
    sizes = {"encoder_ffn_dim": 20, "decoder_ffn_dim": 20, "scale_embedding": True, "vocab_size": NUM_TOKENS}
    config = transformers.BartConfig(
        **BART, **sizes, pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=2
    )
    bart = transformers.BartForConditionalGeneration(config).eval()
    bart.save_pretrained(tmp_path / "bart")
    ours = from_pretrained(tmp_path / "bart")
    want = bart(inputs_embeds=x, decoder_input_ids=tokens).logits
    assert_same(ours.logits(None, tokens, inputs_embeds=x), want)


def test_the_contract_rejects_models_that_misplace_what_is_prepended(monkeypatch):
    def verdict() -> str:
        return run_check("embeddings", Subject("absolute", Sizes(), torch.device("cpu"))).detail

    def positions_of_tokens_alone(self, row, types, layout):
        """As x-transformers: absolute positions are added to tokens, and embeddings prepended afterwards."""
        *before, last = [part if part.ndim == 3 else self._lookup(part) for part in row]
        scheme = self.attn_layers.position_schemes[0]
        return torch.cat([*before, scheme.embed(last, layout.positions[:, : last.shape[1]])], 1)

    assert verdict() == ""
    with monkeypatch.context() as patch:
        patch.setattr(TransformerWrapper, "_embed", positions_of_tokens_alone)
        assert "embeddings before tokens" in verdict()
    with monkeypatch.context() as patch:
        kept = language.with_prepended
        patch.setattr(language, "with_prepended", lambda value, name, row, _: kept(value, name, row, 0))
        assert "embeddings before padding left" in verdict()
