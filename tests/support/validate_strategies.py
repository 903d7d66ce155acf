"""Random models and uses for hypothesis: every field of a config, some of it wrong."""

from hypothesis import strategies as st


def maybe(*values, usual=None, weight=2):
    """One of the values, or the usual one, which is more likely."""
    return st.sampled_from([usual] * weight * len(values) + list(values))


def fields(kind, **options):
    """A scheme with some of its settings."""
    return st.fixed_dictionaries({"kind": st.just(kind)}, optional={k: st.sampled_from(v) for k, v in options.items()})


SHORT = {"original_max_position_embeddings": 4}
SCALINGS = [
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "ntk", "factor": 2.0},
    {"rope_type": "dynamic", **SHORT},
    {"rope_type": "dynamic", **SHORT, "length_policy": "recompute"},
    {"rope_type": "yarn", "original_max_position_embeddings": 64, "factor": 4.0},
]

ROTARY = {
    "theta": [500.0],
    "dim": [4, 6, 6, 0, 7, 40],
    "fraction": [0.5],
    "interleaved": [True],
    "heads": [1, 2, 3],
    "interpolation_factor": [2.0],
    "base_rescale_factor": [3.0],
    "scaling": SCALINGS,
    "sections": [(1, 1), (1, 2), (1, 1, 1), (2, 1, 1), (3,)],
    "learned": [True],
}

SCHEMES = {
    "none": fields("none"),
    "absolute": fields("absolute", offset=[2], scale=[0.7], max_seq_len=[4, 40]),
    "sinusoidal": fields("sinusoidal", theta=[50.0], layout=["concat"]),
    "scaled_sinusoidal": fields("scaled_sinusoidal", theta=[50.0]),
    "rope": fields("rope", **ROTARY, section_order=["interleaved", "video"]),
    "axial": fields(
        "axial",
        axes=[1, 2, 3],
        theta=[500.0],
        freqs=["pixel"],
        max_freq=[20.0],
        dim=[4, 6, 40],
        interleaved=[True],
        learned=[True],
    ),
    "mixed": fields("mixed", axes=[1, 2, 3], theta=[500.0], dim=[4, 6, 40], interleaved=[True]),
    "xpos": fields("xpos", **ROTARY, scale_base=[30.0, 30.0, 0.2], center=[0, 3]),
    "polar": fields("polar", theta=[500.0], uniform_init=[True]),
    "alibi": fields(
        "alibi",
        heads=[1, 2, 9],
        slopes=[(0.5,), (0.5, 0.1), (0.2, -0.1), ()],
        learned=[True],
        variant=["causal", "symmetric", "asymmetric"],
        scale=[0.5],
    ),
    "t5": fields("t5", num_buckets=[3, 8, 8], max_distance=[2, 5, 5], scale=[2.0]),
    "deberta": fields(
        "deberta", num_buckets=[None, 4, 6, 6], max_distance=[3, 5, 5], terms=["c2p", "p2c"], norm_eps=[0.1]
    ),
    "dynamic": fields("dynamic", dim=[5], depth=[1], log_distance=[True], norm=[True]),
    "cope": fields("cope", max_pos=[4]),
    "forgetting": fields("forgetting", bias_init=[1.0]),
    "cable": fields("cable"),
    "kerple": fields("kerple", kernel=["power"]),
    "sandwich": fields("sandwich", width=[4, 10]),
    "fire": fields("fire", width=[5], scale=[0.7], threshold=[3.0]),
    "shaw": fields("shaw", max_distance=[2, 3]),
    "transformer_xl": fields("transformer_xl"),
    "relative_logits": fields("relative_logits", width=[3], extent=[2, 4], clip=[0.5], log_floor=[2]),
    "gated_t5": fields("gated_t5", num_buckets=[8], max_distance=[9]),
    "ssmax": fields("ssmax", init=[0.4]),
    "temperature": st.fixed_dictionaries(
        {"kind": st.just("temperature"), "floor_scale": st.just(2.0)},  # short enough to be seen in these texts
        optional={"scale": st.just(0.5), "offset": st.just(0.0)},
    ),
    "log_n": st.just({"kind": "log_n", "trained": 3}),
}
ANY = st.one_of(*SCHEMES.values())

NORMS = st.fixed_dictionaries(
    {"kind": maybe("rms", "scale", "simple_rms", "none", usual="layer", weight=1)},
    optional={
        "eps": st.just(0.1),
        "bias": st.booleans(),
        "unit_offset": maybe(False, usual=True),
    },
)
LATENTS = [
    {"kv_rank": 5, "rope_dim": 4},
    {"kv_rank": 9, "rope_dim": 6, "q_rank": 5, "value_dim": 7},
    {"kv_rank": 2, "rope_dim": 4, "value_dim": 3, "eps": 0.1},
]
MIXTURES = st.fixed_dictionaries(
    {"experts": st.sampled_from([6, 8]), "top_k": st.sampled_from([1, 2, 3, 7])},
    optional={
        "score": maybe("sigmoid", usual="softmax"),
        "renorm": maybe(False, usual=True),
        "scale": maybe(2.5, usual=1.0),
        "router_bias": st.booleans(),
        "correction": st.booleans(),
        "groups": maybe(2, 4, 8, usual=1, weight=1),
        "top_groups": maybe(2, 3, usual=1, weight=1),
        "group_best": maybe(1, 3, usual=2, weight=1),
        "weigh": maybe("input", usual="output"),
        "shared": maybe(5),
        "shared_gate": maybe(True, usual=False),
    },
)
ATTENTION = st.fixed_dictionaries(
    {},
    optional={
        "dropout": maybe(0.3, usual=0.0),
        "bias": st.booleans(),
        "qk_norm": maybe("rms", "rms_per_head", "l2"),
        "qk_norm_scale": maybe(4.0, usual=10.0, weight=4),
        "softcap": maybe(3.0),
        "sinks": maybe(True, usual=False),
        "scale": maybe(0.2),
        "mla": maybe(*LATENTS, weight=6),
    },
)
FEEDFORWARD = st.fixed_dictionaries(
    {},
    optional={
        "mult": maybe(2.0, usual=4.0),
        "dim": maybe(13),
        "activation": st.sampled_from(["gelu", "silu", "relu2", "xielu"]),
        "glu": st.booleans(),
        "bias": st.booleans(),
        "gate_bias": maybe(True, False),
        "dropout": maybe(0.3, usual=0.0),
        "swish_beta": maybe(1.7, usual=1.0, weight=3),
        "glu_clamp": maybe(0.5, weight=3),
        "glu_shift": maybe(1.0, usual=0.0, weight=3),
        "moe": st.one_of(st.none(), st.none(), MIXTURES),
    },
)


