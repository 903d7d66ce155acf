"""Arguments of the calls of x-transformers: forward, generate, beam_search."""

from x_positional.config.flags.entry import REQUIRED, Flag, refused, table, translated

_POSITIONS = "Renamed. Use `positions=`, integers or floats."
_LEFT = "Positions follow the mask, left or right padded. Use `mask=`, True = keep."
_CACHE = (
    "The cache is an object that each call updates. Use `cache=model.new_cache(batch_size)` and pass only new tokens."
)
_MEMS = "There is no memory of earlier segments. Use `cache=model.new_cache(batch_size, window=...)`."
_MAPS = "Renamed. Use `return_attention=True`, which returns (logits, maps): one map a layer, beside any backend."
_SCHEME = "Positions belong to the model's scheme. Use `position=` when building it, and `positions=` in the call."
_MASKS = "Masks follow from tokens and positions. Use `mask=`, `document_ids=`, `window=`, or a scheme with a bias."
_WHO_SEES_WHOM = (
    "x-transformers adds the causal mask to it. Use `attention_mask=` [B, T, T] bool, which replaces the causal mask."
)
_MIX = "Hidden states cannot be modified inside the stack. Write your own block around `Encoder` or `Decoder`."
_KV = "Keys and values come from the input. Use `context=` with `cross_attend=True`."
_LOOP = "The blocks run once. Leave it out."
_EMBED = (
    "Embeddings come from tokens or from the caller. Change those of `embed_tokens(ids)` and pass `inputs_embeds=`."
)
_MODULE = "The embedding and the head are one table and one linear layer. Leave it out."
_NAMES = "Every argument is named in the signature. Use those."
_HIDDEN = "Use `return_embeddings=True` for the hidden state; call twice for both."
_FUSED = "Packing needs no kernel arguments. Use `document_ids=`."
_CAUSAL = "Set by the class. Use `Decoder` or `Encoder`."
_CONDITION = "Norms cannot be conditioned. Use `context=` with `cross_attend=True`."


def _all(note: str, **names: object) -> list[Flag]:
    return [refused(name, default, note) for name, default in names.items()]


_COMMON = [
    translated("context", None, "context", "Input of cross-attention, [B, S, M]."),
    translated("context_mask", None, "context_mask", "True = keep."),
    translated("mask", None, "mask", "True = keep, left or right padded."),
    translated("cache", None, "cache", "The KV cache of `new_cache`; the call takes only the new tokens."),
]

LAYERS = table(
    "AttentionLayers.forward",
    [
        translated("x", REQUIRED, "x", "Embeddings, [B, T, M]."),
        *_COMMON,
        *_all(_WHO_SEES_WHOM, attn_mask=None),
        *_all(_MASKS, self_attn_kv_mask=None, attn_bias=None),
        *_all(_MEMS, mems=None, mem_masks=None),
        *_all(_LEFT, seq_start_pos=None),
        *_all(
            "A cache counts its own tokens. Use `cache=` alone, or `positions=`.",
            seq_pos_offset=None,
            input_not_include_cache=False,
            cache_age=1,
        ),
        *_all(_CACHE, return_hiddens=False),
        *_all(
            "Attention samples nothing, so there are no such probabilities. Leave it out.",
            return_gumbel_log_probs=False,
        ),
        *_all(_SCHEME, rotary_pos_emb=None, polar_pos_emb=None),
        *_all(_POSITIONS, pos=None),
        *_all(
            "Renamed. Use `context_positions=`; cross-attention then uses the position scheme too.", context_pos=None
        ),
        *_all("The feedforward does not see token ids. Leave it out.", deep_embeds_and_ids=None),
        *_all(
            _KV,
            self_attn_additional_kv=None,
            additional_kv_mask=None,
            detach_additional_kv=False,
            route_additional_kv_to_top=True,
            self_attn_kv_residuals=None,
            cross_attn_kv_residuals=None,
        ),
        *_all(_CONDITION, condition=None, in_attn_cond=None),
        *_all(_LOOP, layers_execute_order=None, repeat_blocks=None),
        *_all(_FUSED, flash_pack_seq_kwargs=None, flash_pack_seq_context_kwargs=None),
        *_all(_CAUSAL, causal=None),
        *_all(_MIX, transform_block_inputs=None),
    ],
)

PREFIX = table(
    "PrefixDecoder.forward",
    _all(
        "A prefix is an argument of a call here. Use a `Decoder` and `prefix_len=` of the model around it.",
        x=REQUIRED,
        attn_mask=None,
        prefix_attn_len=None,
    ),
)

