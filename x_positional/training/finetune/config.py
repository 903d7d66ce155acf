"""The sections of a training config that make it fine-tuning. Each is optional, and None by default."""

from typing import Any, Literal

from pydantic import Field, field_validator

from x_positional.schemes.registry import Config


class InitConfig(Config):
    """The weights that a run starts from, in place of random ones."""

    source: str = Field(min_length=1)
    """A folder of a published model, a GGUF file, a run folder, or a model name on the Hub."""


class ChatConfig(Config):
    """Conversations to train on: `data.path` is a JSON Lines file. They are rendered by the chat template of `init.source`.

    A line is `{"messages": [{"role": ..., "content": ...}, ...]}`, `{"prompt": ..., "completion": ...}` or `{"text": ...}`.
    Targets are the tokens of the assistant's messages, of the completion, or of the whole text.
    """

    validation: str | None = Field(default=None, min_length=1)
    """A JSON Lines file held out for validation. None holds out `data.val_fraction` of the conversations."""
    answers: Literal["all", "last"] = "all"
    """Which of the assistant's messages are targets."""
    too_long: Literal["error", "truncate", "skip"] = "error"
    """What happens to a conversation of more than `data.seq_len` tokens. `truncate` drops its last tokens."""
    pack: bool = True
    """Put several conversations into one row. None of them sees another."""
    epochs: float = Field(default=3.0, gt=0.0)
    """Times that every conversation is seen, where `run.steps` is not set."""


class LoraConfig(Config):
    """Low-rank adapters, trained in place of the model's parameters (LoRA: Hu et al. 2021, arXiv:2106.09685). peft's names."""

    r: int = Field(default=16, ge=1)
    """Rank of the update of each matrix."""
    lora_alpha: float = Field(default=32.0, gt=0.0)
    """The update is scaled by `lora_alpha / r`."""
    lora_dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout of what an adapter reads."""
    target_modules: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Names of linear layers, or how these names end, as `to_qkv`. None is every linear layer of every block."""

    @field_validator("target_modules", mode="before")
    @classmethod
    def _one_name(cls, names: Any) -> Any:
        return (names,) if isinstance(names, str) else names
