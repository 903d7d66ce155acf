"""ELECTRA: BERT with narrower embeddings. The generator has a head of their width; of the discriminator the body is read."""

from x_positional.pretrained.config_json.codecs import Fixed, Key
from x_positional.pretrained.families.bert import BERT, GAMMA, POOLER, relabelled, sizes

ELECTRA = BERT.like(
    "electra",
    "ElectraForMaskedLM",
    codecs=(
        *sizes(256, 12, 4, 1024, 30522),
        Key("emb_dim", "embedding_size", 128),
        Key("head.width", "embedding_size", 128),
        Fixed("head.activation", "gelu"),
    ),
    names={
        **relabelled("electra."),
        "project_emb": "electra.embeddings_project",
        "head.linear": "generator_predictions.dense",
        "head.norm": "generator_predictions.LayerNorm",
        "to_logits": "generator_lm_head",
        "to_logits.bias": "generator_lm_head.bias",
        "tied_bias": "generator_lm_head.bias",
    },
    body_architecture="ElectraModel",
    prefix="electra.",
    ignored_tensors=(*POOLER, r"^discriminator_predictions\."),
    copies={},
    legacy_names=GAMMA,
    ignored_keys=BERT.ignored_keys | {"summary_last_dropout"},
)
