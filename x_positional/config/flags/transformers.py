"""Keywords of transformers' forward and generate: renamed where they mean the same, otherwise refused with a reason."""

from collections.abc import Mapping
from typing import Any

from x_positional.attention.cache import KVCache
from x_positional.config.flags.entry import REQUIRED, Flag, Translation, refused, table, translated

_CACHE = (
    "The cache is an object that each call updates. Use `cache=model.new_cache(batch_size)` and pass only new tokens."
)
_HIDDEN = "Only the last hidden states are kept. Use `return_embeddings=True` of the model."
_MAPS = "This call does not return attention maps. Leave it out."
_MASK = "Padding is a bool mask. Use `mask=attention_mask.bool()` where it is [B, T], 1 = a token."
_LOSS_MASK = f"{_MASK} With a mask of who sees whom, call the model for its logits, and compute the loss from them."
_IDS = "This call takes token ids. For embeddings use an `Encoder`, a `Decoder` or `ContinuousTransformerWrapper`."
_EMBEDS = (
    "Embeddings are read before the prompts. Use `prepend_embeds=`, with prompts=None where they are the whole prompt."
)
_SHIFTED = "The call shifts the target itself. Use `tgt=` with the whole target, and `labels=` where targets differ."
_FUNCTION = "There is no such filter. Use a function of the logits as `filter_logits_fn=`."
_PAD = "Rows are filled with the wrapper's pad_value after their eos. Use `AutoregressiveWrapper(net, pad_value=...)`."
_BEAMS = "The best sequence is known after the last token, so nothing can be streamed. Use `generate`."
_FLOATS = "This model takes floats. For token ids use `TransformerWrapper`."
_ONLY_NEW = "transformers returns the prompt with the new tokens, this call the new tokens alone. Use "
_ONLY_NEW_TARGET = (
    "transformers returns the start tokens too, this call the new ones alone. Use `src=` and `start_tokens=`."
)


def _kv_cache(value: Any, keywords: Mapping[str, Any]) -> dict[str, Any] | str:
    return {"cache": value} if isinstance(value, KVCache) else _CACHE


def _positions(value: Any, keywords: Mapping[str, Any]) -> dict[str, Any] | str:
    if getattr(value, "ndim", 2) != 3:
        return {"positions": value}
    return "Position axes come last here. Use `positions=position_ids.movedim(0, -1)`."


def _do_sample(value: Any, keywords: Mapping[str, Any]) -> dict[str, Any] | str:
    if not isinstance(value, bool):
        return "It must be a bool."
    if not value:
        return {"temperature": 0}
    if keywords.get("num_beams") not in (None, 1):
        return "Beam search draws nothing, and beams are not sampled. Pass do_sample=False."
    contradicts = keywords.get("temperature") == 0
    return (
        "temperature=0 takes the most likely token. Pass a temperature above 0, or do_sample=False."
        if contradicts
        else {}
    )


def _filters(value: Any, keywords: Mapping[str, Any]) -> dict[str, Any] | str:
    """top_k, top_p and min_p together, in the order in which transformers applies them."""
    top_k, top_p, min_p = (keywords.get(name) for name in ("top_k", "top_p", "min_p"))
    chosen: list[tuple[str, dict[str, Any]]] = [("top_k", {"k": top_k})] if top_k else []
    chosen += [("top_p", {"thres": top_p})] if top_p is not None and top_p != 1 else []
    chosen += [("min_p", {"min_p": min_p})] if min_p else []
    if keywords.get("temperature") not in (None, 0, 1) and any(name != "top_k" for name, _ in chosen):
        return (
            "transformers divides by the temperature before top_p and min_p, here filters come first. "
            "Use `filter_logits_fn=` for this order."
        )
    if not chosen:
        return {"filter_logits_fn": None}
    if len(chosen) == 1:
        return {"filter_logits_fn": chosen[0][0], "filter_kwargs": chosen[0][1]}
    return {"filter_logits_fn": [name for name, _ in chosen], "filter_kwargs": [options for _, options in chosen]}


ID = -1
"""No id, as the off value of keywords that 0 is a value of."""


def _all(note: str, *names: str, off: Any = None, instead: str | None = None) -> list[Flag]:
    """off: the value that changes nothing, besides None, False, 0 and empty ones."""
    return [refused(name, off, note, instead) for name in names]


def _renamed(name: str, field: str, note: str, how: Translation | None = None) -> Flag:
    return translated(name, REQUIRED, field, note, how)


_POSITIONS = _renamed(
    "position_ids", "positions", "[B, T]; -1 for no token. Padding that `mask` hides is left out.", _positions
)

