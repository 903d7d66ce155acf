"""An encoder-decoder as data."""

from pydantic import Field

from x_positional.config.models import FileConfig, ModelConfig


class Seq2SeqConfig(FileConfig):
    """An encoder, and a decoder with cross-attention to the encoder's output."""

    encoder: ModelConfig
    """The source side."""
    decoder: ModelConfig
    """The target side."""
    tie_token_emb: bool = False
    """Both sides share one token embedding."""
    ignore_index: int = -100
    """Targets with this value do not count in the loss."""
    pad_value: int = Field(default=0, ge=0)
    """The token that replaces `ignore_index` in the input and fills generated rows after their end."""
