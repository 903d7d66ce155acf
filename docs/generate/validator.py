"""Renders docs/validator.md: every rule with an example that breaks it, and the validator's answer.

Run from the repository root: python docs/generate/validator.py
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from x_positional import PositionScheme, Report, check
from x_positional.config.validate import rules_ignored, rules_parts, rules_stack, rules_use, rules_vision
from x_positional.schemes import CopeScores

PAGE = Path(__file__).parents[1] / "validator.md"
BASE = {"dim": 64, "depth": 2, "heads": 8, "max_seq_len": 256}


class Drifting(PositionScheme):
    """A scheme whose keys change as the sequence grows."""

    kv_cacheable = False


class Both(CopeScores):
    """A scheme per layer that also changes the embeddings."""

    def embed(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return x


class Long(list[Any]):
    """A list that is written with its first and last entry."""

    def __repr__(self) -> str:
        return f"[{self[0]!r}, ..., {self[-1]!r}]"


CYCLE: dict[str, Any] = {"kind": "rope"}
CYCLE["scaling"] = CYCLE


@dataclass(frozen=True)
class Example:
    """One call of `check` that gets exactly one message of its level, or `of` several, the last of which is shown."""

    rule: Any
    """The rule's function, or its statement in words."""
    flags: dict[str, Any] = field(default_factory=dict)
    """Keyword flags."""
    level: str = "error"
    """error or warning."""
    target: dict[str, Any] | None = None
    """Fields of a model instead of flags."""
    of: int = 1
    """How many messages there are."""

    @property
    def why(self) -> str:
        return self.rule if isinstance(self.rule, str) else (self.rule.__doc__ or "")

    def call(self) -> dict[str, Any]:
        """The flags, and those of the base that they do not set; None leaves one out."""
        base = {name: value for name, value in BASE.items() if name != "max_seq_len" or "image_size" not in self.flags}
        together = {**base, **self.flags}
        return {name: value for name, value in together.items() if value is not None}

    def report(self) -> Report:
        """The validator's report."""
        if self.target is None:
            return check(**self.call())
        layers = {name: BASE[name] for name in ("dim", "depth", "heads")}
        return check({"num_tokens": 256, "max_seq_len": BASE["max_seq_len"], "layers": layers, **self.target})

    def answer(self) -> str:
        """The message that is shown."""
        report = self.report()
        found = report.errors if self.level == "error" else report.warnings
        if len(found) != self.of or (self.level == "warning" and report.errors):
            raise ValueError(f"{self.flags} should get one {self.level}, and gets {report}")
        return found[-1]


def error(rule: Any, **flags: Any) -> Example:
    return Example(rule, flags)


def error_in(rule: Any, **fields: Any) -> Example:
    return Example(rule, target=fields)


def warning(rule: Any, **flags: Any) -> Example:
    return Example(rule, flags, "warning")


NAMES = [
    error("A mistyped name is never ignored; the nearest one is offered.", rotary_pos_em=True),
    error("The same inside a group of fields.", attn={"softcapp": 30.0}),
    error("An unknown scheme.", position="ropee"),
    error("A setting that its scheme does not have.", position={"kind": "rope", "thetta": 500.0}),
    error("A value of the wrong type or out of range.", attn={"dropout": 1.5}),
    error("An unknown choice.", norm={"kind": "rmsnorm"}),
    error("A flag of x-transformers that is not supported.", use_dynamic_tanh=True),
    error("Two flags that cannot be combined.", alibi_pos_bias=True, rel_pos_bias=True),
    error("A setting whose main flag is off.", rotary_emb_dim=32),
    error("A word that is used elsewhere for a scheme.", position="rotary"),
    error("A scheme is named by its kind.", position={"name": "rope", "theta": 500.0}),
]

BOUNDS = [
    error("Sizes are bounded, and with them the work of a verdict.", depth=10**9),
    error("Integers fit 64 bits, other numbers float32.", heads=10**30),
    error("Integers fit 64 bits, other numbers float32.", position={"kind": "rope", "theta": 1e308}),
    error("Values do not contain themselves.", position=CYCLE),
    error("Values have an end.", pattern=iter([{}])),
    error("The channels of all heads are one projection.", heads=4096, head_dim=512),
    error(
        "Each kind of layer has masks, a ring of the cache and a backend of its own.",
        depth=129,
        position="rope",
        pattern=Long({"window": i + 1} for i in range(129)),
    ),
    error(
        "A stack builds each different scheme.",
        depth=65,
        pattern=Long({"position": {"kind": "rope", "theta": 500.0 + i}} for i in range(65)),
    ),
]