ATTENTION = table(
    "Attention.forward",
    [
        translated("x", REQUIRED, "x", "Embeddings, [B, T, M]; give them to `Encoder` or `Decoder`."),
        *_COMMON,
        *_all(_MASKS, attn_mask=None, attn_bias=None),
        *_all(_SCHEME, rel_pos=None, rotary_pos_emb=None, context_rotary_pos_emb=None, polar_pos_emb=None),
        *_all(_POSITIONS, pos=None),
        *_all("Needs the score matrix of the layer before. Leave it out.", prev_attn=None),
        *_all(_MEMS, mem=None, mem_mask=None),
        *_all(_CACHE, return_intermediates=False),
        *_all(
            _KV, value_residual=None, additional_key_values=None, additional_key_value_mask=None, kv_input_residual=None
        ),
        *_all(_MIX, q_delta=None, k_delta=None, v_delta=None, o_delta=None, attn_delta=None),
        *_all(_FUSED, flash_pack_seq_kwargs=None),
        *_all(_CAUSAL, causal=None),
    ],
)

TRANSFORMER = table(
    "TransformerWrapper.forward",
    [
        translated("x", REQUIRED, "tokens", "Token ids, [B, T]; by position or under this name."),
        translated("return_embeddings", False, "return_embeddings", "Return the hidden state instead of the logits."),
        *_all(_HIDDEN, return_logits_and_embeddings=False, return_embeddings_and_intermediates=False),
        *_all(_CACHE, return_intermediates=False),
        *_all(
            "Only the logits are returned. Use `Categorical(logits=logits).entropy()` of torch.distributions.",
            return_logit_entropies=False,
        ),
        *_all(
            "The next token is predicted, not its embedding. Use `return_embeddings=True`.",
            return_next_embed_pred=False,
        ),
        translated("mask", None, "mask", "True = keep, left or right padded."),
        *_all(_MEMS, return_mems=False, mems=None, mem_masks=None, detach_mems=True),
        *_all(_MAPS, return_attn=False),
        *_all(
            _LOOP,
            recycle_steps=None,
            looped_steps=None,
            max_looped_steps=None,
            looped_pred_all_logits=None,
            looped_inference=False,
            looped_exit_prob_threshold=0.9,
        ),
        *_all(_POSITIONS, pos=None),
        translated(
            "prepend_embeds",
            None,
            "prepend_embeds",
            "[B, P, E] before the tokens. Absolute positions, token types, norm and projection apply to them too.",
        ),
        *_all("One mask covers both. Use `mask=` of [B, P + T], True = keep.", prepend_mask=None),
        *_all("Logits cover all places. Use `logits[:, P:]` for those of tokens.", excise_prepend_embeds=False),
        *_all(_EMBED, embed_ids={}, sum_embeds=None, transform_token_embeds=None),
        *_all(_MIX, transform_block_inputs=None),
        *_all(
            "There is no z-loss of attention scores. Use `attn_softclamp_logits` or `attn_qk_norm` to bound the scores.",
            return_attn_z_loss=False,
            attn_z_loss_weight=1e-4,
        ),
        *_all(_LEFT, seq_start_pos=None),
        translated("cache", None, "cache", "The KV cache of `new_cache`; the call takes only the new tokens."),
        *_all("With a cache the call always takes only the new tokens. Leave it out.", input_not_include_cache=None),
        *_all(_MODULE, token_emb_kwargs={}, to_logits_kwargs={}),
        *_all(_NAMES, kwargs=REQUIRED),
    ],
)

CONTINUOUS = table(
    "ContinuousTransformerWrapper.forward",
    [
        translated("x", REQUIRED, "x", "[B, T, dim_in]."),
        translated(
            "return_embeddings", False, "return_embeddings", "Return the hidden state before the output projection."
        ),
        *_all(_CACHE, return_intermediates=False, input_not_include_cache=False),
        *_all(_MEMS, return_mems=False, mems=None, mem_masks=None),
        translated("mask", None, "mask", "True = keep, left or right padded."),
        *_all("Padding is a mask. Use `mask=torch.arange(T) < lens[:, None]`.", lens=None),
        *_all(_MAPS, return_attn=False),
        *_all(_POSITIONS, pos=None),
        *_all("The call takes one input. Add them to it before the call.", sum_embeds=None),
        *_all(
            "The call takes one input. Concatenate them with it before the call.",
            prepend_embeds=None,
            prepend_mask=None,
        ),
        translated("cache", None, "cache", "The KV cache of `new_cache`; the call takes only the new input."),
        *_all(_LEFT, seq_start_pos=None),
        *_all(_NAMES, kwargs=REQUIRED),
    ],
)

VISION = table(
    "ViTransformerWrapper.forward",
    [
        translated("img", REQUIRED, "pixel_values", "Images, [B, C, H, W]; by position or under this name."),
        translated("return_embeddings", False, "return_embeddings", "Return the patches' hidden states."),
        refused(
            "return_logits_and_embeddings",
            False,
            "One of both is returned. Use `encode`, then `pooled`.",
        ),
    ],
)

