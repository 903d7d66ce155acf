"""The validator's rules about what a block can be made of: mixtures of experts, latent attention, gated feedforwards."""

from collections.abc import Iterator

import torch

from x_positional.config.latent import MLAConfig
from x_positional.config.validate.case import Case
from x_positional.schemes.base import PositionScheme
from x_positional.schemes.rotary.rotation import RotationScheme


def experts_can_be_chosen(case: Case) -> Iterator[str]:
    """A token's experts are different ones, and all of them from the groups that are open to it."""
    moe = case.layers.ff.moe
    if moe is None:
        return
    if moe.top_k > moe.experts:
        yield f"moe.top_k={moe.top_k} of moe.experts={moe.experts} cannot be chosen. Use {moe.experts} or fewer."
    if moe.groups > 1 and moe.experts % moe.groups:
        yield f"moe.experts={moe.experts} cannot be shared out among moe.groups={moe.groups}. Use a multiple of it."
    elif moe.groups > 1 and moe.experts // moe.groups < 2:
        yield (
            f"moe.groups={moe.groups} of one expert each: groups are judged by the sum of their best two. Use "
            f"{moe.experts // 2} or fewer."
        )
    elif moe.groups > 1 and moe.top_groups > moe.groups:
        yield f"moe.top_groups={moe.top_groups} of moe.groups={moe.groups} cannot be open. Use fewer."
    elif moe.groups > 1 and moe.top_k > (open_ := moe.top_groups * (moe.experts // moe.groups)):
        yield (
            f"moe.top_k={moe.top_k} experts are chosen, and moe.top_groups={moe.top_groups} groups have {open_}. Open more "
            "groups, or choose fewer."
        )


def no_setting_of_a_feedforward_is_idle(case: Case) -> Iterator[str]:
    """What changes nothing in a feedforward was meant to change something."""
    ff, moe = case.layers.ff, case.layers.ff.moe
    gated = [f"ff.{name}={getattr(ff, name):g}" for name in ("glu_clamp", "glu_shift") if getattr(ff, name)]
    if gated and not ff.glu:
        yield f"{' and '.join(gated)} for gates and what they gate, and ff.glu is off. Set ff.glu, or leave it out."
    if ff.swish_beta != 1.0 and ff.activation != "silu":
        yield f"ff.swish_beta={ff.swish_beta:g} is for silu, and ff.activation={ff.activation!r}. Leave it out."
    if moe is None:
        return
    if moe.shared_gate and moe.shared is None:
        yield "moe.shared_gate=True, and there is no shared expert behind it. Set moe.shared, its inner width, or leave it out."
    if moe.top_groups > 1 and moe.groups == 1:
        yield f"moe.top_groups={moe.top_groups} chooses groups, and there is one. Set moe.groups, or leave it out."
    if 1 < moe.groups == moe.top_groups:
        yield f"moe.groups={moe.groups} are all open with moe.top_groups={moe.top_groups}. Leave both out, or open fewer."
    if moe.correction and moe.top_k == moe.experts:
        yield f"moe.correction=True moves the choice of experts, and all {moe.experts} are chosen. Leave it out."


def no_setting_of_a_latent_is_idle(case: Case) -> Iterator[str]:
    """Keys of latent attention are made for every head, and its latents have norms of their own."""
    layers, attn, mla = case.layers, case.layers.attn, case.layers.attn.mla
    if mla is None:
        return
    if layers.kind == "cross_attender":
        yield "attn.mla is for self-attention, and a cross_attender has none. Leave it out."
    if layers.cross_attend:
        return
    said = {"kv_heads": layers.kv_heads, "attn.qk_norm": attn.qk_norm, "attn.clip": attn.clip}
    idle = [
        f"{name}={value!r}"
        for name, value in said.items()
        if value not in (None, layers.heads if name == "kv_heads" else None)
    ]
    if idle:
        yield (
            f"{', '.join(idle)} beside attn.mla, whose latents have norms of their own and make a key for every head: only "
            "cross-attention would read it. Leave it out."
        )


def latents_leave_room_for_values(case: Case) -> Iterator[str]:
    """The shared channels are some of a head's."""
    mla, head_dim = case.layers.attn.mla, case.layers.head_dim
    if mla is not None and mla.rope_dim >= head_dim + (mla.value_dim is not None):
        yield (
            f"attn.mla.rope_dim={mla.rope_dim} of head_dim={head_dim} channels are shared, which leaves none to the latent. Use "
            "fewer, or a larger head_dim."
        )


def a_shared_key_turns_for_all_heads(case: Case) -> Iterator[str]:
    """Latent attention has one key of rope_dim channels for all heads, so only those turn, and for every head."""
    mla = case.layers.attn.mla
    if mla is None or case.layers.kind == "cross_attender":
        return
    for name, scheme in case.named:
        some = isinstance(scheme, RotationScheme) and scheme.heads not in (None, case.layers.heads)
        if some or not _turns_within(scheme, mla, case.layers.head_dim):
            yield (
                f"position={name} beside attn.mla: only the rope_dim={mla.rope_dim} channels that heads share can turn, and only "
                f"for all heads. Use position={{'kind': 'rope', 'dim': {mla.rope_dim}}}, or a scheme that turns nothing, such as "
                "alibi."
            )


def _turns_within(scheme: PositionScheme, mla: MLAConfig, head_dim: int) -> bool:
    """Whether the shared channels are enough for it, as far as that can be told without values."""
    if not scheme.overrides("rotate_k"):
        return True
    shared, whole = (_turned(scheme, width) for width in (mla.rope_dim, head_dim))
    return shared == mla.rope_dim or (shared is None and whole is None)


def _turned(scheme: PositionScheme, width: int) -> int | None:
    """How wide a key is after rotation; None where it does not run."""
    position = torch.zeros(1, 1, dtype=torch.long, device="meta")
    try:
        key = scheme.rotate_k(torch.empty(1, 1, 1, width, device="meta"), scheme.length_tables(position, position + 1))
    except (
        Exception
    ):  # too narrow for it, or a scheme of the user's own that reads values, of which there are none here
        return None
    return key.shape[-1]


def a_router_can_learn(case: Case) -> Iterator[str]:
    """A weight that is divided by itself is always one, and has no gradient."""
    moe = case.layers.ff.moe
    if moe is not None and moe.top_k == 1 and moe.renorm:
        yield (
            "moe.top_k=1 with moe.renorm=True: the weight of the one expert is always 1, so the router learns nothing. Use "
            "renorm=False."
        )


SETTINGS = (
    experts_can_be_chosen,
    no_setting_of_a_feedforward_is_idle,
    no_setting_of_a_latent_is_idle,
    latents_leave_room_for_values,
)
"""Errors that need no scheme."""

COMBINATIONS = (a_shared_key_turns_for_all_heads,)
"""Errors that need the schemes."""

WARNINGS = (a_router_can_learn,)