SETTINGS = [
    error(rules_stack.kv_heads_divide_heads, kv_heads=3),
    error(rules_stack.some_position, position=[]),
    error(rules_parts.projections_of_positions_are_read, position="rope", attn={"position_projections": True}),
    error(
        rules_parts.projections_of_positions_are_read, position="deberta", attn={"mla": {"kv_rank": 8, "rope_dim": 4}}
    ),
    error(rules_parts.projections_of_positions_are_read, kind="cross_attender", position="deberta"),
    error(rules_stack.tied_logits_fit, tie_embedding=True, emb_dim=32),
    error(rules_stack.tied_logits_fit, tie_embedding=True, head={"width": 32}),
    error(rules_stack.tied_logits_fit, emb_dim=32, logits_proj=True, head={"width": 32}),
    error_in(rules_stack.tied_logits_fit, tie_embedding=True, logits_dim=99),
    warning(rules_stack.a_window_is_shorter_than_the_sequence, window=512, position="rope"),
    warning(rules_stack.a_window_is_shorter_than_the_sequence, window=254, keep_first=2, position="rope"),
    error(rules_stack.first_tokens_are_kept_beside_a_window, keep_first=4, position="rope"),
    error(rules_stack.first_tokens_are_kept_beside_a_window, kind="encoder", window=64, keep_first=4, position="rope"),
    error(rules_stack.first_tokens_are_kept_beside_a_window, window=16, chunk=32, keep_first=4, position="rope"),
    error(rules_stack.first_tokens_have_distances, window=64, keep_first=4, position="absolute"),
    error(rules_stack.first_tokens_have_distances, window=64, keep_first=4, position="forgetting"),
    error(rules_stack.a_pattern_sets_what_differs, window=64, pattern=[{"window": 32}, {}], position="rope"),
    error(rules_stack.a_pattern_sets_what_differs, position="rope", pattern=[{"position": "alibi"}]),
    error(rules_stack.a_pattern_sets_what_differs, position="rope", pattern=[{"window": 32}] * 3),
]


def mixture(**settings: Any) -> dict[str, Any]:
    """A feedforward of eight experts, two for a token."""
    return {"moe": {"experts": 8, "top_k": 2, **settings}}


def latent(**settings: Any) -> dict[str, Any]:
    """Latent attention with 16 shared channels."""
    return {"mla": {"kv_rank": 32, "rope_dim": 16, **settings}}


PARTS = [
    error(rules_parts.a_feedforward_has_channels, ff={"mult": 0.01}),
    error(rules_parts.experts_can_be_chosen, ff=mixture(top_k=9)),
    error(rules_parts.experts_can_be_chosen, ff=mixture(groups=3, top_groups=2)),
    error(rules_parts.experts_can_be_chosen, ff=mixture(groups=8, top_groups=2)),
    error(rules_parts.experts_can_be_chosen, ff=mixture(groups=4, top_groups=5)),
    error(rules_parts.experts_can_be_chosen, ff=mixture(groups=4, top_groups=1, top_k=3)),
    warning(rules_parts.a_router_can_learn, ff=mixture(top_k=1)),
    error(rules_parts.learned_activations_stand_alone, ff={"activation": "xielu", "glu": True}),
    error(rules_parts.learned_activations_stand_alone, ff={**mixture(), "activation": "xielu"}),
    error(rules_parts.latents_leave_room_for_values, attn=latent(rope_dim=64)),
    error(rules_parts.a_shared_key_is_rotated_for_all_heads, attn=latent(), position="rope"),
    error(
        rules_parts.a_shared_key_is_rotated_for_all_heads,
        attn=latent(),
        position={"kind": "rope", "dim": 16, "heads": 2},
    ),
    error(rules_parts.a_shared_key_is_rotated_for_all_heads, attn=latent(), position="polar"),
]


