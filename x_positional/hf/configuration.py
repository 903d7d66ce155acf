"""The config of a model of x_positional as transformers' config."""

from typing import Any, ClassVar

from transformers import PreTrainedConfig
from typing_extensions import Self

from x_positional.config.models import ModelConfig, plain
from x_positional.config.seq2seq import Seq2SeqConfig
from x_positional.errors import PretrainedError
from x_positional.pretrained.native import CLASSES, NATIVE


class XPositionalConfig(PreTrainedConfig):
    """x_positional's config.json: `class` names a class of x_positional, and `model` holds its config.

    Sizes that tools of transformers ask for (`vocab_size`, `hidden_size`, ...) are read from these. Make one of a built model
    with `XPositionalConfig.of(model)`.
    """

    model_type = NATIVE
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values", "cache"]

    model: dict[str, Any] | None = None
    """The config of the model, as `plain(model.config)`."""
    use_cache: bool = True
    """Whether calls in eval mode return a cache, where none is given."""

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**{key: kwargs[key] for key in sorted(kwargs, key=lambda key: key != "class")})
        self.is_encoder_decoder = self.model_class in CLASSES and CLASSES[self.model_class][1] is Seq2SeqConfig

    def __setattr__(self, key: str, value: Any) -> None:
        """As in transformers. Raises PretrainedError for a size that differs from the model's, which no key changes."""
        if not isinstance(vars(XPositionalConfig).get(key), property):
            super().__setattr__(key, value)
        elif value != (size := getattr(self, key)):
            raise PretrainedError(
                "this config cannot be changed:",
                [
                    f"{key}={value!r}, but the model has {size!r}, which is read from `model`. Leave {key} out; "
                    "resize_token_embeddings changes the number of ids."
                ],
            )

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoConfig") -> None:
        """Nothing: transformers would copy the source of this class beside every saved model."""

    @classmethod
    def of(cls, model: Any, **kwargs: Any) -> Self:
        """The config of a built model. kwargs: further keys, such as `eos_token_id`."""
        return cls(**{"class": type(model).__name__, "model": plain(model.config), **kwargs})

    @property
    def model_class(self) -> str | None:
        """The class of x_positional."""
        return vars(self).get("class")

    def native(self) -> ModelConfig | Seq2SeqConfig:
        """The config that the model is built of. Raises PretrainedError."""
        if self.model_class not in CLASSES or self.model is None:
            raise PretrainedError(
                "this XPositionalConfig describes no model:",
                [f"class={self.model_class!r}, model={self.model!r}. Use XPositionalConfig.of(model)."],
            )
        config = CLASSES[self.model_class][1].model_validate(self.model)
        if not isinstance(config, ModelConfig | Seq2SeqConfig):
            raise PretrainedError(
                f"a {self.model_class} cannot be used in transformers:", ["only text models and encoder-decoders can."]
            )
        return config

    @property
    def _decoder(self) -> ModelConfig | None:
        if self.model is None:
            return None
        config = self.native()
        return config.decoder if isinstance(config, Seq2SeqConfig) else config

    @property
    def vocab_size(self) -> int | None:
        """Number of ids."""
        return None if self._decoder is None else self._decoder.num_tokens

    @property
    def max_position_embeddings(self) -> int | None:
        """Trained length. Many schemes extrapolate beyond it."""
        return None if self._decoder is None else self._decoder.max_seq_len

    @property
    def hidden_size(self) -> int | None:
        """Width of the hidden states."""
        return None if self._decoder is None else self._decoder.layers.dim

    @property
    def num_hidden_layers(self) -> int | None:
        """Number of blocks."""
        return None if self._decoder is None else self._decoder.layers.depth

    @property
    def num_attention_heads(self) -> int | None:
        """Number of query heads."""
        return None if self._decoder is None else self._decoder.layers.heads

    @property
    def tie_word_embeddings(self) -> bool:
        """Whether tables are shared: by the logits and the embedding, or by the two sides of an encoder-decoder."""
        if self.model is None:
            return False
        config = self.native()
        shared = isinstance(config, Seq2SeqConfig) and config.tie_token_emb
        return shared or (config.decoder if isinstance(config, Seq2SeqConfig) else config).tie_embedding