# Names with two entries: the second one is for the calls that do not have the parameter of the first.
_INPUTS: list[Flag] = [
    _POSITIONS,
    *_all("This call takes no positions. Leave it out.", "position_ids"),
    _renamed("token_type_ids", "token_types", "[B, T], from 0."),
    *_all("This call takes no token types. Leave it out.", "token_type_ids"),
    *_all(_MASK, "attention_mask"),
    _renamed("encoder_hidden_states", "context", "[B, S, M], for cross-attention."),
    _renamed("encoder_attention_mask", "context_mask", "[B, S] bool, True = keep."),
    *_all(_MAPS, "output_attentions", instead="return_attention"),
    *_all(_HIDDEN, "output_hidden_states"),
    *_all("The call returns a tensor. Leave it out.", "return_dict"),
    *_all("Heads cannot be masked in a call. Leave it out.", "head_mask", "decoder_head_mask", "cross_attn_head_mask"),
    *_all("A cache counts its own tokens. Leave it out.", "cache_position"),
    *_all(
        "Every token gets logits. Use `return_embeddings=True`, and `model.logits` of the hidden states that you need.",
        "logits_to_keep",
        "num_logits_to_keep",
    ),
]
_CACHED = [
    _renamed("past_key_values", "cache", "A cache of `new_cache`; one of transformers is refused.", _kv_cache),
    *_all(_CACHE, "past_key_value", "use_cache"),
]
_UNCACHED = _all("This call takes no cache. Leave it out.", "past_key_values", "past_key_value", "use_cache")
_SOURCE = [_renamed("input_ids", "src", "Source ids, [B, S]."), *_all(_IDS, "inputs_embeds", "decoder_inputs_embeds")]
_LOSS_WORDS = [
    *_all("This call returns no loss. Use `AutoregressiveWrapper(model)(tokens, labels=labels)`.", "labels"),
    _renamed("num_items_in_batch", "num_targets", "What the sum of the losses is divided by."),
    *_all("This call divides no loss. Leave it out.", "num_items_in_batch"),
]
_TOKENS = [
    _renamed("input_ids", "tokens", "Token ids, [B, T]."),
    *_all(_IDS, "inputs_embeds"),
    *_all("Padding is a mask. Use `mask=torch.arange(T) < lens[:, None]`.", "lens", "lengths"),
]

