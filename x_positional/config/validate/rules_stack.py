"""Rules of layers and of schemes together, and of the embeddings and head around them."""

from collections.abc import Iterator

from x_positional.attention.streaming import keep_first_problem
from x_positional.config.models import ModelConfig
from x_positional.config.validate.case import Case
from x_positional.config.validate.rule import rule
from x_positional.config.vision import VisionConfig
from x_positional.schemes.compose import chain_problems
from x_positional.schemes.none import NoPosition
from x_positional.schemes.rotary.axial import Axial


@rule()
def kv_heads_divide_heads(case: Case) -> Iterator[str]:
    """Each key head serves the same number of query heads."""
    heads, kv_heads = case.layers.heads, case.layers.kv_heads or case.layers.heads
    if heads % kv_heads:
        fitting = [n for n in range(1, heads + 1) if heads % n == 0]
        yield (
            f"heads={heads} must be a multiple of kv_heads={kv_heads}: each key head serves the same number of query "
            f"heads. Use kv_heads={' or '.join(map(str, fitting))}, or other heads."
        )


@rule()
def some_position(case: Case) -> Iterator[str]:
    """An empty list of schemes is neither the default nor none."""
    if not case.parts:
        yield "position=[] names no scheme. Leave position out for the default, or use position='none'."


@rule()
def first_tokens_are_kept_beside_a_window(case: Case) -> Iterator[str]:
    """keep_first needs a sliding window over a causal past."""
    layers = case.layers
    if layers.keep_first and layers.window is None:
        yield f"keep_first={layers.keep_first} keeps tokens that a window would drop, and there is no window. Set window=."
    if layers.keep_first and layers.kind == "encoder":
        yield f"keep_first={layers.keep_first} needs causal attention. Use a decoder, or leave it out."
    if layers.keep_first and layers.chunk is not None:
        yield f"keep_first={layers.keep_first} and chunk={layers.chunk} cannot be combined. Set one of them."


@rule()
def a_pattern_sets_what_differs(case: Case) -> Iterator[str]:
    """What differs between layers is set in the pattern, once, and every entry applies to some layer."""
    config = case.whole
    beside = [f"{name}={getattr(config, name)}" for name in ("window", "chunk", "keep_first") if getattr(config, name)]
    if config.pattern and beside:
        yield f"{', '.join(beside)} beside pattern: entries of a pattern do not inherit it. Put it into the entries."
    if config.position is not None and config.pattern and all(k.position is not None for k in config.pattern):
        kinds = ", ".join(part.label for part in config.position)
        yield (
            f"position={kinds} is ignored: every entry of pattern sets its own. Leave it out, or put it into the entries "
            "that should use it."
        )
    if len(config.pattern) > config.depth:
        yield (
            f"pattern has {len(config.pattern)} entries, and depth={config.depth} layers use only the first {config.depth}. "
            "Shorten it, or raise depth."
        )


@rule(models=ModelConfig)
def tied_logits_fit(case: Case, model: ModelConfig) -> Iterator[str]:
    """Tied logits are as wide as the vocabulary and read embeddings as wide as the head's input."""
    width = model.emb_dim or case.layers.dim
    if model.tie_embedding and model.logits_width != width and model.logits_width == case.layers.dim:
        yield (
            f"tie_embedding=True computes logits with the embedding matrix, which is emb_dim={model.emb_dim} wide, "
            f"and the model is dim={case.layers.dim} wide. Set logits_proj, leave emb_dim out, or untie."
        )
    elif model.tie_embedding and model.logits_width != width:
        yield (
            f"tie_embedding=True computes logits with the embedding matrix, which is {width} wide, and the head with "
            f"head.width={model.logits_width} is not. Set head.width={width}, or untie."
        )
    if model.logits_proj and model.head is not None and model.head.width is not None:
        yield (
            f"logits_proj reads the model's width, and the head with head.width={model.head.width} comes before it. Leave one of "
            "them out."
        )
    if model.tie_embedding and model.logits_dim not in (None, model.num_tokens):
        yield (
            f"tie_embedding=True gives num_tokens={model.num_tokens} logits, and logits_dim={model.logits_dim} asks for "
            "another number. Leave one of them out."
        )


@rule()
def none_stands_alone(case: Case) -> Iterator[str]:
    """'none' excludes every other scheme."""
    if "none" in case.kinds and len(case.kinds) > 1:
        yield f"position={case.kinds} combines 'none' with another scheme. Leave 'none' out, or give it alone."


@rule(needs="schemes")
def schemes_combine(case: Case) -> Iterator[str]:
    """No scheme of a list undoes another."""
    yield from chain_problems(case.schemes)
    for name, scheme in case.named:
        if scheme.per_layer and scheme.overrides("embed"):
            yield (
                f"{name} has parameters per layer and also changes the embeddings, which happens once. Split it into two "
                "schemes and give both: position=[..., ...]."
            )


@rule(needs="schemes")
def every_layer_reads_the_embeddings(case: Case) -> Iterator[str]:
    """A scheme that changes the embeddings acts on every layer, so it belongs to every entry of a pattern."""
    names = ", ".join(case.partly_embedded)
    if names and case.whole.position is None and any(entry.position is None for entry in case.whole.pattern):
        yield (
            f"entries of pattern without a position get the default, position={names}, which changes the embeddings that "
            "every layer reads. Set position in every entry; 'none' is no position."
        )
    elif names:
        yield (
            f"position={names} in some entries of pattern: it changes the embeddings, which every layer reads. Put it into "
            "every entry, with the same settings and at the same place of the list, or into none."
        )


