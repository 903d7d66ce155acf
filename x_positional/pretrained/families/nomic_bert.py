"""Nomic BERT: a rotary BERT with a gated feedforward, queries, keys and values in one tensor on disk."""

from dataclasses import dataclass

from x_positional.pretrained.families.bert import BERT, IDLE_BIAS, POOLER
from x_positional.pretrained.families.llama import ROPE
from x_positional.pretrained.fields import Codec, Fields, Fixed, Hf, Key
from x_positional.pretrained.layouts import Joined


@dataclass(frozen=True)
class Renamed(Key):
    """A key that the first published code called otherwise."""

    older: str = ""

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key, self.older)

    def read(self, hf: Hf) -> Fields:
        return super().read({**hf, self.key: hf.get(self.older)} if hf.get(self.key) is None else hf)


def _head_dim(hf: Hf) -> int:
    sizes = DIM.read(hf) | HEADS.read(hf)
    return sizes["layers.dim"] // sizes["layers.heads"]


DIM = Renamed("layers.dim", "hidden_size", 768, older="n_embd")
HEADS = Renamed("layers.heads", "num_attention_heads", 12, older="n_head")
ACTIVATION = {"silu": "silu", "swish": "silu", "gelu": "gelu", "relu": "relu"}
SIZES: tuple[Codec, ...] = (
    Key("num_tokens", "vocab_size", 30528), DIM, HEADS,
    Renamed("max_seq_len", "max_position_embeddings", 2048, older="n_positions"),
    Renamed("layers.depth", "num_hidden_layers", 12, older="n_layer"),
    Key("layers.head_dim", "head_dim", _head_dim),
    Renamed("layers.ff.dim", "intermediate_size", 3072, older="n_inner"),
)  # fmt: skip

NOMIC_BERT = BERT.like(
    "nomic_bert", "NomicBertForMaskedLM",
    fields=(
        *SIZES, ROPE,
        Fixed("layers.attn.bias", False), Fixed("layers.ff.bias", False), Fixed("layers.ff.glu", True),
        Key("layers.ff.activation", "hidden_act", "silu", ACTIVATION),
        Key("head.activation", "hidden_act", "silu", ACTIVATION),
    ),
    names={
        "token_emb": "nomic_bert.embeddings.word_embeddings",
        "token_type_emb": "nomic_bert.embeddings.token_type_embeddings",
        "schemes.0": None,
        "emb_norm": "nomic_bert.emb_ln",
        "blocks.{i}.attn.to_qkv": "nomic_bert.encoder.layers.{i}.attn.Wqkv",
        "blocks.{i}.attn.to_out": "nomic_bert.encoder.layers.{i}.attn.out_proj",
        "blocks.{i}.attn_residual.outer": "nomic_bert.encoder.layers.{i}.norm1",
        "blocks.{i}.ff.up": Joined(("nomic_bert.encoder.layers.{i}.mlp.fc11", "nomic_bert.encoder.layers.{i}.mlp.fc12")),
        "blocks.{i}.ff.down": "nomic_bert.encoder.layers.{i}.mlp.fc2",
        "blocks.{i}.ff_residual.outer": "nomic_bert.encoder.layers.{i}.norm2",
        "head.norm": "cls.predictions.transform.layer_norm",
    },
    body="NomicBertModel", base="nomic_bert.", ignored=(*POOLER, IDLE_BIAS, r"inv_freq$"),
)  # fmt: skip