def ignored(**flags: Any) -> Example:
    """A setting of a layer without effect."""
    return error(rules_ignored.no_setting_of_a_layer_is_ignored, **flags)


IGNORED = [
    ignored(kind="cross_attender", window=64),
    ignored(window=64, chunk=32, position="rope"),
    ignored(kind="cross_attender", norm_place="parallel"),
    ignored(context_dim=32),
    ignored(norm={"kind": "rms", "bias": True}),
    ignored(norm={"kind": "simple_rms", "unit_offset": False}),
    ignored(norm={"kind": "none", "eps": 1e-5}),
    ignored(norm={"kind": "none"}, final_norm=True),
    ignored(norm={"kind": "none"}, norm_place="sandwich"),
    ignored(norm_place="post", first_norm=False),
    ignored(attn={"qk_norm_eps": 1e-5}),
    ignored(attn={"qk_norm": "rms_plain", "qk_norm_unit_offset": False}),
    ignored(attn={"qk_norm_scale": 8.0}),
    ignored(attn={"qk_norm": "l2", "scale": 0.1}),
    ignored(kind="cross_attender", attn=latent()),
    ignored(attn=latent(), kv_heads=2),
    ignored(attn={**latent(), "qk_norm": "rms"}),
    ignored(attn={**latent(), "clip": 8.0}),
    ignored(ff={"gate_bias": True}),
    ignored(ff={"dim": 100, "mult": 2.0}),
    ignored(ff={"glu_clamp": 7.0}),
    ignored(ff={"swish_beta": 1.702}),
    ignored(ff=mixture(shared_gate=True)),
    ignored(ff=mixture(top_groups=2)),
    ignored(ff=mixture(group_best=1)),
    ignored(ff=mixture(groups=4, top_groups=4)),
    ignored(ff=mixture(top_k=8, correction=True)),
    ignored(ff=mixture(top_k=1, weigh="input")),
    ignored(ff=mixture(top_k=1, score="sigmoid")),
    error_in(rules_ignored.no_setting_of_a_model_is_ignored, tie_embedding_scale=0.5),
    error_in(rules_ignored.no_setting_of_a_model_is_ignored, logits_proj=True),
]

COMBINATIONS = [
    error(rules_stack.none_stands_alone, position=["none", "rope"]),
    error(rules_stack.schemes_combine, position=["rope", "polar"]),
    error(rules_stack.schemes_combine, position=["rope", "deberta"]),
    error(rules_stack.schemes_combine, position=["forgetting", {"kind": "forgetting", "bias_init": 1.0}]),
    error(rules_stack.schemes_combine, position=["cope", {"kind": "cope", "max_pos": 4}]),
    error(rules_stack.schemes_combine, position=Both(64)),
    error(rules_stack.every_layer_reads_the_embeddings, pattern=[{"position": "sinusoidal"}, {"position": "rope"}]),
    error(
        rules_stack.every_layer_reads_the_embeddings, pattern=[{"position": ["absolute", "rope"]}, {"position": "rope"}]
    ),
    error(rules_stack.every_layer_reads_the_embeddings, pattern=[{"window": 64}, {"position": "rope"}]),
    error(rules_stack.causal_schemes_need_a_decoder, kind="encoder", position="cope"),
    error(rules_stack.an_encoder_needs_order, kind="encoder", position="none"),
    error(rules_stack.schemes_reach_max_seq_len, position={"kind": "absolute", "max_seq_len": 128}),
    warning(rules_stack.order_comes_from_somewhere, kind="encoder", max_seq_len=None),
    warning(rules_stack.a_table_bounds_the_length, position=["absolute", "t5"]),
    warning(rules_stack.schemes_are_distinct, position=["alibi", "alibi"]),
    warning(rules_stack.cross_attention_reads_positions_if_given, kind="cross_attender", position="rope"),
]