@rule(needs="schemes")
def causal_schemes_need_a_decoder(case: Case) -> Iterator[str]:
    """A scheme that is undefined without a causal mask cannot run in bidirectional attention."""
    kind = case.layers.kind
    if kind == "decoder":
        return
    for name in case.names(lambda s: s.causal_only and s.counts_keys):
        yield (
            f"{name}: without a causal mask every query sees all keys, and {name} counts those up to the query's position: the "
            "first query would attend to all keys alike. Use a decoder."
        )
    crossing = kind == "cross_attender"  # there, what a scheme does to queries alone is given the context's positions
    undefined = case.names(
        lambda s: (
            s.causal_only
            and not s.counts_keys
            and (s.capabilities().tells_order or (crossing and s.capabilities().uses_positions))
        )
    )
    if undefined:
        yield (
            f"position={', '.join(undefined)} is defined only under a causal mask, and kind={kind!r} has none. Use a decoder, "
            "or rope, polar, alibi, t5, dynamic, absolute or sinusoidal."
        )


@rule(needs="schemes", models=ModelConfig)
def an_encoder_needs_order(case: Case, model: ModelConfig) -> Iterator[str]:
    """Without a causal mask and without positions, attention is blind to the order of tokens."""
    if case.blind and case.layers.position is not None:
        yield (
            f"position={', '.join(case.kinds)} in an encoder: nothing tells one order of tokens from another. "
            "Use rope, polar, alibi, t5, dynamic, absolute or sinusoidal."
        )


@rule(needs="schemes")
def schemes_reach_max_seq_len(case: Case) -> Iterator[str]:
    """Every position below max_seq_len is defined."""
    length = case.max_seq_len
    for name, scheme in case.named:
        if length is not None and scheme.limit is not None and scheme.limit < length:
            yield (
                f"position={name} ends at {scheme.limit} positions, and max_seq_len={length} asks for more. "
                f"Give it {length}, or lower max_seq_len."
            )


@rule(needs="schemes")
def first_tokens_have_distances(case: Case) -> Iterator[str]:
    """keep_first moves the positions of the first tokens, which schemes in the embeddings cannot follow."""
    others = [([], window) for window in case.windows]
    problem = keep_first_problem([(case.schemes, case.attention_window), *others])
    if problem is not None:
        yield problem


@rule("warning", needs="schemes")
def a_table_bounds_the_length(case: Case) -> Iterator[str]:
    """A table of positions beside a relative scheme keeps the model from running past the table."""
    bounded = case.names(lambda s: s.absolute and s.limit is not None)
    relative = case.names(lambda s: not s.absolute and not isinstance(s, NoPosition))
    if bounded and relative:
        limit = min(s.limit for s in case.schemes if s.limit is not None)
        yield (
            f"{', '.join(bounded)} beside {', '.join(relative)}: the table ends at {limit} positions, and so does the "
            "model, although the other scheme has no limit. Leave 'absolute' out if longer input matters."
        )


@rule("warning", needs="schemes")
def schemes_are_distinct(case: Case) -> Iterator[str]:
    """The same scheme twice is rarely intended."""
    twice = sorted({kind for kind in case.kinds if case.kinds.count(kind) > 1 and kind != "none"})
    if twice:
        yield f"position names {', '.join(twice)} more than once; the effects add up. Give each scheme once."


@rule("warning", needs="schemes")
def order_comes_from_somewhere(case: Case) -> Iterator[str]:
    """An encoder without positions is blind to order unless its input carries them."""
    if case.blind and case.layers.position is None:
        yield (
            "no position scheme and no max_seq_len: this encoder is blind to order unless its input carries positions. "
            "Give position=, or put it into a wrapper with max_seq_len."
        )


@rule("warning", needs="schemes")
def cross_attention_reads_positions_if_given(case: Case) -> Iterator[str]:
    """Queries and context are usually different sequences, without a distance between them."""
    names = case.names(lambda s: not s.overrides("embed") and not isinstance(s, NoPosition))
    if case.layers.kind == "cross_attender" and names:
        yield (
            f"position={', '.join(names)} in a cross_attender acts only in calls with context_positions=. Give them, or leave "
            "position out."
        )


@rule("warning")
def a_window_is_shorter_than_the_sequence(case: Case) -> Iterator[str]:
    """A window or chunk as long as the longest input hides nothing."""
    length, first = case.max_seq_len, case.layers.keep_first
    for name, size in (("window", case.layers.window), ("chunk", case.layers.chunk)):
        if size is None or length is None:
            continue
        if size >= length:
            yield f"{name}={size} hides nothing up to max_seq_len={length}. Use a shorter {name}, or leave it out."
        elif name == "window" and size + first >= length:
            yield (
                f"window={size} and keep_first={first} hide nothing up to max_seq_len={length}. Use a shorter window, or leave "
                "both out."
            )


@rule("warning")
def pixel_frequencies_need_coordinates(case: Case) -> Iterator[str]:
    """Pixel frequencies are for coordinates from -1 to 1; rules of images check what an image model passes."""
    rotated = {"pixel": "all rotate by multiples of pi", "period": "rotate the first pair of an axis by full turns"}
    kinds = {part.freqs for part in case.parts if isinstance(part, Axial) and part.freqs in rotated}
    if isinstance(case.model, VisionConfig):
        return
    for kind in sorted(kinds):
        yield (
            f"axial: freqs={kind!r} is for coordinates from -1 to 1. Integers, such as the index of a token, {rotated[kind]} "
            "and look alike. Pass float positions."
        )
