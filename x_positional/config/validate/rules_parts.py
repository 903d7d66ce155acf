"""Rules of the parts of one layer: mixtures of experts, latent attention, and what schemes need of the projections."""

from collections.abc import Iterator

from x_positional.config.layers import MLAConfig
from x_positional.config.validate.case import Case
from x_positional.config.validate.probe import rotated_width
from x_positional.config.validate.rule import rule
from x_positional.modules.feedforward import LEARNED
from x_positional.schemes.base import PositionScheme
from x_positional.schemes.rotary.rotation import RotationScheme


@rule()
def experts_can_be_chosen(case: Case) -> Iterator[str]:
    """A token's experts are distinct, and all from the groups that are selected for it."""
    moe = case.layers.ff.moe
    if moe is None:
        return
    if moe.top_k > moe.experts:
        yield f"moe.top_k={moe.top_k} exceeds moe.experts={moe.experts}. Use {moe.experts} or fewer."
    if moe.groups > 1 and moe.experts % moe.groups:
        yield f"moe.experts={moe.experts} is not divisible by moe.groups={moe.groups}. Use a multiple of it."
    elif moe.groups > 1 and moe.experts // moe.groups < moe.group_best:
        yield (
            f"moe.groups={moe.groups} leaves {moe.experts // moe.groups} experts per group, and groups are ranked by their "
            f"{moe.group_best} best scores. Lower moe.groups or moe.group_best."
        )
    elif moe.groups > 1 and moe.top_groups > moe.groups:
        yield f"moe.top_groups={moe.top_groups} exceeds moe.groups={moe.groups}. Use fewer."
    elif moe.groups > 1 and moe.top_k > (reachable := moe.top_groups * (moe.experts // moe.groups)):
        yield (
            f"moe.top_k={moe.top_k} exceeds the {reachable} experts of moe.top_groups={moe.top_groups} groups. Raise "
            "top_groups, or lower top_k."
        )


@rule()
def a_feedforward_has_channels(case: Case) -> Iterator[str]:
    """The inner width is at least 1 after rounding down."""
    dim, ff = case.layers.dim, case.layers.ff
    if ff.dim is None and int(dim * ff.mult) < 1:
        yield (
            f"ff.mult={ff.mult:g} of dim={dim} is an inner width of {dim * ff.mult:g}, which rounds down to 0. Use at least "
            "ff.dim=1, or a larger ff.mult."
        )


@rule()
def learned_activations_stand_alone(case: Case) -> Iterator[str]:
    """An activation with parameters of its own is between the two projections of one plain feedforward."""
    ff = case.layers.ff
    if ff.activation in LEARNED and (ff.glu or ff.moe is not None):
        with_it = "ff.glu=True" if ff.glu else "ff.moe"
        yield (
            f"ff.activation={ff.activation!r} has learned parameters, and {with_it} cannot hold them. Use a plain feedforward, or "
            "another activation."
        )


@rule()
def latents_leave_room_for_values(case: Case) -> Iterator[str]:
    """The shared channels are fewer than a head has."""
    mla, head_dim = case.layers.attn.mla, case.layers.head_dim
    if mla is not None and mla.rope_dim >= head_dim + (mla.value_dim is not None):
        yield (
            f"attn.mla.rope_dim={mla.rope_dim} leaves no channels of head_dim={head_dim} to the latent. Lower it, or raise "
            "head_dim."
        )


@rule(needs="schemes")
def a_shared_key_is_rotated_for_all_heads(case: Case) -> Iterator[str]:
    """Latent attention shares one key of rope_dim channels, so only those can be rotated, and for every head."""
    mla = case.layers.attn.mla
    if mla is None or case.layers.kind == "cross_attender":
        return
    for name, scheme in case.named:
        some = isinstance(scheme, RotationScheme) and scheme.heads not in (None, case.layers.heads)
        if some or not _rotates_within(scheme, mla, case.layers.head_dim):
            yield (
                f"position={name} beside attn.mla: only the rope_dim={mla.rope_dim} channels that heads share can be rotated, "
                f"and only for all heads. Use position={{'kind': 'rope', 'dim': {mla.rope_dim}}}, or a scheme without "
                "rotation, such as alibi."
            )


def _rotates_within(scheme: PositionScheme, mla: MLAConfig, head_dim: int) -> bool:
    """Whether it rotates only the shared channels, as far as that shows without values."""
    if not scheme.overrides("rotate_k"):
        return True
    shared, whole = (rotated_width(scheme, "k", 1, width) for width in (mla.rope_dim, head_dim))
    return shared == mla.rope_dim or (shared is None and whole is None)


@rule("warning")
def a_router_can_learn(case: Case) -> Iterator[str]:
    """A weight divided by itself is always 1 and has no gradient."""
    moe = case.layers.ff.moe
    if moe is not None and moe.top_k == 1 and moe.renorm:
        yield (
            "moe.top_k=1 with moe.renorm=True: the weight of the only expert is always 1, so the router gets no gradient. Use "
            "renorm=False."
        )


@rule(needs="schemes")
def projections_of_positions_are_read(case: Case) -> Iterator[str]:
    """Position projections need a scheme that reads them, and such a scheme needs plain self-attention."""
    attn, reading = case.layers.attn, case.names(lambda s: s.capabilities().reads_layer)
    if attn.position_projections and not reading:
        yield (
            "attn.position_projections=True is ignored: no scheme reads queries and keys of positions. Use "
            "position='deberta', or leave it out."
        )
    if attn.mla is not None and reading:
        yield (
            f"position={', '.join(reading)} reads the projections of queries and keys, and attn.mla projects keys from a latent. "
            "Leave attn.mla out, or use rope."
        )
    if case.layers.kind == "cross_attender" and reading:
        yield (
            f"position={', '.join(reading)} reads the keys of self-attention, and a cross_attender has none. Leave it out, or use "
            "rope, alibi or dynamic."
        )
