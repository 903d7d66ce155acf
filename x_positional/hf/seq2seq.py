"""Encoder-decoders as models of transformers.

B batch, S source tokens, T target tokens, M model dim, V vocabulary, E width of the embedding.
"""

from typing import Any

from torch import Tensor, nn
from transformers import Cache, GenerationMixin
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

from x_positional.config.seq2seq import Seq2SeqConfig
from x_positional.errors import InputError
from x_positional.hf.base import XPositionalPreTrainedModel
from x_positional.hf.caching import CACHE_NAME
from x_positional.hf.configuration import XPositionalConfig
from x_positional.hf.generation import OwnCache
from x_positional.hf.losses import loss_and_logits
from x_positional.hf.reading import read
from x_positional.models.language import TransformerWrapper
from x_positional.models.seq2seq import XTransformer
from x_positional.pretrained.modeling import auto_classes


class SourceEncoder(nn.Module):
    """The encoder of a model, called as transformers calls one. Made for each call, it owns nothing."""

    main_input_name = "input_ids"

    def __init__(self, model: Any):
        super().__init__()
        self._of = (model,)  # in a tuple, so that it is no submodule

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutput | tuple[Any, ...]:
        """Source ids [B S] -> hidden states [B S M]."""
        model = self._of[0]
        found = read(
            model,
            model.model.encoder,
            input_ids,
            inputs_embeds,
            attention_mask=attention_mask,
            token_type_ids=None,
            position_ids=None,
            use_cache=False,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        out = BaseModelOutput(
            last_hidden_state=model.model.encoder.projected(found.hidden),
            hidden_states=found.hidden_states,
            attentions=found.attentions,
        )
        return model._returned(out, return_dict)


class XPositionalForSeq2SeqLM(OwnCache, XPositionalPreTrainedModel, GenerationMixin):
    """Source ids and target ids -> logits [B T V], for `AutoModelForSeq2SeqLM`."""

    auto_class = "AutoModelForSeq2SeqLM"
    accepts_loss_kwargs = True
    model: XTransformer

    def __init__(self, config: XPositionalConfig):
        super().__init__(config)
        self.loss_type = "ForMaskedLM"  # transformers' name of the loss of labels that are not shifted

    def _build(self, config: XPositionalConfig) -> nn.Module:
        native = config.native()
        if not isinstance(native, Seq2SeqConfig):
            raise self._belongs_to(config, auto_classes(str(config.model_class), native))
        return XTransformer.from_config(native)

    @property
    def _net(self) -> TransformerWrapper:
        return self.model.encoder

    @property
    def _decoder(self) -> TransformerWrapper:
        return self.model.decoder.net

    def get_encoder(self, modality: str | None = None) -> SourceEncoder:  # type: ignore[override]
        """What `generate` encodes the source with."""
        return SourceEncoder(self)

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the table of the source, and of the target where they share one."""
        shared = self._decoder.token_emb is self._net.token_emb
        super().set_input_embeddings(value)
        if shared:
            self._decoder.token_emb = value  # type: ignore[assignment]

    def get_output_embeddings(self) -> nn.Module | None:
        """The matrix of the logits; None where it is the embedding."""
        return self._decoder.to_logits

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the matrix of the logits."""
        self._decoder.to_logits = new_embeddings  # type: ignore[assignment]

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """Labels [B T] -> what the decoder reads: the start token, then all labels but the last, with padding for -100.

        Raises InputError without a decoder_start_token_id.
        """
        config = self.config
        start = getattr(config, "decoder_start_token_id", None)
        start = getattr(self.generation_config, "decoder_start_token_id", None) if start is None else start
        if start is None:
            raise InputError(
                "labels need model.config.decoder_start_token_id, the id that the target starts with. Set it, or pass "
                "decoder_input_ids too."
            )
        pad = getattr(config, "pad_token_id", None)
        pad = self.model.config.pad_value if pad is None else pad
        shifted = labels.new_full(labels.shape, start)
        shifted[:, 1:] = labels[:, :-1]
        return shifted.masked_fill(shifted == -100, pad)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: int | Tensor | None = None,
        cache: Cache | None = None,
    ) -> Seq2SeqLMOutput | tuple[Any, ...]:
        """Source and target ids -> logits, and with labels the loss, as in T5 of transformers.

        Args:
            input_ids: [B S] source ids.
            attention_mask: [B S], 1 at source tokens.
            decoder_input_ids: [B T]; without them, labels shifted to the right.
            decoder_attention_mask: [B T], 1 at target tokens.
            encoder_outputs: What `get_encoder()` returned for the source; a filled cache holds what is needed of it.
            past_key_values: What an earlier call returned; `cache` is its name in transformers from 5.24 on.
            inputs_embeds: [B S E] in place of source ids.
            decoder_inputs_embeds: [B T E] in place of target ids.
            labels: [B T] the id that each place predicts, -100 for none. They are not shifted.
            use_cache: Whether to return a cache. None: in eval mode, where cached keys stay right.
            output_attentions: Whether to return the attention maps of each layer.
            output_hidden_states: Whether to return the embeddings and what each block returns; the last one is normed.
            return_dict: False returns a tuple.
            num_items_in_batch: What the sum of the loss is divided by, in place of the number of targets.
            cache: The same as past_key_values.

        Raises:
            InputError, PositionError, CacheError: Before any kernel runs.
        """
        if encoder_outputs is None:
            wanted = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
            encoder_outputs = self.get_encoder()(input_ids, attention_mask, inputs_embeds, **wanted, return_dict=True)
        elif not isinstance(encoder_outputs, BaseModelOutput):
            encoder_outputs = BaseModelOutput(*encoder_outputs)
        if labels is not None and decoder_input_ids is None and decoder_inputs_embeds is None:
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        source = encoder_outputs.last_hidden_state
        found = read(
            self,
            self._decoder,
            decoder_input_ids,
            decoder_inputs_embeds,
            attention_mask=decoder_attention_mask,
            token_type_ids=None,
            position_ids=None,
            past_key_values=past_key_values,
            cache=cache,
            use_cache=False if labels is not None and use_cache is None else use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            context={"context": source, "context_mask": None if attention_mask is None else attention_mask.bool()},
        )
        loss, logits = loss_and_logits(self, self._decoder, found.hidden, labels, num_items_in_batch)
        out = Seq2SeqLMOutput(
            loss=loss,
            logits=logits,
            decoder_hidden_states=found.hidden_states,
            decoder_attentions=found.attentions,
            cross_attentions=found.cross_attentions,
            encoder_last_hidden_state=source,
            encoder_hidden_states=encoder_outputs.hidden_states,
            encoder_attentions=encoder_outputs.attentions,
            **{CACHE_NAME: found.cache},  # type: ignore[arg-type]
        )
        return self._returned(out, return_dict)