_SAMPLING = [
    _renamed("max_new_tokens", "seq_len", "The largest number of new tokens per row."),
    *_all("It counts the prompt. Use `seq_len=`, the number of new tokens.", "max_length"),
    *_all(
        "There is no shortest length. Mask the eos in a function passed as `filter_logits_fn=`.",
        "min_length",
        "min_new_tokens",
    ),
    _renamed("do_sample", "temperature", "False is `temperature=0`; True draws, which is the default.", _do_sample),
    _renamed("top_k", "filter_logits_fn", "The filter of this name with `filter_kwargs={'k': top_k}`.", _filters),
    *(
        _renamed(
            name, "filter_logits_fn", "The filter of this name, at temperature 1: filters come before it.", _filters
        )
        for name in ("top_p", "min_p")
    ),
    *_all(
        "Filters come before the temperature. Use `filter_logits_fn='typical'` with `filter_kwargs={'mass': ...}`.",
        "typical_p",
    ),
    *_all(
        _FUNCTION,
        *("epsilon_cutoff", "eta_cutoff", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens"),
        *("sequence_bias", "renormalize_logits", "no_repeat_ngram_size", "exponential_decay_length_penalty"),
        "prefix_allowed_tokens_fn",
    ),
    *_all(_FUNCTION, "guidance_scale", off=1),
    *_all(_FUNCTION, "forced_eos_token_id", off=ID),
    *_all(_FUNCTION, "logits_processor", instead="logits_processors"),
    *_all("Functions of the new tokens. Use `stopping_criteria=`.", "stopping_criteria", "stop_strings", "max_time"),
    _renamed("eos_token_id", "eos_token", "One id or several."),
    *_all(_PAD, "pad_token_id", off=ID),
    *_all(
        "Prompts are read as they are. Pass it as their first token.",
        *("bos_token_id", "decoder_start_token_id", "forced_bos_token_id"),
        off=ID,
    ),
    _renamed("use_cache", "cache_kv", "Whether to keep keys and values between steps."),
    *_all(
        "A cache is continued with the new tokens alone, transformers passes the whole sequence again. Use `cache=`.",
        "past_key_values",
    ),
    *_all(
        "The cache is an object. Use `cache=model.new_cache(batch_size, max_len)`.",
        "cache_implementation",
        "cache_config",
    ),
    *_all("Another name and an object. Use `speculate=DraftModel(net)`.", "assistant_model", "num_assistant_tokens"),
    *_all(
        "Another name and an object. Use `speculate=PromptLookup()`.",
        "prompt_lookup_num_tokens",
        "max_matching_ngram_size",
    ),
    *_all("Tokens are streamed by another call. Use `stream`.", "streamer"),
    *_all("Options are keywords. Use those of this call.", "generation_config", "custom_generate"),
    *_all(
        "The call returns the new tokens. Leave it out.", "return_dict_in_generate", "output_scores", "output_logits"
    ),
    *_all("The call returns the new tokens. Leave it out.", "output_attentions", "output_hidden_states"),
    *_all(_BEAMS, "num_beams", "length_penalty", off=1),
    *_all(_BEAMS, "early_stopping"),
    *_all("Groups of beams are not supported. Leave it out.", "num_beam_groups", off=1),
    *_all("Groups of beams are not supported. Leave it out.", "diversity_penalty", "constraints"),
    *_all("Sequences per prompt. Use `num_return_sequences=`.", "num_return_sequences", off=1),
    *_all(
        "Contrastive search is not supported. Use `contrast=ContrastWith(amateur)` for contrastive decoding.",
        "penalty_alpha",
    ),
    *_all("Positions follow the prompts. Use `positions=`.", "position_ids"),
    *_all("Prompts have no token types in generation. Leave it out.", "token_type_ids"),
    *_all("It has no effect here. Leave it out.", "synced_gpus", "tokenizer", "low_memory"),
]
_PROMPTS = [
    *_all(_ONLY_NEW + "`prompts=`.", "input_ids", "inputs"),
    *_all("Lengths of padded prompts. Use `prompt_lens=`.", "lens", "lengths"),
]
_PROMPT_MASK = _all(
    "Each row ends where its prompt ends. Pass a list of prompts, or right-padded ones with `prompt_lens=`.",
    "attention_mask",
)
_DECODER_IDS = "decoder_input_ids"

WORDS: dict[str, tuple[Flag, ...]] = {
    "TransformerWrapper.forward": table("TransformerWrapper.forward", [*_TOKENS, *_INPUTS, *_CACHED, *_LOSS_WORDS]),
    "AutoregressiveWrapper.forward": table(
        "AutoregressiveWrapper.forward",
        [*_TOKENS, *_all(_LOSS_MASK, "attention_mask"), *_INPUTS, *_UNCACHED, *_LOSS_WORDS],
    ),
    "AutoregressiveWrapper.generate": table(
        "AutoregressiveWrapper.generate", [*_PROMPTS, *_PROMPT_MASK, *_all(_EMBEDS, "inputs_embeds"), *_SAMPLING]
    ),
    "ContinuousTransformerWrapper.forward": table(
        "ContinuousTransformerWrapper.forward",
        [
            _renamed("inputs_embeds", "x", "[B, T, dim_in]."),
            *_all(_FLOATS, "input_ids"),
            *_INPUTS,
            *_CACHED,
            *_LOSS_WORDS,
        ],
    ),
    "AttentionLayers.forward": table(
        "AttentionLayers.forward",
        [
            _renamed("inputs_embeds", "x", "[B, T, M]."),
            _renamed("hidden_states", "x", "[B, T, M]."),
            *_INPUTS,
            *_CACHED,
        ],
    ),
    "XTransformer.forward": table(
        "XTransformer.forward", [*_SOURCE, *_all(_SHIFTED, _DECODER_IDS), *_INPUTS, *_UNCACHED, *_LOSS_WORDS[1:]]
    ),
    "XTransformer.logits": table(
        "XTransformer.logits",
        [
            *_SOURCE,
            _renamed(_DECODER_IDS, "tgt", "Target ids, [B, T]."),
            _renamed("decoder_attention_mask", "tgt_mask", "[B, T] bool, True = keep."),
            *_INPUTS,
            *_UNCACHED,
            *_LOSS_WORDS,
        ],
    ),
    "XTransformer.generate": table(
        "XTransformer.generate",
        [
            *_all(_ONLY_NEW_TARGET, "input_ids", "inputs", _DECODER_IDS),
            *_all(_MASK, "attention_mask"),
            *_all(_IDS, "inputs_embeds"),
            *_SAMPLING,
        ],
    ),
    "ViTransformerWrapper.forward": table(
        "ViTransformerWrapper.forward",
        [
            *_all("Any resolution that patch_size divides is accepted. Leave it out.", "interpolate_pos_encoding"),
            *_all("Patches cannot be masked under this name. Leave it out.", "bool_masked_pos", "attention_mask"),
            *_all("This call returns no loss. Compute it from the logits.", "labels"),
            *_INPUTS,
            *_UNCACHED,
        ],
    ),
}
"""class.method -> the words of transformers for it."""
