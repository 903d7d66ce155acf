"""RoFormer: BERT with RoPE on interleaved pairs in place of a table, and embeddings of a width of their own."""

from x_positional.pretrained.config_json.codecs import Fixed, Key, Only
from x_positional.pretrained.families.bart import TABLE_BUFFERS
from x_positional.pretrained.families.bert import BERT, IDLE_BIAS, POOLER, relabelled, sizes
from x_positional.schemes import Rope

ROFORMER = BERT.like(
    "roformer",
    "RoFormerForMaskedLM",
    codecs=(
        *sizes(768, 12, 12, 3072, 50000),
        Key("max_seq_len", "max_position_embeddings", 1536),
        *(Key(path, "embedding_size", lambda hf: hf.get("hidden_size") or 768) for path in ("emb_dim", "head.width")),
        Fixed("layers.position", [Rope(interleaved=True)]),
        Only("rotary_value", (False,), "rotated values are unsupported."),
    ),
    names={**relabelled("roformer."), "schemes.0": None, "project_emb": "roformer.embeddings_project"},
    body_architecture="RoFormerModel",
    prefix="roformer.",
    ignored_tensors=(*POOLER, IDLE_BIAS, *TABLE_BUFFERS),
)
