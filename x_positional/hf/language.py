"""Decoders and encoders as models of transformers.

B batch, T tokens, M model dim, V vocabulary, E width of the embedding.
"""

from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import Cache, GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast, MaskedLMOutput

from x_positional.hf.base import XPositionalPreTrainedModel
from x_positional.hf.caching import CACHE_NAME
from x_positional.hf.configuration import XPositionalConfig
from x_positional.hf.generation import OwnCache
from x_positional.hf.losses import loss_and_logits
from x_positional.hf.reading import Read, read
from x_positional.models.language import TokenEncoder, TransformerWrapper
from x_positional.pretrained.modeling import auto_classes


class _Text(XPositionalPreTrainedModel):
    """A model of one stack."""

    net_class: ClassVar[type[TransformerWrapper]] = TransformerWrapper

    def _build(self, config: XPositionalConfig) -> nn.Module:
        native = config.native()
        found = auto_classes(str(config.model_class), native)
        if self.auto_class not in found:
            raise self._belongs_to(config, found)
        return self.net_class.from_config(native)  # type: ignore[arg-type]

    @property
    def _decoder(self) -> TransformerWrapper:
        """The model that generates."""
        return self.model

    def _read(self, input_ids: Tensor | None, inputs_embeds: Tensor | None, **given: Any) -> Read:
        return read(self, self._net, input_ids, inputs_embeds, **given)


class XPositionalModel(_Text):
    """Ids -> hidden states [B T M], for `AutoModel`."""

    auto_class = "AutoModel"
    net_class = TokenEncoder
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [
        r"^(model\.)?(to_logits|head)\.",
        r"^(model\.)?tied_bias$",
    ]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache: Cache | None = None,
    ) -> BaseModelOutputWithPast | tuple[Any, ...]:
        """As `XPositionalForCausalLM.forward`, without logits. With logits_proj hidden states are as wide as the embedding."""
        found = self._read(
            input_ids,
            inputs_embeds,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            past_key_values=past_key_values,
            cache=cache,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        out = BaseModelOutputWithPast(
            last_hidden_state=self._net.projected(found.hidden),  # type: ignore[arg-type]
            hidden_states=found.hidden_states,
            attentions=found.attentions,
            **{CACHE_NAME: found.cache},  # type: ignore[arg-type]
        )
        return self._returned(out, return_dict)


class XPositionalForCausalLM(OwnCache, _Text, GenerationMixin):
    """Ids -> logits [B T V], each predicting the next token, for `AutoModelForCausalLM`."""

    auto_class = "AutoModelForCausalLM"
    accepts_loss_kwargs = True

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: int | Tensor | None = None,
        cache: Cache | None = None,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Ids [B T] -> logits, and with labels the loss, as the models of transformers compute them.

        In training, the loss of more than 2^25 logits is computed by chunks of tokens, and logits are None.

        Args:
            input_ids: [B T].
            attention_mask: [B S], 1 at tokens and 0 at padding, with a cache also of earlier columns. Padding may be on either
                side. Or who sees whom, [B 1 T S]: bool, or 0 where visible and the dtype's minimum where not.
            token_type_ids: [B T], for models with token types.
            position_ids: [B T]; without them positions count the tokens that the mask shows. Rows packed without a mask and a
                cache restart them at each text.
            past_key_values: What an earlier call returned; `cache` is its name in transformers from 5.24 on.
            inputs_embeds: [B T E] in place of ids: rows of `get_input_embeddings()`.
            labels: [B T], the target of each place, -100 for none; they are shifted here.
            use_cache: Whether to return a cache. None: in eval mode, where cached keys stay right.
            output_attentions: Whether to return the attention maps [B H T S] of each layer.
            output_hidden_states: Whether to return the embeddings and what each block returns; the last one is normed.
            return_dict: False returns a tuple.
            logits_to_keep: Compute logits of the last places alone, 0 for all; or of these places.
            num_items_in_batch: What the sum of the loss is divided by, in place of the number of targets.
            cache: The same as past_key_values.

        Raises:
            InputError, PositionError, CacheError: Before any kernel runs.
        """
        found = self._read(
            input_ids,
            inputs_embeds,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            past_key_values=past_key_values,
            cache=cache,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        loss, logits = loss_and_logits(
            self, self._net, found.hidden, labels, num_items_in_batch, shifted=True, keep=logits_to_keep
        )
        out = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=found.hidden_states,
            attentions=found.attentions,
            **{CACHE_NAME: found.cache},  # type: ignore[arg-type]
        )
        return self._returned(out, return_dict)


class XPositionalForMaskedLM(_Text):
    """Ids -> logits [B T V] of the same places, for `AutoModelForMaskedLM`."""

    auto_class = "AutoModelForMaskedLM"
    accepts_loss_kwargs = True

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: int | Tensor | None = None,
    ) -> MaskedLMOutput | tuple[Any, ...]:
        """As `XPositionalForCausalLM.forward`, without a cache. labels: [B T], the id of each place, -100 for no target."""
        found = self._read(
            input_ids,
            inputs_embeds,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            use_cache=False,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        loss, logits = loss_and_logits(self, self._net, found.hidden, labels, num_items_in_batch)
        out = MaskedLMOutput(
            loss=loss,
            logits=logits,
            hidden_states=found.hidden_states,
            attentions=found.attentions,
        )
        return self._returned(out, return_dict)