ONE_SCHEME = [
    error("absolute has one row per position, so it needs a length.", position="absolute", max_seq_len=None),
    error("log_n counts from the trained length.", position="log_n", max_seq_len=None),
    error(
        "sinusoidal: both ends of the frequencies need two pairs.",
        dim=2,
        position={"kind": "sinusoidal", "endpoint": True},
    ),
    error("rope, xpos: an even number of channels is rotated.", position={"kind": "rope", "dim": 7}),
    error("rope, xpos: no more channels than a head has.", position={"kind": "rope", "dim": 80}),
    error("rope, xpos: the rotated width is set once.", position={"kind": "rope", "dim": 32, "fraction": 0.5}),
    error(
        "rope, xpos: the NTK exponent R/(R-2) needs two pairs.",
        position={"kind": "rope", "dim": 2, "base_rescale_factor": 2.0},
    ),
    error("rope, xpos: no more heads are rotated than there are.", position={"kind": "rope", "heads": 9}),
    error(
        "rope, xpos: a key head serves query heads that are all rotated or all not.",
        kv_heads=2,
        position={"kind": "rope", "heads": 4},
    ),
    warning("rope, xpos: language models need 32 rotated channels or more.", position={"kind": "rope", "dim": 16}),
    warning(
        "rope, xpos: the slowest pair should not complete a turn within the context.",
        position={"kind": "rope", "theta": 100.0},
        max_seq_len=1024,
    ),
    error("rope: sections cover all rotated pairs.", position={"kind": "rope", "dim": 32, "sections": (8, 12, 12)}),
    error("rope: a section for each of several axes.", position={"kind": "rope", "sections": (32,)}),
    error(
        "rope: interleaved axes need a first axis that fills the rest.",
        position={"kind": "rope", "sections": (8, 12, 12), "section_order": "interleaved"},
    ),
    error(
        "rope: in video order height and width alternate.",
        position={"kind": "rope", "sections": (8, 10, 14), "section_order": "video"},
    ),
    error("rope, xpos: an order needs sections.", position={"kind": "rope", "section_order": "video"}),
    error("xpos: it decays with one distance.", position={"kind": "xpos", "sections": (8, 12, 12)}),
    error("axial: axes have equal shares of the rotated channels.", position={"kind": "axial", "axes": 3}),
    error("mixed: axes start with equal shares of the rotated channels.", position={"kind": "mixed", "axes": 3}),
    error(
        "axial: each kind of frequency has its own setting.",
        position={"kind": "axial", "freqs": "pixel", "theta": 100.0},
    ),
    error("axial: the first frequency does not depend on theta.", position={"kind": "axial", "dim": 4, "theta": 100.0}),
    warning(rules_stack.pixel_frequencies_need_coordinates, position={"kind": "axial", "freqs": "pixel"}),
    error(
        "xpos: its factors grow with the length and must not overflow float32.",
        position={"kind": "xpos", "scale_base": 64.0},
        max_seq_len=8192,
    ),
    warning("polar: queries and keys are twice as wide, and so is their cache.", position="polar"),
    Example(
        "polar: the slowest channel should not complete a turn within the context.",
        {"position": {"kind": "polar", "theta": 100.0}, "max_seq_len": 1024},
        "warning",
        of=2,
    ),
    error("alibi: no more heads than there are.", position={"kind": "alibi", "heads": 12}),
    error("alibi: slopes are positive.", position={"kind": "alibi", "slopes": [0.5, -0.5]}),
    error("alibi: slopes are not empty.", position={"kind": "alibi", "slopes": []}),
    error("alibi: one slope per head.", position={"kind": "alibi", "slopes": [0.5], "heads": 2}),
    error(
        "alibi: rounded slopes are not trained.",
        position={"kind": "alibi", "rounding": "bfloat16", "learned": True},
    ),
    error(
        "alibi: the causal variant is undefined for keys to the right.",
        kind="encoder",
        position={"kind": "alibi", "variant": "causal"},
    ),
    error("alibi: a decoder has no keys to the right.", position={"kind": "alibi", "variant": "asymmetric"}),
    warning(
        "alibi: past about a thousand tokens even the smallest slope masks distant keys.",
        position="alibi",
        max_seq_len=4096,
    ),
    warning("alibi: symmetric slopes do not distinguish left from right.", kind="encoder", position="alibi"),
    warning("kerple: the bias does not distinguish left from right.", kind="encoder", position="kerple"),
    warning("sandwich: the bias does not distinguish left from right.", kind="encoder", position="sandwich"),
    error("sandwich: a frequency has two channels.", head_dim=1, position="sandwich"),
    error("ssmax: a query counts the keys before it.", kind="encoder", position=["rope", "ssmax"]),
    error(
        "relative_logits: log_scale is read beside log_floor.", position={"kind": "relative_logits", "log_scale": 0.3}
    ),
    error("gated_t5: every head reads channels of the input.", dim=2, position="gated_t5"),
    error("gated_t5: buckets are those of t5.", position={"kind": "gated_t5", "max_distance": 160}),
    error("t5: each side needs two buckets.", kind="encoder", position={"kind": "t5", "num_buckets": 3}),
    error(
        "deberta: distances past the exact buckets share the rest.", position={"kind": "deberta", "max_distance": 129}
    ),
    error(
        "deberta: a single bucket leaves nothing to distribute.",
        position={"kind": "deberta", "num_buckets": 4, "max_distance": 9},
    ),
    error("t5: distances past the exact buckets share the rest.", position={"kind": "t5", "max_distance": 16}),
    error("dynamic: a norm over one channel erases it.", position={"kind": "dynamic", "dim": 1, "norm": True}),
    warning(
        "dynamic: raw distances of a long context are large inputs for a small network.",
        position="dynamic",
        max_seq_len=1024,
    ),
]

