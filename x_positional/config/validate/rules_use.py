"""Rules of the intended use: which cache, how far, on which device and in which dtype, with or without training."""

from collections.abc import Iterator

import torch

from x_positional.attention.backends.tiles import attend
from x_positional.attention.backends.varlen import HALF, varlen_problems
from x_positional.config.validate.case import Case
from x_positional.config.validate.kernels import FLEX_MIN, Heads, sdpa_kernel
from x_positional.config.validate.probe import rotated_width
from x_positional.config.validate.rule import rule
from x_positional.errors import MAX_SHOWN
from x_positional.schemes import traced
from x_positional.schemes.base import Capabilities


@rule()
def a_cache_needs_a_decoder(case: Case) -> Iterator[str]:
    """A cache holds the keys of earlier tokens; in an encoder they change with later ones."""
    use, kind = case.use, case.layers.kind
    if kind == "encoder" and (use.cache is not None or use.decode_to is not None):
        requested = f"cache={use.cache!r}" if use.cache is not None else f"decode_to={use.decode_to}"
        yield (
            f"{requested} with an encoder: it is bidirectional, so earlier outputs change with later tokens and no cache is "
            "correct. Use a decoder, or run the encoder on the whole sequence."
        )


@rule(needs="schemes")
def cached_keys_stay_right(case: Case) -> Iterator[str]:
    """A cached key must not depend on the final length of the sequence."""
    stale = case.names(lambda s: not s.capabilities().kv_cacheable)
    if stale and case.use.cache is not None:
        yield (
            f"cache={case.use.cache!r}: {', '.join(stale)} changes earlier keys as the sequence grows, so cached ones become "
            "stale. Decode with AutoregressiveWrapper.generate, which recomputes the prefix where that happens, or choose a "
            "scheme or a length policy whose keys stay valid."
        )


@rule()
def a_sliding_cache_needs_a_window(case: Case) -> Iterator[str]:
    """A sliding cache keeps the last `window` tokens, so it needs a window."""
    use = case.use
    slides = any(window.kept is not None for window in case.windows)
    if use.cache == "sliding" and not slides and use.cache_window is None:
        yield (
            "cache='sliding' keeps the last `window` tokens, and no window is set. Set window= for the layers, or make "
            "the cache with new_cache(window=...)."
        )
    if use.cache_window is not None and use.cache in ("static", "growing"):
        yield f"cache_window={use.cache_window} applies to cache='sliding', and cache={use.cache!r} was requested. Use one of them."


@rule(needs="schemes")
def decoding_ends_with_the_positions(case: Case) -> Iterator[str]:
    """Nothing can be decoded past the last position that a scheme defines."""
    length, short = case.use.decode_to, _shortest(case)
    if length is not None and short is not None and length > short[1]:
        name, limit = short
        yield (
            f"decode_to={length}: {name} ends at {limit} positions, so token {limit + 1} has none. Raise max_seq_len, "
            "decode less, or use a scheme without a limit: rope, polar, alibi, t5, dynamic, sinusoidal."
        )


@rule(needs="backend")
def flex_fits_the_device(case: Case) -> Iterator[str]:
    """FlexAttention has no backward off CUDA, and its CUDA kernels need heads at least 16 wide."""
    use, head_dim = case.use, min(case.layers.head_dim, case.layers.value_dim)
    if case.backend != "flex":
        return
    if use.train and use.device in ("cpu", "mps"):
        yield f"backend='flex' has no backward on {use.device}. Train with backend='sdpa' or 'eager', or on CUDA."
    if use.device == "cuda" and head_dim < FLEX_MIN:
        yield (
            f"backend='flex' on CUDA needs heads at least {FLEX_MIN} wide, and head_dim={head_dim}. "
            "Raise head_dim, or use backend='sdpa' or 'eager'."
        )


