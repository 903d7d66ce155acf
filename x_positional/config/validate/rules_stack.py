"""The validator's general rules, one function each: the docstring says what holds, the messages why and the way out.

What concerns one scheme alone is said by its config's `problems` and `warnings`, in the scheme's own file.
"""

from collections.abc import Callable, Iterator

from x_positional.attention.streaming import keep_first_problem
from x_positional.config.layers import LayersConfig, ModelConfig
from x_positional.config.validate.case import Case, part_name
from x_positional.config.validate.rules_layer import projections_of_positions_are_read
from x_positional.config.vision import VisionConfig
from x_positional.schemes.compose import chain_problems
from x_positional.schemes.none import NoPosition
from x_positional.schemes.rotary.axial import Axial

Rule = Callable[[Case], Iterator[str]]


def kv_heads_divide_heads(case: Case) -> Iterator[str]:
    """Each key head serves the same number of query heads."""
    heads, kv_heads = case.layers.heads, case.layers.kv_heads or case.layers.heads
    if heads % kv_heads:
        fitting = [n for n in range(1, heads + 1) if heads % n == 0]
        yield (
            f"heads={heads} must be a multiple of kv_heads={kv_heads}: each key head serves the same number of query "
            f"heads. Use kv_heads={' or '.join(map(str, fitting))}, or other heads."
        )


def some_position(case: Case) -> Iterator[str]:
    """An empty list of schemes says neither the default nor none."""
    if not case.parts:
        yield "position=[] names no scheme. Leave position out for the default, or use position='none'."


def no_setting_is_idle(case: Case) -> Iterator[str]:
    """A setting that changes nothing was meant to change something: it is refused, never dropped silently."""
    layers, attn, norm, ff = case.layers, case.layers.attn, case.layers.norm, case.layers.ff
    crosses = layers.cross_attend or layers.kind == "cross_attender"
    for name in ("window", "chunk", "keep_first"):
        if layers.kind == "cross_attender" and getattr(layers, name):
            yield f"{name}={getattr(layers, name)} is for self-attention, and a cross_attender has none. Leave it out."
    if layers.window is not None and layers.chunk is not None and layers.window >= layers.chunk:
        yield (
            f"window={layers.window} beside chunk={layers.chunk}: a chunk ends before the window does. Leave window out, or "
            "make it shorter."
        )
    if layers.kind == "cross_attender" and layers.norm_place == "parallel":
        yield (
            "norm_place='parallel' puts self-attention and feedforward side by side, and a cross_attender has no "
            "self-attention. Use 'pre', 'post' or 'sandwich'."
        )
    if layers.context_dim is not None and not crosses:
        yield f"context_dim={layers.context_dim} without cross-attention changes nothing. Set cross_attend, or leave it out."
    if norm.bias and norm.kind != "layer":
        yield f"norm.bias=True with norm.kind={norm.kind!r}: only 'layer' has a bias. Use 'layer', or leave it out."
    gainless = norm.kind in ("simple_rms", "none")
    if not norm.unit_offset and (gainless or not norm.gain):
        yield f"norm.unit_offset=False with norm.kind={norm.kind!r}, gain={norm.gain}: no gain is stored. Leave it out."
    if norm.kind == "none":
        placed = {"norm.eps": norm.eps, "final_norm": layers.final_norm, "norm_place": layers.norm_place}
        idle = [f"{name}={value!r}" for name, value in placed.items() if value not in (None, "pre", "parallel")]
        if idle:
            yield f"{', '.join(idle)} with norm.kind='none': there is no norm to set or place. Leave it out."
    if not layers.first_norm and (layers.norm_place in ("post", "after") or layers.kind == "cross_attender"):
        yield (
            f"first_norm=False with kind={layers.kind!r}, norm_place={layers.norm_place!r}: there is no norm before the first "
            "attention to leave out. Leave first_norm out."
        )
    if attn.qk_norm != "l2" and attn.qk_norm_scale != type(attn)().qk_norm_scale:
        yield (
            f"attn.qk_norm_scale={attn.qk_norm_scale:g} scales the scores of attn.qk_norm='l2' alone, and qk_norm is "
            f"{attn.qk_norm!r}. Use attn.scale, or qk_norm='l2'."
        )
    if attn.qk_norm == "l2" and attn.scale is not None:
        yield (
            f"attn.qk_norm='l2' scales scores by qk_norm_scale={attn.qk_norm_scale:g}, and attn.scale={attn.scale:g} says "
            "it again. Give qk_norm_scale alone."
        )
    yield from _idle_qk_norm(case)
    if ff.gate_bias is not None and not ff.glu:
        yield "ff.gate_bias is the bias of the gated projection, and ff.glu is off. Set ff.glu, or leave it out."
    if ff.dim is not None and ff.mult != type(ff)().mult:
        yield f"ff.dim={ff.dim} is the inner width, and ff.mult={ff.mult:g} says it again. Give one of them."