FOUR = {
    "original_max_position_embeddings": 64,
    "long_factor": [2.0, 2.0, 3.0, 4.0],
    "short_factor": [1.0, 1.0, 1.0, 1.0],
}


def scaled(rope_type: str, **settings: Any) -> dict[str, Any]:
    """RoPE with scaled frequencies."""
    return {"kind": "rope", "scaling": {"rope_type": rope_type, **settings}}


def long(**settings: Any) -> dict[str, Any]:
    """The same with LongRoPE on four pairs."""
    return scaled("longrope", **{**FOUR, **settings}) | {"dim": 8}


SCALINGS = [
    error(
        "Only one setting scales the frequencies.",
        position=scaled("linear", factor=2.0) | {"interpolation_factor": 2.0},
    ),
    warning(
        "A scaling is meant for a length.",
        position=scaled("ntk_by_parts", factor=2.0, original_max_position_embeddings=64),
    ),
    error(
        "A fixed length must be known.",
        max_seq_len=None,
        position=scaled("dynamic", original_max_position_embeddings=64),
    ),
    error(
        "A length that follows the sequence is not given.",
        position=scaled("dynamic", original_max_position_embeddings=64, length_policy="recompute", length=128),
    ),
    warning(
        rules_use.prefixes_stay_the_same,
        position=scaled("dynamic", original_max_position_embeddings=64, length_policy="recompute"),
    ),
    error("NTK's exponent needs two pairs.", position=scaled("ntk", factor=2.0) | {"dim": 2}),
    error("The ends of the ramp are in order.", position=scaled("llama3", low_freq_factor=4.0, high_freq_factor=1.0)),
    error(
        "YaRN: two settings that are used only together.",
        position=scaled("yarn", factor=8.0, original_max_position_embeddings=64, mscale=1.0),
    ),
    error(
        "YaRN: the ramp divides by the logarithm of theta.",
        position=scaled("yarn", factor=8.0, original_max_position_embeddings=64) | {"theta": 1.0},
    ),
    error(
        "YaRN: some pair must lie on the ramp.",
        position=scaled("yarn", factor=128.0, original_max_position_embeddings=2),
    ),
    error("LongRoPE: one number for each pair.", position=long(short_factor=[1.0], factor=4.0)),
    error("LongRoPE: no frequency is divided by zero.", position=long(long_factor=[0.0, 1.0, 1.0, 1.0], factor=4.0)),
    error("LongRoPE: two settings that are used only together.", position=long(short_mscale=1.2)),
    error("LongRoPE: the attention factor needs a source.", position=long()),
    error(
        "LongRoPE: the attention factor divides by a logarithm.",
        position=long(original_max_position_embeddings=1, factor=256.0),
    ),
]

