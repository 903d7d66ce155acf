"""Keywords of the constructors of x-transformers' wrappers."""

from x_positional.config.flags.entry import REQUIRED, Flag, copied, details, own, refused, table, turned
from x_positional.config.flags.keywords_positions import MAX_SEQ_LEN, WRAPPER

_EMBEDDINGS = "Call with `return_embeddings=True` and apply a head of your own."
_MEMORY = "There is no memory of earlier segments. Use the KV cache: `model.new_cache(batch_size, window=...)`."
_TOKENS = "No tokens are put in beside yours. Put them into the vocabulary and the text, or use "
_SINK = _TOKENS + "`attn_head_learned_sink=True`."
_POOL = "One output per token. Call with `return_embeddings=True` and pool them."
_LOOP = "The blocks run once. Use more `depth`."
_MODULE = "A config holds numbers, not modules. "
_LOGITS = "The head is one linear layer. " + _EMBEDDINGS
_BARE = "Run an `Encoder` or `Decoder` on embeddings of your own, or use `ContinuousTransformerWrapper`."

TRANSFORMER = table(
    "TransformerWrapper",
    [
        copied("num_tokens", REQUIRED, "num_tokens", "Vocabulary size."),
        copied(
            "max_seq_len",
            REQUIRED,
            "max_seq_len",
            MAX_SEQ_LEN.note + " 0 is refused: switch the table off with `use_abs_pos_emb=False`.",
        ),
        turned("attn_layers", REQUIRED, "layers", "The `Encoder` or `Decoder`."),
        refused("embed_num_tokens", {}, "One embedding table. " + _BARE),
        copied("emb_dim", None, "emb_dim", "Width of the embedding where it is not `dim`; a projection follows."),
        refused("max_mem_len", 0, _MEMORY),
        refused("shift_mem_down", 0, _MEMORY),
        copied("emb_dropout", 0.0, "emb_dropout", "Dropout of the embeddings."),
        copied("post_emb_norm", False, "post_emb_norm", "LayerNorm after the embedding."),
        refused("num_memory_tokens", None, _SINK),
        *details("num_memory_tokens", memory_tokens_interspersed_every=None),
        copied("tie_embedding", False, "tie_embedding", "Logits from the embedding matrix."),
        turned("tie_embedding_scale", None, "tie_embedding_scale", "With `tie_embedding`; `dim ** -0.5` if not given."),
        own("emb_scale", "emb_scale", "Token embeddings are multiplied by it (Gemma)."),
        own(
            "emb_norm",
            "emb_norm",
            "The fields of `NormConfig`: another norm after the embedding than that of `post_emb_norm`.",
        ),
        own("token_types", "token_types", "Kinds of tokens that have a learned vector of their own (BERT's segments)."),
        own("head", "head", "The fields of `HeadConfig`: a layer and a norm before the last projection (BERT)."),
        own("emb_proj_bias", "emb_proj_bias", "The projections between `emb_dim` and `dim` have a bias.", default=True),
        own(
            "emb_proj_first",
            "emb_proj_first",
            "Positions and norm come after the projection from `emb_dim` (OPT-350m).",
            default=False,
        ),
        own(
            "logits_proj",
            "logits_proj",
            "A projection from `dim` back to `emb_dim` before the head (OPT-350m).",
            default=False,
        ),
        own("logits_bias", "logits_bias", "A bias of the head.", default=False),
        own("logits_scale", "logits_scale", "Logits are multiplied by it (Cohere)."),
        own("logits_softcap", "logits_softcap", "Then they are `c * tanh(logit / c)` (Gemma 2)."),
        copied("logits_dim", None, "logits_dim", "Width of the logits where it is not `num_tokens`."),
        refused("return_only_embed", False, "The call says it. Use `return_embeddings=True` there."),
        refused("num_output_heads", 1, _LOGITS),
        *WRAPPER,
        copied("l2norm_embed", False, "l2norm_embed", "Token embeddings of length one."),
        refused("recycling", False, _LOOP),
        *details("recycling", train_max_recycle_steps=4),
        refused("looped", False, _LOOP),
        *details("looped", max_looped_steps=4),
        refused("emb_frac_gradient", 1.0, "Gradients are not scaled. Give the embedding a learning rate of its own."),
        refused(
            "attn_z_loss_weight",
            1e-4,
            "x-transformers ignores it here. There is no z-loss; bound the scores with "
            "`attn_softclamp_logits` or `attn_qk_norm`.",
        ),
        refused("average_pool_embed", False, _POOL),
        refused("use_cls_token", False, _TOKENS + "the embedding of a token of your choice."),
        *details("use_cls_token", num_cls_tokens=1),
        refused("attn_pool", False, _POOL),
        *details("attn_pool", num_pooled_tokens=1, attn_pool_depth=1, dim_pooled_tokens=None),
        refused(
            "squeeze_out_last_dim", False, "The shape of the logits is always [B, T, V]. Use `logits.squeeze(-1)`."
        ),
        refused("token_emb", None, _MODULE + _BARE),
        refused("mixture_of_softmax", False, _LOGITS),
        *details("mixture_of_softmax", mixture_of_softmax_k=4),
        refused("sigsoftmax_logits", False, _LOGITS),
        refused("ff_deep_embed", False, "The feedforward does not see token ids. Use a wider feedforward (`ff_mult`)."),
        refused("to_logits", None, _MODULE + _EMBEDDINGS),
        refused("add_continuous_pred_head", False, "The next token is predicted, not its embedding. " + _EMBEDDINGS),
        refused(
            "input_not_include_cache", False, "With a cache the call always takes the new tokens alone. Leave it out."
        ),
    ],
)

