"""Small encoder-decoders of every family, and how to call them in transformers."""

from typing import Any

import torch
from torch import Tensor, nn

from tests.support.published.compare import EPS, VOCABULARY, Published, ids

START = 2
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 10,
    "d_ff": 44,
    "num_layers": 4,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 11,
    "layer_norm_epsilon": EPS,
    "pad_token_id": 0,
    "decoder_start_token_id": START,  # and no more layers than the encoder: the published cache cannot hold them
}
BART = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 4,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 44,
    "decoder_ffn_dim": 36,
    "max_position_embeddings": 40,
    "scale_embedding": True,
    "pad_token_id": 0,
    "decoder_start_token_id": START,
    "forced_eos_token_id": None,
}

CASES = [
    Published(name="t5", model="T5ForConditionalGeneration", config=T5),
    Published(
        name="t5 gated",
        model="T5ForConditionalGeneration",
        config={**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    Published(name="t5 gelu", model="T5ForConditionalGeneration", config={**T5, "feed_forward_proj": "gelu"}),
    Published(
        name="t5 gated silu", model="T5ForConditionalGeneration", config={**T5, "feed_forward_proj": "gated-silu"}
    ),
    Published(name="mt5", model="MT5ForConditionalGeneration", config=T5),
    # it counts padding on the left as tokens, and no argument changes that
    Published(name="bart", model="BartForConditionalGeneration", config=BART, padded=False),
    Published(
        name="bart plain",
        model="BartForConditionalGeneration",
        padded=False,
        config={**BART, "scale_embedding": False, "activation_function": "relu"},
    ),
]

T5GEMMA_SIDE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "max_position_embeddings": 64,
    "rms_norm_eps": EPS,
    "query_pre_attn_scalar": 7,
    "sliding_window": 6,
    "attn_logit_softcapping": 3.0,
    "final_logit_softcapping": 2.0,
    "pad_token_id": 0,
    "bos_token_id": START,
}
T5GEMMA = {
    "encoder": T5GEMMA_SIDE,
    "decoder": {
        **T5GEMMA_SIDE,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_key_value_heads": 4,
        "sliding_window": 5,
    },
    "decoder_start_token_id": START,
    "vocab_size": VOCABULARY,
}
CASES += [
    Published(name="umt5", model="UMT5ForConditionalGeneration", config=T5),
    Published(name="umt5, unscaled", model="UMT5ForConditionalGeneration", config={**T5, "tie_word_embeddings": False}),
    Published(name="t5gemma", model="T5GemmaForConditionalGeneration", config=T5GEMMA, attention="eager"),
    Published(
        name="t5gemma, untied",
        model="T5GemmaForConditionalGeneration",
        attention="eager",
        config={
            **T5GEMMA,
            "tie_word_embeddings": False,
            "encoder": {**T5GEMMA_SIDE, "attention_bias": True, "layer_types": ["full_attention"] * 3},
            "decoder": {**T5GEMMA_SIDE, "attn_logit_softcapping": None, "final_logit_softcapping": None},
        },
    ),
    Published(name="mbart", model="MBartForConditionalGeneration", config=BART, padded=False),
    Published(name="marian", model="MarianMTModel", config=BART, padded=False, computed="embed_positions"),
    Published(
        name="marian plain",
        model="MarianMTModel",
        padded=False,
        computed="embed_positions",
        config={**BART, "scale_embedding": False, "activation_function": "swish"},
    ),
    Published(name="pegasus", model="PegasusForConditionalGeneration", config=BART, padded=False),
    # it finds padding by its id, so that a mask of other tokens moves no positions
    Published(name="m2m_100", model="M2M100ForConditionalGeneration", config=BART, padded=False),
]


def sources(left: bool, T: int = 23) -> tuple[Tensor, Tensor]:
    """Rows of three lengths: ids [3 T], mask."""
    lengths, place = torch.tensor([T, T - 5, 4]), torch.arange(T)
    mask = place >= T - lengths[:, None] if left else place < lengths[:, None]
    return torch.where(mask, ids(3, T), 0), mask


@torch.no_grad()
def expected(
    model: nn.Module, src: Tensor, tgt: Tensor, mask: Tensor | None = None, tgt_mask: Tensor | None = None
) -> Tensor:
    """Their logits [B T V]."""
    given: dict[str, Any] = {"attention_mask": (torch.ones_like(src) if mask is None else mask).long()}
    if tgt_mask is not None:
        given["decoder_attention_mask"] = tgt_mask.long()
    return model(src, decoder_input_ids=tgt, use_cache=False, **given).logits