BACKENDS = [
    error("A scheme that needs whole rows of scores cannot run in a fused kernel.", position="cope", backend="sdpa"),
    error("sdpa does not support a soft cap.", attn={"softcap": 30.0}, backend="sdpa"),
    error("Neither sdpa nor flex supports sinks.", attn={"sinks": True}, backend="flex"),
    error("flex does not support dropout.", attn={"dropout": 0.1}, backend="flex"),
    error("varlen does not support chunks.", chunk=16, backend="varlen"),
    error("flash=True excludes backends that hold the whole score matrix.", attn_flash=True, backend="eager"),
    error(rules_use.flex_fits_the_device, backend="flex", device="cpu", train=True),
    error(rules_use.flex_fits_the_device, backend="flex", device="cuda", head_dim=8),
    warning(rules_use.flex_may_refuse, backend="flex", head_dim=8),
    error(rules_use.varlen_fits_the_heads, backend="varlen", device="cpu", dtype="float32"),
    error(rules_use.varlen_fits_the_heads, backend="varlen", position="polar"),
    error(rules_use.varlen_fits_the_heads, backend="varlen", head_dim=36),
    error(rules_use.varlen_fits_the_heads, backend="varlen", kind="cross_attender"),
    warning(rules_use.sdpa_falls_back, device="cuda", dtype="bfloat16", position="t5", head_dim=36),
    warning(rules_use.sdpa_falls_back, device="cuda", dtype="bfloat16", head_dim=300),
    warning(rules_use.sdpa_falls_back, device="cuda", dtype="float64", window=64),
    warning(rules_use.sdpa_falls_back, device="cuda", dtype="bfloat16", window=64, kv_heads=2),
    warning(rules_use.sdpa_falls_back, device="cpu", position="t5", train=True),
    warning(rules_use.sdpa_falls_back, device="cpu", attn={"dropout": 0.1}, train=True, max_seq_len=48),
    warning(
        rules_use.sdpa_falls_back, device="cpu", position="t5", window=64, keep_first=4, train=True, max_seq_len=1024
    ),
]

USES = [
    error(rules_use.a_cache_needs_a_decoder, kind="encoder", cache="static"),
    error(rules_use.cached_keys_stay_right, position=Drifting(), cache="growing"),
    error(rules_use.a_sliding_cache_needs_a_window, cache="sliding"),
    error(rules_use.a_sliding_cache_needs_a_window, cache="static", cache_window=64),
    error(rules_use.decoding_ends_with_the_positions, decode_to=1000),
    error(rules_use.float16_reaches_max_seq_len, position="xpos", max_seq_len=8192, dtype="float16"),
    warning(rules_use.float16_may_overflow, position="xpos", max_seq_len=8192),
    warning(rules_use.decoding_past_the_trained_length, position="rope", decode_to=1000),
    warning(rules_use.a_cache_window_hides_tokens, position="rope", cache="sliding", cache_window=64),
]


def image(rule: Any, level: str = "error", of: int = 1, **flags: Any) -> Example:
    """An image model."""
    return Example(rule, {"image_size": 32, "patch_size": 8, "position": "axial", **flags}, level, of=of)


IMAGES = [
    image(rules_vision.patches_cover_the_image, patch_size=(8, 5)),
    image(rules_vision.an_image_needs_an_encoder, kind="decoder"),
    image(rules_vision.an_image_needs_an_encoder, cross_attend=True),
    image(rules_vision.one_table_of_the_grid, position={"kind": "absolute", "offset": 2}),
    image(rules_vision.one_table_of_the_grid, position=["absolute", "absolute"]),
    image(rules_vision.one_table_of_the_grid, position=["absolute", "none"]),
    image(rules_vision.positions_fit_every_scheme, position=["axial", "t5"]),
    image(
        rules_vision.positions_fit_every_scheme,
        position={"kind": "rope", "dim": 16, "sections": [2, 3, 3]},
    ),
    image(rules_vision.coordinates_are_read, coordinates="centered", position="absolute"),
    image(rules_ignored.no_setting_of_an_image_model_is_ignored, interpolation="bilinear"),
    image(rules_ignored.no_setting_of_an_image_model_is_ignored, antialias=True),
    image(rules_ignored.no_setting_of_an_image_model_is_ignored, cls_position=True, position="absolute"),
    image(rules_ignored.no_setting_of_an_image_model_is_ignored, cls_position=True, pool="cls"),
    image(rules_ignored.no_setting_of_an_image_model_is_ignored, register_position=True, position="absolute"),
    image(rules_ignored.no_setting_of_an_image_model_is_ignored, register_position=True, num_register_tokens=2),
    image(rules_ignored.no_setting_of_an_image_model_is_ignored, register_heads=True, num_register_tokens=2),
    image(rules_ignored.no_setting_of_an_image_model_is_ignored, register_heads=True, num_classes=5),
    image(rules_ignored.no_setting_of_an_image_model_is_ignored, logits_bias=False),
    image(rules_vision.rows_are_read_one_after_another, "warning", position="rope"),
    image(rules_vision.a_window_counts_along_rows, "warning", window=3),
    image(rules_vision.coordinates_suit_the_frequencies, "warning", coordinates="centered"),
    image(
        rules_vision.coordinates_suit_the_frequencies,
        "warning",
        position={"kind": "axial", "freqs": "pixel"},
    ),
]

