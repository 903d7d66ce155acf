"""What an encoder-decoder is, as data."""

from pydantic import Field

from x_positional.config.layers import FileConfig, ModelConfig


class Seq2SeqConfig(FileConfig):
    """An encoder, and a decoder that attends to what it gives. tie_token_emb: one table of embeddings for both.
    ignore_index, pad_value: as in `AutoregressiveWrapper`."""

    encoder: ModelConfig
    decoder: ModelConfig
    tie_token_emb: bool = False
    ignore_index: int = -100
    pad_value: int = Field(default=0, ge=0)
