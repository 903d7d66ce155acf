"""The schemes that x_positional tests itself: every registered one, useful chains, and variants of the configs."""

from dataclasses import dataclass

from x_positional.schemes.absolute import Absolute, Sinusoidal
from x_positional.schemes.alibi import Alibi
from x_positional.schemes.cope import Cope
from x_positional.schemes.deberta import Deberta
from x_positional.schemes.dynamic_bias import Dynamic
from x_positional.schemes.fire import Fire
from x_positional.schemes.forgetting import Forgetting
from x_positional.schemes.gated_t5 import GatedT5
from x_positional.schemes.kerple import Kerple
from x_positional.schemes.registry import REGISTRY
from x_positional.schemes.relative_logits import RelativeLogits
from x_positional.schemes.rotary.axial import Axial
from x_positional.schemes.rotary.mixed import Mixed
from x_positional.schemes.rotary.polar import Polar
from x_positional.schemes.rotary.rope import Rope, XPos
from x_positional.schemes.rotary.scaling.length import DynamicNtk, LongRope
from x_positional.schemes.rotary.scaling.parts import Llama3, Yarn
from x_positional.schemes.shaw import Shaw
from x_positional.schemes.t5 import T5
from x_positional.schemes.temperature import LogN, Temperature
from x_positional.testing.subject import Scheme, Sizes


@dataclass(frozen=True)
class SchemeCase:
    """A scheme or several combined, and the sizes to test them in."""

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
    ["relative_logits", "gated_t5", "forgetting"],
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
"""The trained lengths are such that the texts of the suite lie on both sides."""
EVEN = Sizes(heads=4, kv_heads=2)
UNGROUPED = Sizes(kv_heads=6)
"""One key head for every query head."""
SHARED = Sizes(kv_heads=1)
"""One key head for all query heads."""