GROUPS = {
    "Names and types": NAMES,
    "Bounds": BOUNDS,
    "Settings": SETTINGS,
    "Ignored settings": IGNORED,
    "Experts and latents": PARTS,
    "Schemes together": COMBINATIONS,
    "One scheme": ONE_SCHEME,
    "Scaled rotary frequencies": SCALINGS,
    "Backends and devices": BACKENDS,
    "Caches, lengths, dtypes": USES,
    "Images": IMAGES,
}

PROSE = """\
# The validator

`check` validates a model, and its intended use, before it is built. It never raises for a bad config: every problem is a
line of the report, all of them at once, each with the value, the reason and the way out.

```python
from x_positional import check

report = check(num_tokens=256, max_seq_len=1024, dim=512, depth=6, rotary_pos_emb=True, cache="static", decode_to=4096)
print(report)  # errors, warnings, the backend and why, which cache is correct, what happens past max_seq_len
print(report.ok, report.errors, report.to_dict()["backend"])
```

- **Target**: keyword flags, a `ModelConfig`, a `LayersConfig`, a built model or stack, a dict of fields, or the path of a
  YAML file. On the command line: `x-positional check FILE`, with `--json` for programs.
- **Intended use**: `cache="static" | "growing" | "sliding"`, `cache_window=`, `decode_to=` tokens, `device=`, `dtype=`,
  `train=True`. What the model cannot do of that is an error. Only what you request is checked.
- **Errors and warnings**: an error fails or gives wrong output. Building a model refuses the same configs with the same
  messages (`IncompatibleConfig`). A warning works and may be unintended.
- **Every input has an answer**, in at most 2 s and 500 MB: values of any type, cyclic or nested thousands deep, extreme
  numbers, damaged files. YAML files hold each key once and at most 512 KB; dates in them are text.
- **A setting without effect is an error.** It was meant to have one.
- **The verdicts are tested**: random models that pass are built, run, padded, trained and decoded through a cache, and
  compared; those that are refused are built with every check disabled, and must fail or be wrong.

Every rule follows, with a call that breaks it and the message. All calls share
`check(dim=64, depth=2, heads=8, max_seq_len=256, ...)`; those for images have no `max_seq_len`.
"""


def shown(value: Any) -> str:
    """As it is written in a call."""
    if isinstance(value, Iterator):
        return "iter([{}])"
    return f"{type(value).__name__}()" if isinstance(value, PositionScheme) else repr(value)


def entry(example: Example) -> list[str]:
    """An example and its message."""
    call = ", ".join(f"{name}={shown(value)}" for name, value in example.flags.items())
    call = call or f"{{..., {', '.join(f'{name!r}: {value!r}' for name, value in (example.target or {}).items())}}}"
    return [f"- `check({call})`  ", f"  **{example.level}**: {example.answer()}"]


def render() -> str:
    """The whole page."""
    lines = [PROSE]
    for title, examples in GROUPS.items():
        lines += [f"## {title}", ""]
        for why, same in groupby(examples, key=lambda example: example.why):
            lines += [f"**{why}**", "", *(line for example in same for line in entry(example)), ""]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(render())