def _idle_qk_norm(case: Case) -> Iterator[str]:
    attn, unset = case.layers.attn, type(case.layers.attn)()
    said = [
        f"attn.{name}={getattr(attn, name)}"
        for name in ("qk_norm_eps", "qk_norm_bias", "qk_norm_unit_offset", "qk_norm_after")
        if getattr(attn, name) != getattr(unset, name)
    ]
    if attn.qk_norm is None and said:
        yield f"{', '.join(said)} without attn.qk_norm: there is no norm to set. Choose qk_norm, or leave it out."
    if attn.qk_norm in ("rms_plain", "l2") and (attn.qk_norm_bias or not attn.qk_norm_unit_offset):
        yield f"attn.qk_norm={attn.qk_norm!r} has no gain and no bias to set. Leave qk_norm_bias and qk_norm_unit_offset out."


def first_tokens_are_kept_beside_a_window(case: Case) -> Iterator[str]:
    """The first tokens of a text are seen at any distance only where a window would drop them."""
    layers = case.layers
    if layers.keep_first and layers.window is None:
        yield f"keep_first={layers.keep_first} keeps tokens that a window would drop, and there is none. Set window=."
    if layers.keep_first and layers.kind == "encoder":
        yield (
            f"keep_first={layers.keep_first} in an encoder, which sees both ways: its first tokens leave no window on one "
            "side only. Use a decoder, or leave it out."
        )
    if layers.keep_first and layers.chunk is not None:
        yield f"keep_first={layers.keep_first} and chunk={layers.chunk} say two things about far tokens. Give one of them."


def first_tokens_have_distances(case: Case) -> Iterator[str]:
    """First tokens that are kept are seen from where the cache ends, which embeddings cannot follow."""
    problem = keep_first_problem(case.schemes, [kind.attention_window for kind in case.stack])
    if problem is not None:
        yield problem


def the_pattern_is_the_whole_word(config: LayersConfig) -> Iterator[str]:
    """What differs between layers is said in the pattern, once, and every entry of it is some layer's."""
    said = [name for name in ("window", "chunk", "keep_first") if getattr(config, name)]
    if config.pattern and said:
        yield f"{', '.join(said)} beside pattern: each entry of a pattern says its own. Put it into the entries it is for."
    if config.position is not None and config.pattern and all(k.position is not None for k in config.pattern):
        kinds = ", ".join(map(part_name, config.position))
        yield (
            f"position={kinds} beside pattern, every entry of which names its own: no layer would use it. Leave it out, or "
            "put it into the entries it is for."
        )
    if len(config.pattern) > config.depth:
        yield (
            f"pattern has {len(config.pattern)} entries, and depth={config.depth} layers use the first {config.depth}. "
            "Shorten it, or raise depth."
        )


def head_fits(case: Case) -> Iterator[str]:
    """Tied logits are as wide as the vocabulary and read embeddings as wide as what comes to the head."""
    model = case.model
    if not isinstance(model, ModelConfig):
        return
    if model.tie_embedding and model.projected and not model.logits_proj:
        yield (
            f"tie_embedding=True reads the logits off the embedding matrix, whose rows are emb_dim={model.emb_dim} wide, "
            f"and the model is dim={case.layers.dim} wide. Set logits_proj, leave emb_dim out, or untie."
        )
    idle = {
        "emb_proj_bias=False": not model.emb_proj_bias,
        "emb_proj_first": model.emb_proj_first,
        "logits_proj": model.logits_proj,
    }
    if not model.projected and any(idle.values()):
        yield (
            f"{', '.join(name for name, said in idle.items() if said)} with emb_dim={model.emb_dim} and dim={case.layers.dim}: "
            "there is no projection between embeddings and model. Set emb_dim, or leave it out."
        )
    if model.tie_embedding and model.logits_dim not in (None, model.num_tokens):
        yield (
            f"tie_embedding=True gives num_tokens={model.num_tokens} logits, and logits_dim={model.logits_dim} asks for "
            "another number. Leave one of them out."
        )
    if model.tie_embedding_scale is not None and not model.tie_embedding:
        yield (
            f"tie_embedding_scale={model.tie_embedding_scale:g} without tie_embedding changes nothing. "
            "Set tie_embedding, or leave it out."
        )


def none_stands_alone(case: Case) -> Iterator[str]:
    """No position at all and some position contradict each other."""
    if "none" in case.kinds and len(case.kinds) > 1:
        yield f"position={case.kinds} says 'none' and something else. Leave 'none' out, or give it alone."


def schemes_combine(case: Case) -> Iterator[str]:
    """A list of schemes has a meaning only where no scheme undoes another."""
    yield from chain_problems(case.schemes)
    for name, scheme in case.named:
        if scheme.per_layer and scheme.overrides("embed"):
            yield (
                f"{name} has parameters for each layer and also changes the embeddings, which happens "
                "once. Split it into two schemes and give both: position=[..., ...]."
            )