VARIANTS: dict[str, SchemeCase] = {
    "absolute, two spare rows": SchemeCase(Absolute(offset=2, scale=1.0)),
    "sinusoidal, sines then cosines": SchemeCase(Sinusoidal(layout="concat"), Sizes(dim=23)),
    "rope, interleaved": SchemeCase(Rope(interleaved=True)),
    "rope, 6 of 24 channels": SchemeCase(Rope(dim=6), SHARED),
    "rope, a quarter of the head, interleaved": SchemeCase(Rope(fraction=0.25, interleaved=True)),
    "rope, 2 of 6 heads": SchemeCase(Rope(heads=2), UNGROUPED),
    "rope, NTK rescaled by 4": SchemeCase(Rope(base_rescale_factor=4.0)),
    "rope, interpolated by 4": SchemeCase(Rope(interpolation_factor=4.0)),
    "rope, llama3": SchemeCase(Rope(scaling=Llama3(original_max_position_embeddings=40))),
    "rope, yarn": SchemeCase(Rope(scaling=Yarn(factor=4.0, original_max_position_embeddings=40))),
    "rope, dynamic NTK, fixed": SchemeCase(Rope(scaling=DynamicNtk(original_max_position_embeddings=9))),
    "rope, dynamic NTK, recomputed": SchemeCase(Rope(scaling=NTK)),
    "rope, LongRoPE, recomputed": SchemeCase(Rope(scaling=LONGROPE)),
    "rope, sections": SchemeCase(Rope(sections=(4, 3, 5))),
    "rope, interleaved sections, interleaved pairs": SchemeCase(
        Rope(sections=(4, 4, 4), section_order="interleaved", interleaved=True)
    ),
    "rope, video sections of 20 channels": SchemeCase(Rope(dim=20, sections=(4, 3, 3), section_order="video"), SHARED),
    "rope, sections, yarn": SchemeCase(
        Rope(sections=(6, 6), scaling=Yarn(factor=4.0, original_max_position_embeddings=40))
    ),
    "rope, sections, dynamic NTK, recomputed": SchemeCase(Rope(sections=(2, 5, 5), scaling=NTK)),
    "rope, learned": SchemeCase(Rope(learned=True, fraction=0.5)),
    "axial, three axes, interleaved": SchemeCase(Axial(axes=3, interleaved=True), SHARED),
    "axial, pixel, learned": SchemeCase(Axial(freqs="pixel", learned=True, dim=16)),
    "mixed, three axes": SchemeCase(Mixed(axes=3, interleaved=True), SHARED),
    "xpos, interleaved, base 64": SchemeCase(XPos(interleaved=True, scale_base=64.0)),
    "polar, uniform phases": SchemeCase(Polar(uniform_init=True), SHARED),
    "alibi, 4 heads": SchemeCase("alibi", EVEN),
    "alibi, learned": SchemeCase(Alibi(learned=True)),
    "alibi, 4 of 6 heads": SchemeCase(Alibi(heads=4), UNGROUPED),
    "alibi, own slopes": SchemeCase(Alibi(slopes=(0.5, 0.25, 0.125))),
    "alibi, rounded and scaled": SchemeCase(Alibi(rounding="bfloat16", scale=0.25)),
    "alibi, rounded, asymmetric, 4 of 6 heads": SchemeCase(
        Alibi(rounding="bfloat16", variant="asymmetric", heads=4), UNGROUPED
    ),
    "alibi, symmetric": SchemeCase(Alibi(variant="symmetric")),
    "alibi, asymmetric, learned": SchemeCase(Alibi(variant="asymmetric", learned=True)),
    "t5, 8 buckets to 20, scaled": SchemeCase(T5(num_buckets=8, max_distance=20, scale=4.0)),
    "t5, a table for each layer": SchemeCase(T5(num_buckets=8, max_distance=20, per_layer=True)),
    "deberta, 8 buckets to 20, normed": SchemeCase(Deberta(num_buckets=8, max_distance=20, norm_eps=1e-3), SHARED),
    "deberta, a row for each of 12 distances, c2p": SchemeCase(
        Deberta(num_buckets=None, max_distance=12, terms="c2p"), UNGROUPED
    ),
    "dynamic, log distance, norm": SchemeCase(Dynamic(log_distance=True, norm=True, depth=1, dim=7)),
    "cope, 4 positions": SchemeCase(Cope(max_pos=4), SHARED),
    "kerple, power": SchemeCase(Kerple(kernel="power"), UNGROUPED),
    "fire, 5 units, fractions from 6 on": SchemeCase(Fire(width=5, scale=0.7, threshold=6.0)),
    "shaw, 3 distances to a side": SchemeCase(Shaw(max_distance=3), SHARED),
    "rope + ssmax": SchemeCase(["rope", "ssmax"]),
    "rope + temperature": SchemeCase(["rope", Temperature(floor_scale=0.7)]),
    "relative_logits, 6 distances, clipped": SchemeCase(RelativeLogits(width=3, extent=6, clip=0.5), SHARED),
    "relative_logits, 6 distances, scaled": SchemeCase(RelativeLogits(width=3, extent=6, log_floor=4, log_scale=0.2)),
    "gated_t5, 8 buckets to 12": SchemeCase(GatedT5(num_buckets=8, max_distance=12), EVEN),
    "forgetting, gates half open": SchemeCase(Forgetting(bias_init=0.0)),
}


SHORT: dict[str, SchemeCase] = {
    "temperature": SchemeCase(Temperature(floor_scale=0.7)),
    "log_n": SchemeCase(LogN(trained=4)),
}
"""Options for schemes whose defaults have no effect on texts as short as those of the suite."""


def cases() -> dict[str, SchemeCase]:
    """All cases by name. A scheme is included as soon as it is registered."""
    found = {kind: SHORT.get(kind, SchemeCase(kind)) for kind in sorted(REGISTRY) if kind != "custom"}
    found |= {" + ".join(map(str, chain)): SchemeCase(chain) for chain in CHAINS}
    return found | VARIANTS