CONTINUOUS = table(
    "ContinuousTransformerWrapper",
    [
        copied("max_seq_len", None, "max_seq_len", MAX_SEQ_LEN.note + " None: no table."),
        turned("attn_layers", REQUIRED, "layers", "The `Encoder` or `Decoder`."),
        copied("dim_in", None, "dim_in", "Width of the input; a projection to `dim` follows."),
        copied("dim_out", None, "dim_out", "Width of the output after a projection from `dim`."),
        refused("project_in", None, _MODULE + "Apply it before the call and leave `dim_in` out."),
        refused("project_out", None, _MODULE + "Apply it after the call and leave `dim_out` out."),
        refused("max_mem_len", 0, _MEMORY),
        refused("num_memory_tokens", None, _SINK),
        copied("post_emb_norm", False, "post_emb_norm", "LayerNorm after the input projection."),
        copied("emb_dropout", 0.0, "emb_dropout", "Dropout after it."),
        *WRAPPER,
        refused("average_pool_embed", False, _POOL),
        refused(
            "probabilistic",
            False,
            "The output is one tensor. Use twice the `dim_out` and split it into mean and log variance.",
        ),
        refused("use_identity_if_same_dim", False, "`dim_in` and `dim_out` always project. Leave them out for none."),
    ],
)

XTRANSFORMER = table(
    "XTransformer",
    [
        copied(
            "dim",
            REQUIRED,
            "dim",
            "Width of the encoder and the decoder; every other flag of theirs starts with "
            "`enc_` or `dec_`, and a flag that fits neither is an error.",
        ),
        copied("tie_token_emb", False, "tie_token_emb", "The decoder shares the encoder's token embedding."),
        copied("ignore_index", -100, "ignore_index", "Targets that do not count in the loss."),
        copied("pad_value", 0, "pad_value", "What stands where `ignore_index` was, and after an end."),
        refused("cross_attn_tokens_dropout", 0.0, "No source token is dropped for you. Hide some with `mask=`."),
    ],
)

AUTOREGRESSIVE = table(
    "AutoregressiveWrapper",
    [
        turned("net", REQUIRED, "net", "The model."),
        copied("ignore_index", -100, "ignore_index", "Targets that do not count in the loss."),
        copied("pad_value", 0, "pad_value", "What stands where `ignore_index` was, and after an end."),
        refused("mask_prob", 0.0, "No key is hidden at random. Use `attn_dropout`."),
        refused(
            "add_attn_z_loss",
            False,
            "It needs every score, which fused attention never holds. Bound the scores with "
            "`attn_softclamp_logits` or `attn_qk_norm`.",
        ),
        refused(
            "next_embed_loss_weight", 0.1, "A detail of `add_continuous_pred_head`, which is refused; leave it out too."
        ),
        *details("looped", looped_loss_threshold_exit=0.05, looped_loss_slope=50, looped_exit_loss_weight=1.0),
    ],
)

VISION = table(
    "ViTransformerWrapper",
    [
        copied(
            "image_size", REQUIRED, "image_size", "Trained size in pixels, also (height, width); other sizes run too."
        ),
        copied("patch_size", REQUIRED, "patch_size", "Pixels of a patch, also (height, width)."),
        turned(
            "attn_layers",
            REQUIRED,
            "layers",
            "The `Encoder`. The learned table is on where no scheme is chosen; for both, "
            'put `"absolute"` into `position=`.',
        ),
        copied("channels", 3, "channels", "Channels of a pixel."),
        copied("num_classes", None, "num_classes", "Logits of the head; without it the pooled embedding comes out."),
        copied("post_emb_norm", False, "post_emb_norm", "LayerNorm after the patches' embedding."),
        copied("num_register_tokens", 0, "num_register_tokens", "Learned tokens that are no patch: not rotated."),
        copied("emb_dropout", 0.0, "emb_dropout", "Dropout of the patches' embedding."),
        own("patch_norms", "patch_norms", "Norms over the pixels of a patch and after their projection.", default=True),
        own("pool", "pool", "`mean` of the patches, a `cls` token, or both (`cls_mean`).", default="mean"),
        own("cls_position", "cls_position", "The table has a row for the cls token.", default=False),
        own(
            "coordinates",
            "coordinates",
            "`index`, `rescaled` to the trained size, or `centered` in [-1, 1].",
            default="index",
        ),
        own("interpolation", "interpolation", "How the table is resized: `bicubic` or `bilinear`.", default="bicubic"),
        own("antialias", "antialias", "The table is resized with antialiasing.", default=False),
    ],
)

ENTRIES: tuple[Flag, ...] = TRANSFORMER + CONTINUOUS + XTRANSFORMER + AUTOREGRESSIVE + VISION
