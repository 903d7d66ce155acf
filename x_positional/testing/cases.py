"""What the library itself answers for: every registered scheme, useful chains, and variants of the configs."""

from dataclasses import dataclass

from x_positional.schemes.absolute import Absolute, Sinusoidal
from x_positional.schemes.alibi import Alibi
from x_positional.schemes.cope import Cope
from x_positional.schemes.deberta import Deberta
from x_positional.schemes.dynamic_bias import Dynamic
from x_positional.schemes.forgetting import Forgetting
from x_positional.schemes.registry import REGISTRY
from x_positional.schemes.rotary.axial import Axial
from x_positional.schemes.rotary.mixed import Mixed
from x_positional.schemes.rotary.polar import Polar
from x_positional.schemes.rotary.rope import Rope, XPos
from x_positional.schemes.rotary.scaling.length import DynamicNtk, LongRope
from x_positional.schemes.rotary.scaling.parts import Llama3, Yarn
from x_positional.schemes.t5 import T5
from x_positional.schemes.temperature import LogN, Temperature
from x_positional.testing.subject import Scheme, Sizes


@dataclass(frozen=True)
class Case:
    """A scheme or several combined, and the sizes to try them in."""

    scheme: Scheme | list[Scheme]
    sizes: Sizes | None = None


CHAINS: tuple[list[Scheme], ...] = (
    ["absolute", "alibi"],
    ["absolute", "rope"],
    ["absolute", "cope"],
    ["absolute", "forgetting"],
    ["rope", "alibi"],
    ["rope", "t5"],
    ["rope", "cope"],
    ["rope", "forgetting"],
    ["alibi", "cope"],
    ["sinusoidal", "t5"],
    ["polar", "dynamic"],
    ["xpos", "alibi", "forgetting"],
    ["mixed", "forgetting"],
    ["absolute", "deberta"],
)

NTK = DynamicNtk(original_max_position_embeddings=9, length_policy="recompute")
LONGROPE = LongRope(
    original_max_position_embeddings=15,
    length_policy="recompute",
    short_factor=(1.0,) * 12,
    long_factor=tuple(1.0 + i / 3 for i in range(12)),
    short_mscale=1.0,
    long_mscale=1.5,
)
"""The trained lengths are such that the suite's texts lie on both sides."""
EVEN = Sizes(heads=4, kv_heads=2)
ALONE = Sizes(kv_heads=6)
"""A key head for every query head."""
SHARED = Sizes(kv_heads=1)

VARIANTS: dict[str, Case] = {
    "absolute, two spare rows": Case(Absolute(offset=2, scale=1.0)),
    "sinusoidal, sines then cosines": Case(Sinusoidal(layout="concat"), Sizes(dim=23)),
    "rope, interleaved": Case(Rope(interleaved=True)),
    "rope, 6 of 24 channels": Case(Rope(dim=6), SHARED),
    "rope, a quarter of the head, interleaved": Case(Rope(fraction=0.25, interleaved=True)),
    "rope, 2 of 6 heads": Case(Rope(heads=2), ALONE),
    "rope, NTK rescaled by 4": Case(Rope(base_rescale_factor=4.0)),
    "rope, interpolated by 4": Case(Rope(interpolation_factor=4.0)),
    "rope, llama3": Case(Rope(scaling=Llama3(original_max_position_embeddings=40))),
    "rope, yarn": Case(Rope(scaling=Yarn(factor=4.0, original_max_position_embeddings=40))),
    "rope, dynamic NTK, fixed": Case(Rope(scaling=DynamicNtk(original_max_position_embeddings=9))),
    "rope, dynamic NTK, recomputed": Case(Rope(scaling=NTK)),
    "rope, LongRoPE, recomputed": Case(Rope(scaling=LONGROPE)),
    "rope, sections": Case(Rope(sections=(4, 3, 5))),
    "rope, interleaved sections, interleaved pairs": Case(
        Rope(sections=(4, 4, 4), section_order="interleaved", interleaved=True)
    ),
    "rope, video sections of 20 channels": Case(Rope(dim=20, sections=(4, 3, 3), section_order="video"), SHARED),
    "rope, sections, yarn": Case(Rope(sections=(6, 6), scaling=Yarn(factor=4.0, original_max_position_embeddings=40))),
    "rope, sections, dynamic NTK, recomputed": Case(Rope(sections=(2, 5, 5), scaling=NTK)),
    "rope, learned": Case(Rope(learned=True, fraction=0.5)),
    "axial, three axes, interleaved": Case(Axial(axes=3, interleaved=True), SHARED),
    "axial, pixel, learned": Case(Axial(freqs="pixel", learned=True, dim=16)),
    "mixed, three axes": Case(Mixed(axes=3, interleaved=True), SHARED),
    "xpos, interleaved, base 64": Case(XPos(interleaved=True, scale_base=64.0)),
    "polar, uniform phases": Case(Polar(uniform_init=True), SHARED),
    "alibi, 4 heads": Case("alibi", EVEN),
    "alibi, learned": Case(Alibi(learned=True)),
    "alibi, 4 of 6 heads": Case(Alibi(heads=4), ALONE),
    "alibi, own slopes": Case(Alibi(slopes=(0.5, 0.25, 0.125))),
    "alibi, rounded and scaled": Case(Alibi(rounding="bfloat16", scale=0.25)),
    "alibi, rounded, asymmetric, 4 of 6 heads": Case(Alibi(rounding="bfloat16", variant="asymmetric", heads=4), ALONE),
    "alibi, symmetric": Case(Alibi(variant="symmetric")),
    "alibi, asymmetric, learned": Case(Alibi(variant="asymmetric", learned=True)),
    "t5, 8 buckets to 20, scaled": Case(T5(num_buckets=8, max_distance=20, scale=4.0)),
    "deberta, 8 buckets to 20, normed": Case(Deberta(num_buckets=8, max_distance=20, norm_eps=1e-3), SHARED),
    "deberta, a row for each of 12 distances, c2p": Case(
        Deberta(num_buckets=None, max_distance=12, terms="c2p"), ALONE
    ),
    "dynamic, log distance, norm": Case(Dynamic(log_distance=True, norm=True, depth=1, dim=7)),
    "cope, 4 positions": Case(Cope(max_pos=4), SHARED),
    "rope + temperature": Case(["rope", Temperature(floor_scale=0.7)]),
    "forgetting, gates half open": Case(Forgetting(bias_init=0.0)),
}


SHORT: dict[str, Case] = {
    "temperature": Case(Temperature(floor_scale=0.7)),
    "log_n": Case(LogN(trained=4)),
}
"""Schemes whose defaults do nothing in texts as short as the suite's."""


def cases() -> dict[str, Case]:
    """By name. A scheme is here as soon as it is registered."""
    found = {kind: SHORT.get(kind, Case(kind)) for kind in sorted(REGISTRY) if kind != "custom"}
    found |= {" + ".join(map(str, chain)): Case(chain) for chain in CHAINS}
    return found | VARIANTS