CONTINUOUS_WRAPPER = table(
    "ContinuousAutoregressiveWrapper.forward",
    [
        translated("x", REQUIRED, "x", "[B, T, dim_in]; each token is predicted from those before it."),
        *_all("There is no loss of rollouts. Use `generate`, or the model in a loop of your own.", rollout_steps=1),
        *_all(_NAMES, kwargs=REQUIRED),
    ],
) + table(
    "ContinuousAutoregressiveWrapper.generate",
    [
        translated(
            "start_tokens", REQUIRED, "start_tokens", "[T, dim_in], [B, T, dim_in], or a list of ragged prompts."
        ),
        translated("seq_len", REQUIRED, "seq_len", "Number of new tokens."),
        *_all("Outputs are no distributions, so nothing is drawn. Leave it out.", temperature=1.0),
        translated("cache_kv", True, "cache_kv", "Use a KV cache."),
        *_all(_NAMES, kwargs=REQUIRED),
    ],
)

XTRANSFORMER = table(
    "XTransformer.forward",
    [
        translated("src", REQUIRED, "src", "Source ids, [B, S]; by position or under this name."),
        translated("tgt", REQUIRED, "tgt", "Target ids, [B, T]; each is predicted from those before it."),
        translated("mask", None, "mask", "Of the source; True = keep."),
        *_all(_MASKS, attn_mask=None),
        translated(
            "src_prepend_embeds",
            None,
            "src_prepend_embeds",
            "[B, P, E] before the source; a mask of [B, S] keeps them.",
        ),
    ],
) + table(
    "XTransformer.generate",
    [
        translated("seq_in", REQUIRED, "src", "Source ids, [B, S]; by position or under this name."),
        translated(
            "seq_out_start", REQUIRED, "start_tokens", "The first tokens of the target; by position or under this name."
        ),
        translated("seq_len", REQUIRED, "seq_len", "Number of new tokens."),
        translated("mask", None, "mask", "Of the source; True = keep."),
        *_all(_MASKS, attn_mask=None),
        translated("kwargs", REQUIRED, None, "The sampling arguments of `AutoregressiveWrapper.generate`, by name."),
    ],
)

_SAMPLING = [
    translated("prompts", REQUIRED, "prompts", "[T], [B, T], or a list of ragged prompts."),
    translated("seq_len", REQUIRED, "seq_len", "Number of new tokens."),
    translated(
        "eos_token",
        None,
        "eos_token",
        "An id, or several. Applies to new tokens only; x-transformers also stops at one in the prompt.",
    ),
    translated("temperature", 1.0, "temperature", "0: the most likely token."),
    translated("prompt_lens", None, "prompt_lens", "True lengths of right-padded prompts."),
    translated("filter_logits_fn", "top_k", "filter_logits_fn", "A name or a function, or several."),
    translated(
        "restrict_to_max_seq_len", True, "restrict_to_max_seq_len", "Attend to at most `max_seq_len` tokens back."
    ),
    translated("filter_kwargs", {}, "filter_kwargs", "Arguments of the filter."),
    translated("cache_kv", True, "cache_kv", "Use a KV cache."),
]

GENERATE = (
    table(
        "AutoregressiveWrapper.generate",
        [
            *_SAMPLING,
            *_all(
                "Renamed. Use `contrast=ContrastWith(amateur, alpha=0.1, beta=0.5)`.",
                amateur_model=None,
                contrastive_decode_kwargs={"beta": 0.5, "alpha": 0.1},
            ),
            *_all("Renamed. Use `return_cache=True`, and `cache=` to continue from it.", return_intermediates=False),
            *_all(_NAMES, kwargs=REQUIRED),
        ],
    )
    + table(
        "AutoregressiveWrapper.beam_search",
        _all(
            "Use `generate(..., num_beams=beams)` with `num_return_sequences=`; beams are not sampled.",
            prompts=REQUIRED,
            seq_len=REQUIRED,
            beams=4,
            return_beams_and_scores=False,
            eos_token=None,
            temperature=1.0,
            stochastic=False,
            prompt_lens=None,
            filter_logits_fn="identity",
            restrict_to_max_seq_len=True,
            filter_kwargs={},
            cache_kv=True,
            kwargs=REQUIRED,
        ),
    )
    + table(
        "AutoregressiveWrapper.forward",
        [
            translated("x", REQUIRED, "tokens", "Ids, [B, T]; by position or under this name."),
            *_all("Only the loss is returned. Call the model for the logits.", return_outputs=False),
            translated(
                "prepend_embeds",
                None,
                "prepend_embeds",
                "[B, P, E] before the tokens. The first token is a target too, predicted from them.",
            ),
            *_all("Padding is a mask. Use `mask=torch.arange(T) < lens[:, None]`.", lens=None),
            *_all(_NAMES, kwargs=REQUIRED),
        ],
    )
)

ENTRIES: tuple[Flag, ...] = (
    LAYERS + PREFIX + ATTENTION + TRANSFORMER + CONTINUOUS + CONTINUOUS_WRAPPER + VISION + XTRANSFORMER + GENERATE
)