def causal_schemes_need_a_decoder(case: Case) -> Iterator[str]:
    """A scheme that is undefined without a causal mask cannot run where tokens see both sides."""
    kind = case.layers.kind
    if kind == "decoder":
        return
    crossing = kind == "cross_attender"  # there, what a scheme does to queries alone is given the context's positions
    undefined = case.names(
        lambda s: s.causal_only and (s.capabilities().tells_order or (crossing and s.capabilities().uses_positions))
    )
    if undefined:
        yield (
            f"position={', '.join(undefined)} is defined only under a causal mask, and kind={kind!r} has none. Use a decoder, or "
            "rope, polar, alibi, t5, dynamic, absolute or sinusoidal."
        )


def an_encoder_needs_order(case: Case) -> Iterator[str]:
    """Without a causal mask and without positions nothing tells one order of tokens from another."""
    if isinstance(case.model, ModelConfig) and _blind(case) and case.layers.position is not None:
        yield (
            f"position={', '.join(case.kinds)} in an encoder: nothing tells one order of tokens from another. "
            "Use rope, polar, alibi, t5, dynamic, absolute or sinusoidal."
        )


def schemes_reach_max_seq_len(case: Case) -> Iterator[str]:
    """Every position below max_seq_len is defined."""
    length = case.max_seq_len
    for name, scheme in case.named:
        if length is not None and scheme.limit is not None and scheme.limit < length:
            yield (
                f"position={name} ends at {scheme.limit} positions, and max_seq_len={length} asks for more. "
                f"Give it {length}, or lower max_seq_len."
            )


def a_table_bounds_the_length(case: Case) -> Iterator[str]:
    """A table of positions beside a relative scheme keeps the model from running past the table."""
    bounded = case.names(lambda s: s.absolute and s.limit is not None)
    relative = case.names(lambda s: not s.absolute and not isinstance(s, NoPosition))
    if bounded and relative:
        yield (
            f"{', '.join(bounded)} beside {', '.join(relative)}: the table ends at {min(_limits(case))} positions, so the "
            "model does too, although the other scheme goes on. Leave 'absolute' out if longer input matters."
        )


def schemes_are_distinct(case: Case) -> Iterator[str]:
    """The same kind twice is rarely meant."""
    twice = sorted({kind for kind in case.kinds if case.kinds.count(kind) > 1 and kind != "none"})
    if twice:
        yield f"position names {', '.join(twice)} more than once; the effects add up. Give each scheme once."


def order_comes_from_somewhere(case: Case) -> Iterator[str]:
    """An encoder that was told nothing about positions is blind to order unless its input carries it."""
    if _blind(case) and case.layers.position is None:
        yield (
            "no position scheme and no max_seq_len: this encoder is blind to order unless its input carries positions. "
            "Give position=, or put it into a wrapper with max_seq_len."
        )


def cross_attention_reads_positions_if_given(case: Case) -> Iterator[str]:
    """Queries and context are usually different sequences, so a distance between them means nothing by itself."""
    names = case.names(lambda s: not s.overrides("embed") and not isinstance(s, NoPosition))
    if case.layers.kind == "cross_attender" and names:
        yield (
            f"position={', '.join(names)} in a cross_attender acts only in calls with context_positions=. Give them, or leave "
            "position out."
        )


def pixel_frequencies_want_coordinates(case: Case) -> Iterator[str]:
    """Pixel frequencies are for coordinates; what an image is told is judged with the image."""
    pixels = any(isinstance(part, Axial) and part.freqs == "pixel" for part in case.parts)
    if pixels and not isinstance(case.model, VisionConfig):
        yield (
            "axial: freqs='pixel' is for coordinates from -1 to 1. Whole numbers, such as the index of a token, all turn by "
            "multiples of pi and look alike. Pass float positions."
        )


def a_window_is_shorter_than_the_text(case: Case) -> Iterator[str]:
    """A window or chunk as long as the longest input hides nothing."""
    length = case.max_seq_len
    for name, size in (("window", case.layers.window), ("chunk", case.layers.chunk)):
        if size is not None and length is not None and size >= length:
            yield f"{name}={size} hides nothing up to max_seq_len={length}. Use a shorter {name}, or leave it out."


def _blind(case: Case) -> bool:
    """A window tells near from far, so it is not blind; one kind of layer that is not is enough."""
    return case.blind


def _limits(case: Case) -> list[int]:
    return [s.limit for s in case.schemes if s.limit is not None]


SETTINGS: tuple[Rule, ...] = (
    kv_heads_divide_heads,
    some_position,
    no_setting_is_idle,
    first_tokens_are_kept_beside_a_window,
    head_fits,
    none_stands_alone,
)
"""Errors that need no scheme."""

COMBINATIONS: tuple[Rule, ...] = (
    schemes_combine,
    causal_schemes_need_a_decoder,
    an_encoder_needs_order,
    schemes_reach_max_seq_len,
    first_tokens_have_distances,
    projections_of_positions_are_read,
)
"""Errors that need the schemes."""

WARNINGS: tuple[Rule, ...] = (
    a_table_bounds_the_length,
    schemes_are_distinct,
    order_comes_from_somewhere,
    cross_attention_reads_positions_if_given,
    a_window_is_shorter_than_the_text,
    pixel_frequencies_want_coordinates,
)