@rule(needs="backend")
def varlen_fits_the_heads(case: Case) -> Iterator[str]:
    """varlen_attn is a CUDA kernel for half precision, the head widths of flash attention, and self-attention."""
    if case.backend != "varlen":
        return
    if case.layers.kind == "cross_attender":
        yield (
            "backend='varlen' packs the sequences of self-attention, and a cross_attender has none. Use backend='sdpa' or 'auto'."
        )
    if problems := varlen_problems(case.use.device, case.use.dtype, _query_width(case), case.layers.value_dim):
        yield f"backend='varlen' does not support this: {'; '.join(problems)}. Use backend='sdpa' or 'auto'."


@rule(needs="schemes")
def float16_reaches_max_seq_len(case: Case) -> Iterator[str]:
    """Factors that grow with distance must not overflow float16, whose largest value is 65,504."""
    ends = _half_limit(case)
    if case.use.dtype == torch.float16 and ends is not None:
        yield (
            f"dtype=float16: {ends[0]} overflows past {ends[1]} positions, and {ends[2]} are requested. "
            "Use bfloat16 or float32, a shorter sequence, or a larger scale."
        )


def _half_limit(case: Case) -> tuple[str, int, int] | None:
    length = max(case.max_seq_len or 0, case.use.decode_to or 0)
    for name, scheme in case.named:
        if scheme.half_limit is not None and scheme.half_limit < length:
            return name, scheme.half_limit, length
    return None


@rule("warning", needs="schemes")
def float16_may_overflow(case: Case) -> Iterator[str]:
    """The same where no dtype was requested: half precision is often chosen later."""
    ends = _half_limit(case)
    if case.use.dtype is None and ends is not None:
        yield (
            f"{ends[0]} overflows float16 past {ends[1]} positions, and {ends[2]} are requested. Use bfloat16 or "
            "float32, or a larger scale."
        )


@rule("warning", needs="schemes")
def decoding_past_the_trained_length(case: Case) -> Iterator[str]:
    """Positions past max_seq_len are defined, but nothing was trained there."""
    length, trained, short = case.use.decode_to, case.max_seq_len, _shortest(case)
    if length is not None and trained is not None and length > trained and (short is None or length <= short[1]):
        yield (
            f"decode_to={length} goes past max_seq_len={trained}. Every position is defined, but the model was not "
            "trained there: measure how well it extrapolates."
        )


@rule("warning")
def a_cache_window_hides_tokens(case: Case) -> Iterator[str]:
    """A sliding cache over layers without a window computes another function than the full pass."""
    use, window = case.use, case.attention_window.kept
    if use.cache == "sliding" and use.cache_window is not None and (window is None or use.cache_window < window):
        yield (
            f"cache_window={use.cache_window}: past it the cached model sees less than the full pass, as if the layers had "
            f"window={use.cache_window}. Train with that window if the two must agree."
        )


@rule("warning", needs="schemes")
def prefixes_stay_the_same(case: Case) -> Iterator[str]:
    """Where frequencies follow the length, the logits of a prefix depend on what comes after it."""
    following = case.names(lambda s: not s.capabilities().prefix_consistent)
    if following and case.layers.kind == "decoder":
        yield (
            f"{', '.join(following)} follows the length of the sequence: past the trained length, one more token changes the "
            "logits of all earlier ones. Set length_policy='fixed' if the logits of a prefix must not change."
        )


@rule("warning", needs="backend")
def sdpa_falls_back(case: Case) -> Iterator[str]:
    """scaled_dot_product_attention falls back to its math kernel, silently, where no fused one supports the shapes."""
    kernel, reasons = kernel_of(case)
    fewest = blocks_from(case)
    if kernel == "math" and (fewest is None or (case.max_seq_len or fewest) < fewest):
        spared = ", except on GPUs with cuDNN attention" if case.use.device == "cuda" and case.use.dtype in HALF else ""
        yield (
            f"backend='sdpa' on {case.use.device} runs its math kernel, which holds the whole score matrix{spared}: "
            f"{'; '.join(reasons)}. Use backend='blockwise', which never does, or change the cause."
        )


