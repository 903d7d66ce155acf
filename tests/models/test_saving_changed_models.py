"""What save_pretrained writes after a model was changed by hand can be read back, or saving refuses with the reason."""

import peft
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from tests.support.small_models import NUM_TOKENS, SIDE, decoder
from tests.support.wrapped_layers import Scaled, targets
from x_positional import (
    Decoder,
    Encoder,
    PretrainedError,
    TransformerWrapper,
    ViTransformerWrapper,
    XTransformer,
    from_pretrained,
)
from x_positional.schemes import AlibiBias


def tied(position="rope") -> TransformerWrapper:
    torch.manual_seed(0)
    layers = Decoder(dim=24, depth=1, heads=3, head_dim=8, position=position)
    return TransformerWrapper(num_tokens=32, max_seq_len=64, attn_layers=layers, tie_embedding=True).eval()


def grown(model: TransformerWrapper) -> TransformerWrapper:
    """Four more tokens."""
    model.token_emb, model.num_tokens = nn.Embedding(36, 24), 36
    return model


def encoder_decoder() -> XTransformer:
    sides = {f"{side}_{name}": value for side in ("enc", "dec") for name, value in SIDE.items()}
    return XTransformer(dim=24, tie_token_emb=True, **sides)


@pytest.mark.parametrize("form", ["native", "hf"])
def test_more_tokens(tmp_path, form: str) -> None:
    """Refused while the config has the old number; after it is set, the folder is read back equal."""
    model, last = grown(tied()), torch.tensor([[35]])
    with pytest.raises(
        PretrainedError, match=r"token_emb\.weight has shape \[36, 24\]; the config describes \[32, 24\]"
    ):
        model.save_pretrained(tmp_path / "refused", format=form)
    assert not (tmp_path / "refused").exists()
    model.config = model.config.model_copy(update={"num_tokens": 36})
    if form == "native":
        model.save_pretrained(tmp_path / "written", format=form)
        assert torch.equal(from_pretrained(tmp_path / "written")(last), model(last))


def longer_table(model: TransformerWrapper) -> None:
    model.attn_layers.schemes[0].table = nn.Parameter(torch.zeros(100, 24))


def other_head(model: TransformerWrapper) -> None:
    model.to_logits = nn.Linear(24, 50, bias=False)


def added_bias(model: TransformerWrapper) -> None:
    model.to_logits = nn.Linear(24, NUM_TOKENS)


def tied_by_hand(model: TransformerWrapper) -> None:
    model.to_logits.weight = model.token_emb.weight


def dropped(model: TransformerWrapper) -> None:
    model.attn_layers.blocks[0].attn.to_out = nn.Identity()


def int8(model: TransformerWrapper) -> None:
    layer = model.attn_layers.blocks[0].attn.to_out
    layer.weight = nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)


def parametrized(model: TransformerWrapper) -> None:
    parametrize.register_parametrization(model.to_logits, "weight", Scaled())


def lora(model: TransformerWrapper) -> None:
    peft.get_peft_model(model, peft.LoraConfig(target_modules=targets(model)))


def another_scheme(model: TransformerWrapper) -> None:
    scheme = AlibiBias(3, [0.5, 0.25, 0.125])
    kinds = [type(kind)(**{**vars(kind), "scheme": scheme}) for kind in model.attn_layers.kinds]
    model.attn_layers.set_positions([scheme], kinds)


@pytest.mark.parametrize(
    ("position", "change", "reason"),
    [
        ("absolute", longer_table, r"schemes\.0\.table has shape \[100, 24\]; the config describes \[300, 24\]"),
        ("rope", other_head, r"to_logits\.weight has shape \[50, 24\]; the config describes \[13, 24\]"),
        ("rope", added_bias, r"to_logits\.bias is not described by the config"),
        ("rope", tied_by_hand, r"to_logits\.weight is shared with another parameter"),
        ("rope", dropped, r"to_out\.weight is missing"),
        ("rope", int8, r"to_out\.weight has dtype torch\.int8"),
        ("rope", parametrized, r"to_logits\.parametrizations\.weight\.original is not described"),
        ("rope", lora, r"to_qkv\.lora_A\.default\.weight is not described"),
        ("rope", another_scheme, r"schemes\.0 is AlibiBias; the config describes RopeEmbedding"),
    ],
)
def test_other_changes_are_refused(tmp_path, position, change, reason: str) -> None:
    model = decoder(position, depth=1)
    model.save_pretrained(tmp_path / "before")
    change(model)
    with pytest.raises(PretrainedError, match=reason):
        model.save_pretrained(tmp_path / "after")
    assert not (tmp_path / "after").exists()


def test_sides_that_no_longer_share_an_embedding(tmp_path) -> None:
    model = encoder_decoder()
    model.encoder.token_emb = nn.Embedding(NUM_TOKENS, 24)
    with pytest.raises(PretrainedError, match=r"decoder\.net\.token_emb\.weight is not described by the config"):
        model.save_pretrained(tmp_path)


@torch.no_grad()
def test_changes_that_the_config_still_describes(tmp_path) -> None:
    """New values in a table of the same shape, another dtype, merged adapters; saving draws no random numbers."""
    model = decoder("rope", depth=1)
    model.token_emb = nn.Embedding(NUM_TOKENS, 24)
    model.attn_layers.blocks[0].ff.bfloat16()
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["to_qkv"], init_lora_weights=False))
    merged = adapted.merge_and_unload()
    state = torch.get_rng_state()
    merged.save_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    read = from_pretrained(tmp_path)
    assert read.state_dict().keys() == merged.state_dict().keys()
    assert all(torch.equal(read.state_dict()[name], value) for name, value in merged.state_dict().items())
    layers = Encoder(dim=24, depth=1, heads=3, head_dim=8, position="axial")
    for other in (encoder_decoder(), ViTransformerWrapper(image_size=8, patch_size=4, attn_layers=layers)):
        other.save_pretrained(tmp_path)
        from_pretrained(tmp_path)
