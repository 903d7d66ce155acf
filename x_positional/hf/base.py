"""What all classes for transformers share: building, loading, embeddings, resizing, checkpointing, saving.

V vocabulary, E width of the embedding.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

from torch import nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from x_positional.config.models import plain
from x_positional.errors import ArgumentError, PretrainedError
from x_positional.hf.configuration import XPositionalConfig
from x_positional.models.language import TransformerWrapper
from x_positional.modules.stack import set_activation_checkpointing
from x_positional.pretrained.folder import MODELING
from x_positional.pretrained.modeling import SOURCE, auto_classes, class_keys

NETS = ["TransformerWrapper", "TokenEncoder", "XTransformer"]


class XPositionalPreTrainedModel(PreTrainedModel):
    """A model of transformers around one of x_positional, `model`, whose parameters keep their names after the prefix."""

    config_class = XPositionalConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    gradient_checkpointing = False
    _no_split_modules: ClassVar[list[str]] = (
        NETS  # tables of one call are shared by all blocks, so they stay on one device
    )
    _supports_sdpa = True
    auto_class: ClassVar[str]
    """The Auto class that this one is registered with."""
    model: Any
    config: XPositionalConfig

    def __init__(self, config: XPositionalConfig):
        super().__init__(config)
        self._loading = False
        self.model = self._build(config)
        shared: dict[int, str] = {}
        names = [(n, shared.setdefault(id(p), n)) for n, p in self.named_parameters(remove_duplicate=False)]
        self._tied_weights_keys = {name: first for name, first in names if name != first}
        self.post_init()
        self._loading = True

    def _build(self, config: XPositionalConfig) -> nn.Module:
        """The model of a config. Raises PretrainedError where another class of transformers holds it."""
        raise TypeError(f"{type(self).__name__} defines no _build(config)")

    def _belongs_to(self, config: XPositionalConfig, classes: Iterable[str]) -> PretrainedError:
        """Why this class cannot hold a model. classes: the Auto classes that can."""
        return PretrainedError(
            f"{type(self).__name__} cannot hold this model:",
            [f"it is a {config.model_class}; use {' or '.join(classes)}."],
        )

    @property
    def _net(self) -> TransformerWrapper:
        """The model that reads `input_ids`."""
        return self.model

    def initialize_weights(self) -> None:
        """New models are initialised where they are built, by x_positional. Called after loading, it finds what is missing.

        Raises:
            PretrainedError: With the parameters that a checkpoint lacks.
        """
        missing = [n for n, p in self.named_parameters() if not getattr(p, "_is_hf_initialized", False)]
        if self._loading and missing:
            raise PretrainedError("the checkpoint does not fit its config.json:", [f"{n} is missing." for n in missing])

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:  # type: ignore[override]
        """As in transformers, which warns of tensors that the model of config.json has no place for.

        Raises:
            PretrainedError: With those tensors.
        """
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model, found = loaded
        if unexpected := sorted(found["unexpected_keys"]):
            problems = [f"unexpected tensor {name} in the checkpoint." for name in unexpected]
            raise PretrainedError("the checkpoint does not fit its config.json:", problems)
        return (model, found) if output_loading_info else model

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: see `initialize_weights`."""

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoModel") -> None:
        """Nothing: transformers would copy the source of this class beside every saved model."""

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """As in transformers, with the module that imports x_positional beside the weights."""
        native = self.config.native()
        for key, value in class_keys(auto_classes(str(self.config.model_class), native)).items():
            setattr(self.config, key, value)
        super().save_pretrained(save_directory, **kwargs)
        if kwargs.get("is_main_process", True) and Path(save_directory, "config.json").is_file():
            Path(save_directory, MODELING).write_text(SOURCE, encoding="utf-8")

    def get_input_embeddings(self) -> nn.Module:
        """The table that `input_ids` are looked up in."""
        return self._net.token_emb

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the table. Raises ArgumentError for another number of ids, which `resize_token_embeddings` is for."""
        rows = getattr(value, "num_embeddings", self._net.num_tokens)
        if rows != self._net.num_tokens:
            raise ArgumentError(
                f"the new table has {rows} rows, and the model {self._net.num_tokens} ids. Use resize_token_embeddings({rows})."
            )
        self._net.token_emb = value  # type: ignore[assignment]

    def get_output_embeddings(self) -> nn.Module | None:
        """The matrix of the logits; None without one, or where it is the embedding."""
        return self._net.to_logits

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the matrix of the logits."""
        self._net.to_logits = new_embeddings  # type: ignore[assignment]

    def resize_token_embeddings(  # type: ignore[override]
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Module:
        """Change the number of ids: see `TransformerWrapper.resize_token_embeddings`. Old rows stay bit for bit.

        Args:
            new_num_tokens: V; None keeps it.
            pad_to_multiple_of: Round V up to a multiple of this.
            mean_resizing: New rows are the mean of the old ones, without transformers' noise; False draws them as in a new model.
        """
        size = self._net.num_tokens if new_num_tokens is None else new_num_tokens
        if pad_to_multiple_of is not None:
            if pad_to_multiple_of < 1:
                raise ArgumentError(f"pad_to_multiple_of={pad_to_multiple_of} must be at least 1.")
            size = -(-size // pad_to_multiple_of) * pad_to_multiple_of
        if size != self._net.num_tokens:
            self.model.resize_token_embeddings(size, init="mean" if mean_resizing else "fresh")
            self.config.model = plain(self.model.config)
            self.tie_weights()
        return self.get_input_embeddings()

    def _set_gradient_checkpointing(
        self,
        enable: bool = True,
        gradient_checkpointing_func: Callable[..., Any] | None = None,
        every_n_layers: int = 1,
    ) -> None:
        """Recompute blocks in backward. Raises ArgumentError for options that x_positional's checkpoints do not have."""
        options = getattr(gradient_checkpointing_func, "keywords", {})
        given = {name: value for name, value in options.items() if value not in (None, False)}
        if enable and (given or every_n_layers != 1):
            given |= {} if every_n_layers == 1 else {"every_n_layers": every_n_layers}
            shown = ", ".join(f"{name}={value!r}" for name, value in given.items())
            raise ArgumentError(
                f"gradient checkpointing with {shown} is not supported: every block is recomputed, without reentrant autograd. "
                "Leave these options out, or pass use_reentrant=False."
            )
        set_activation_checkpointing(self.model, "blocks" if enable else "none")
        self.gradient_checkpointing = enable

    def _returned(self, out: ModelOutput, return_dict: bool | None) -> Any:
        """An output, or the tuple of what is in it."""
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return out if as_dict else out.to_tuple()