def layers_with(position):
    """Layers with positions drawn from a strategy."""
    return st.fixed_dictionaries(
        {
            "kind": st.sampled_from(["decoder"] * 4 + ["encoder", "encoder", "cross_attender"]),
            "dim": st.sampled_from([7, 12, 16]),
            "depth": st.just(2),
            "heads": st.sampled_from([1, 2, 3, 4]),
            "head_dim": st.sampled_from([6, 8, 12]),
            "position": position,
        },
        optional={
            "kv_heads": maybe(1, 2, 3),
            "cross_attend": maybe(True, usual=False),
            "context_dim": maybe(5, weight=4),
            "window": maybe(2, 3, 5, weight=1),
            "chunk": maybe(4, weight=6),
            "flash": st.booleans(),
            "norm": NORMS,
            "attn": ATTENTION,
            "ff": FEEDFORWARD,
            "backend": maybe("eager", "blockwise", "sdpa", "flex", usual="auto", weight=1),
            "norm_place": maybe("post", "sandwich", "entry", "parallel", usual="pre"),
            "final_norm": maybe(True, False),
        },
    )


def models_with(position):
    """Models of such layers."""
    return st.fixed_dictionaries(
        {
            "num_tokens": st.just(11),
            "max_seq_len": st.sampled_from([6, 11, 24]),
            "layers": layers_with(position),
        },
        optional={
            "emb_dim": maybe(10),
            "tie_embedding": maybe(True, usual=False),
            "tie_embedding_scale": maybe(0.5, weight=4),
            "emb_proj_bias": maybe(False, usual=True, weight=4),
            "logits_proj": maybe(True, usual=False, weight=4),
            "logits_dim": maybe(5, weight=4),
            "l2norm_embed": maybe(True, usual=False),
            "post_emb_norm": st.booleans(),
        },
    )


PLACED = st.one_of(*(scheme for kind, scheme in SCHEMES.items() if kind != "none"))
SCALED = st.fixed_dictionaries({"kind": st.sampled_from(["rope", "xpos"]), "scaling": st.sampled_from(SCALINGS)})
DISTANCES = st.one_of(
    SCALED, *(SCHEMES[kind] for kind in ("none", "rope", "xpos", "polar", "alibi", "t5", "dynamic", "cope"))
)
"""Schemes that keep_first supports, unless their own settings are wrong."""
KEPT = st.fixed_dictionaries(
    {
        "position": st.one_of(DISTANCES.map(lambda part: [part]), ANY.map(lambda part: [part])),
        "window": st.sampled_from([2, 3, 5]),
        "keep_first": st.sampled_from([1, 2]),
    }
)
"""Layers with keep_first, most of them supported."""
ENTRIES = st.one_of(
    KEPT,
    st.fixed_dictionaries(
        {},
        optional={
            "position": st.one_of(ANY.map(lambda part: [part]), st.lists(PLACED, min_size=2, max_size=2)),
            "window": maybe(2, 3, 5, weight=1),
            "chunk": maybe(4, weight=3),
            "keep_first": maybe(1, 2, usual=0, weight=2),
        },
    ),
)
"""Entries of a pattern."""


def with_patterns(models):
    """The same models with a pattern, or with keep_first in every layer."""

    def add(model, pattern, keep_first, kept, bare):
        layers = {**model["layers"], "pattern": pattern}
        if pattern:  # models of one kind of layer cover encoders
            layers["kind"] = "decoder"
            if bare:  # otherwise a window or a position of the stack beside a pattern is refused
                layers = {name: value for name, value in layers.items() if name not in ("window", "chunk", "position")}
        else:
            layers |= {"keep_first": keep_first, **({"chunk": None, **kept} if kept else {})}
        return {**model, "layers": layers}

    return st.builds(
        add,
        models,
        st.lists(ENTRIES, max_size=2),
        maybe(1, 2, usual=0, weight=1),
        st.one_of(st.none(), KEPT),
        st.sampled_from([True, True, False]),
    )


POSITIONS = st.one_of(st.none(), st.lists(ANY, min_size=1, max_size=2))
LAYERS, MODELS = layers_with(POSITIONS), models_with(POSITIONS)


def with_scheme(kind):
    """Positions with one kind of scheme in them, alone or beside another."""
    alone = SCHEMES[kind].map(lambda scheme: [scheme])
    return st.one_of(alone, st.tuples(SCHEMES[kind], ANY).map(list), st.tuples(ANY, SCHEMES[kind]).map(list))


USES = st.fixed_dictionaries(
    {"device": st.just("cpu")},
    optional={
        "cache": maybe("static", "growing", "sliding", weight=1),
        "decode_to": maybe(5, 14, 30),
        "train": st.booleans(),
    },
)
