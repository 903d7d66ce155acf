"""Small encoders of every family, with and without a head. The padding id is not 0 in all of them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.support.published.compare import EPS, VOCABULARY, Published, ids

PLAIN = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 44,
    "max_position_embeddings": 40,
    "layer_norm_eps": EPS,
    "pad_token_id": 0,
    "type_vocab_size": 3,
}
MODERN = {
    **{key: value for key, value in PLAIN.items() if key not in ("layer_norm_eps", "type_vocab_size")},
    "norm_eps": EPS,
    "num_hidden_layers": 5,
    "local_attention": 9,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}


@dataclass(frozen=True, kw_only=True)
class Encoded(Published):
    """A small encoder."""

    pad: int = 0
    """The padding id."""
    shift: int = 0
    """position_ids of the first token."""
    auto: str = "AutoModelForMaskedLM"
    """The class that reads it back."""
    types: bool = True
    """Whether it has token types."""
    renamed: bool = False
    """Whether its head is written under other names than it was read from."""


ROBERTA = {**PLAIN, "pad_token_id": 3, "max_position_embeddings": 44}
DISTILBERT = {
    "vocab_size": VOCABULARY,
    "dim": 32,
    "n_layers": 3,
    "n_heads": 4,
    "hidden_dim": 44,
    "max_position_embeddings": 40,
}
NESTED = {
    "full_attention": {"rope_type": "default", "rope_theta": 300.0},
    "sliding_attention": {"rope_type": "linear", "rope_theta": 50.0, "factor": 2.0},
}
UNTYPED = {key: value for key, value in PLAIN.items() if key != "type_vocab_size"}
MPNET = {**UNTYPED, "pad_token_id": 1}
EURO = {
    **{key: value for key, value in UNTYPED.items() if key != "layer_norm_eps"},
    "rms_norm_eps": EPS,
    "num_key_value_heads": 2,
}
DEBERTA = {
    **PLAIN,
    "relative_attention": True,
    "pos_att_type": "p2c|c2p",
    "position_buckets": 8,
    "max_relative_positions": 20,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "position_biased_input": False,
}

CASES = [
    Encoded(name="bert", model="BertForMaskedLM", config={**PLAIN, "hidden_act": "gelu_new"}),
    Encoded(name="bert body", model="BertModel", config=PLAIN, auto="AutoModel"),
    Encoded(name="bert untied", model="BertForMaskedLM", config={**PLAIN, "tie_word_embeddings": False}),
    Encoded(name="roberta", model="RobertaForMaskedLM", config={**ROBERTA, "hidden_act": "relu"}, pad=3, shift=4),
    Encoded(name="roberta body", model="RobertaModel", config=ROBERTA, pad=3, shift=4, auto="AutoModel"),
    Encoded(name="xlm-roberta", model="XLMRobertaForMaskedLM", config=ROBERTA, pad=3, shift=4),
    Encoded(name="modernbert", model="ModernBertForMaskedLM", config=MODERN, types=False),
    Encoded(
        name="modernbert body",
        model="ModernBertModel",
        types=False,
        auto="AutoModel",
        config={
            **MODERN,
            "local_attention": 6,
            "rope_parameters": NESTED,
            "layer_types": [
                "sliding_attention",
                "full_attention",
                "sliding_attention",
                "sliding_attention",
                "full_attention",
            ],
        },
    ),
    Encoded(
        name="modernbert with biases",
        model="ModernBertForMaskedLM",
        types=False,
        config={
            **MODERN,
            "norm_bias": True,
            "attention_bias": True,
            "mlp_bias": True,
            "classifier_bias": True,
            "classifier_activation": "relu",
            "hidden_activation": "silu",
            "decoder_bias": False,
            "tie_word_embeddings": False,
        },
    ),
    Encoded(name="nomic_bert", model="NomicBertForMaskedLM", config={**PLAIN, "head_dim": 6}),
    Encoded(name="nomic_bert body", model="NomicBertModel", config={**PLAIN, "hidden_act": "gelu"}, auto="AutoModel"),
    Encoded(name="distilbert", model="DistilBertForMaskedLM", types=False, config=DISTILBERT),
    Encoded(
        name="distilbert body",
        model="DistilBertModel",
        types=False,
        auto="AutoModel",
        config={**DISTILBERT, "activation": "relu", "sinusoidal_pos_embds": True},
    ),
    Encoded(name="electra", model="ElectraForMaskedLM", config={**PLAIN, "embedding_size": 20, "hidden_act": "relu"}),
    Encoded(name="electra body", model="ElectraModel", config={**PLAIN, "embedding_size": 20}, auto="AutoModel"),
    Encoded(
        name="electra, one width",
        model="ElectraForMaskedLM",
        config={**PLAIN, "embedding_size": 32, "tie_word_embeddings": False},
    ),
    Encoded(name="camembert", model="CamembertForMaskedLM", config=ROBERTA, pad=3, shift=4),
    Encoded(name="xlm-roberta-xl", model="XLMRobertaXLForMaskedLM", config=ROBERTA, pad=3, shift=4),
    Encoded(name="xlm-roberta-xl body", model="XLMRobertaXLModel", config=ROBERTA, pad=3, shift=4, auto="AutoModel"),
    # distances are between slots there
    Encoded(
        name="mpnet",
        attention="eager",
        model="MPNetForMaskedLM",
        config=MPNET,
        pad=1,
        shift=2,
        types=False,
        jumping=False,
    ),
    Encoded(
        name="mpnet body",
        attention="eager",
        model="MPNetModel",
        config={**MPNET, "hidden_act": "relu"},
        pad=1,
        shift=2,
        types=False,
        jumping=False,
        auto="AutoModel",
    ),
    Encoded(
        name="roformer",
        attention="eager",
        jumping=False,
        model="RoFormerForMaskedLM",
        computed="embed_positions",
        config={**PLAIN, "embedding_size": 20, "hidden_act": "gelu_new"},
    ),
    Encoded(
        name="roformer body",
        attention="eager",
        jumping=False,
        model="RoFormerModel",
        computed="embed_positions",
        config=PLAIN,
        auto="AutoModel",
    ),
    Encoded(name="eurobert", model="EuroBertForMaskedLM", types=False, config=EURO),
    Encoded(
        name="eurobert with biases",
        model="EuroBertForMaskedLM",
        types=False,
        config={**EURO, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "head_dim": 10},
    ),
    Encoded(
        name="eurobert body",
        model="EuroBertModel",
        types=False,
        auto="AutoModel",
        config={
            **EURO,
            "num_key_value_heads": 4,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 50.0, "factor": 2.0},
        },
    ),
    # distances are between cache slots there; position_ids are ignored
    Encoded(name="deberta", model="DebertaV2ForMaskedLM", attention="eager", jumping=False, config=DEBERTA),
    Encoded(
        name="deberta body",
        model="DebertaV2Model",
        attention="eager",
        jumping=False,
        auto="AutoModel",
        config={**DEBERTA, "share_att_key": False, "position_biased_input": True, "hidden_act": "gelu_new"},
    ),
    Encoded(
        name="deberta, words ask",
        model="DebertaV2ForMaskedLM",
        attention="eager",
        jumping=False,
        types=False,
        config={**DEBERTA, "pos_att_type": ["c2p"], "norm_rel_ebd": "none", "type_vocab_size": 0},
    ),
    Encoded(
        name="deberta, positions ask, no buckets",
        model="DebertaV2ForMaskedLM",
        attention="eager",
        jumping=False,
        config={
            **DEBERTA,
            "pos_att_type": ["p2c"],
            "position_buckets": -1,
            "max_relative_positions": 9,
            "tie_word_embeddings": False,
        },
    ),
    Encoded(
        name="deberta, its newer head",
        model="DebertaV2ForMaskedLM",
        attention="eager",
        jumping=False,
        renamed=True,
        config={**DEBERTA, "legacy": False},
    ),
]


def words(case: Encoded, batch: int, length: int, seed: int = 0) -> Tensor:
    """[B T] ids above the padding id."""
    return ids(batch, length, seed).clamp(min=case.pad + 1)


def padded(case: Encoded, left: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of three lengths: tokens, mask [B T], positions [B T] that start at the first token."""
    lengths, T = torch.tensor([case.length, case.length - 5, 4]), case.length
    place = torch.arange(T)
    mask = place >= T - lengths[:, None] if left else place < lengths[:, None]
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
    return torch.where(mask, words(case, 3, T), case.pad), mask, positions


@torch.no_grad()
def expected(model: nn.Module, tokens: Tensor, mask: Tensor | None = None, **given: Any) -> Tensor:
    """Their logits [B T V], or hidden states [B T M]."""
    mask = torch.ones_like(tokens) if mask is None else mask.long()
    out = model(tokens, attention_mask=mask, **given)
    return out.logits if "logits" in out else out.last_hidden_state