@rule("warning", needs="backend")
def flex_may_refuse(case: Case) -> Iterator[str]:
    """The same limit where no device was requested."""
    if case.backend == "flex" and case.use.device is None and case.layers.head_dim < FLEX_MIN:
        yield f"backend='flex' does not support head_dim={case.layers.head_dim} on CUDA: the minimum is {FLEX_MIN}. Raise it."


def kernel_of(case: Case) -> tuple[str | None, list[str]]:
    """The kernel inside sdpa and why no faster one; None where no device was requested or another backend runs."""
    use = case.use
    if case.backend != "sdpa" or use.device not in ("cpu", "cuda"):
        return None, []
    biased = [s for s in case.schemes if s.capabilities().kernel == "bias"]
    trained = _moves_kept_tokens(case) or any(s.overrides("content_bias") or list(s.parameters()) for s in biased)
    heads = Heads(
        qk=_query_width(case),
        v=case.layers.value_dim,
        dtype=use.dtype or torch.float32,
        masked=bool(biased) or case.attention_window.kept is not None,
        mask_grad=use.train and trained,
        dropout=use.train and case.layers.attn.dropout > 0,
        grouped=case.dims.kv_heads < case.layers.heads,
    )
    return sdpa_kernel(use.device, heads)


def blocks_from(case: Case) -> int | None:
    """The number of tokens from which sdpa computes a CPU's attention by blocks of queries, where torch has no fused kernel; None
    where it never does."""
    use, attn = case.use, case.layers.attn
    if use.device != "cpu":
        return None
    biased = [s for s in case.schemes if s.overrides("bias")]
    if use.train and _moves_kept_tokens(case) and any(list(s.parameters()) for s in biased):
        return traced.FEWEST_LOOKUP
    if biased:
        return attend.FEWEST_TRAINING if use.train else attend.FEWEST_INFERENCE
    other = _query_width(case) != case.layers.value_dim or (use.train and attn.dropout > 0)
    return attend.FEWEST if other else attend.FEWEST_TRAINING


def _moves_kept_tokens(case: Case) -> bool:
    """Whether a sequence can be so long that queries see the kept first tokens at other distances."""
    farthest, length = case.attention_window.farthest_query, case.max_seq_len
    return farthest is not None and (length is None or length > farthest + 1)


def _query_width(case: Case) -> int:
    """Width of queries after rotation: polar doubles them."""
    width: int | None = case.layers.head_dim
    for scheme in case.schemes:
        width = None if width is None else rotated_width(scheme, "q", case.layers.heads, width)
    return case.layers.head_dim if width is None else width


def _shortest(case: Case) -> tuple[str, int] | None:
    """The scheme of the stack with the lowest limit of positions, and that limit."""
    ends = [(scheme.limit, name) for name, scheme in case.everywhere if scheme.limit is not None]
    return (min(ends)[1], min(ends)[0]) if ends else None


def decodes(case: Case, caps: Capabilities) -> str:
    """Which cache is correct, in words."""
    kind, windows = case.layers.kind, [window.kept for window in case.windows]
    if kind == "encoder":
        return "no: an encoder's earlier outputs change with later tokens"
    if kind == "cross_attender":
        return "no self-attention to cache; the keys of the context are computed once"
    if not caps.kv_cacheable:
        return "by recomputing the prefix where earlier keys change, which generate does; a cache alone becomes stale"
    distinct = list(dict.fromkeys(windows))
    sizes = ", ".join("all" if size is None else str(size) for size in distinct[:MAX_SHOWN])
    sizes += f" and {len(distinct) - MAX_SHOWN} more" if len(distinct) > MAX_SHOWN else ""
    sliding = f"sliding (the last {sizes} tokens)" if any(windows) else "sliding with new_cache(window=...)"
    return f"yes: growing, static, or {sliding}"


def past(case: Case) -> str:
    """What happens after max_seq_len, in words."""
    short, length = _shortest(case), case.max_seq_len
    if short is not None:
        return f"refused after {short[1]} positions: {short[0]} defines no more"
    after = "at any length" if length is None else f"past max_seq_len={length} too"
    return f"defined {after}; measure how well the model extrapolates"
