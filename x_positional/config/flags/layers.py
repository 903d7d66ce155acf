"""The flags of Encoder, Decoder and CrossAttender -> the fields of `LayersConfig`, all but the position."""

from collections.abc import Mapping
from typing import Any

from x_positional.config.flags.position import position_of
from x_positional.config.flags.reader import Fields, FlagReader, same
from x_positional.errors import shown

LAYERS = "AttentionLayers"
CLASSES = {"encoder": "Encoder", "decoder": "Decoder", "cross_attender": "CrossAttender"}
HEAD_DIM = 64

EXACT_EPS = 1e-12
"""x-transformers' RMS norms have no eps. This one is too small to matter and keeps zero finite."""

NORM_KINDS = {"use_scalenorm": "scale", "use_rmsnorm": "rms", "use_simple_rmsnorm": "simple_rms"}
ACTIVATIONS = {"ff_swish": "silu", "ff_relu_squared": "relu2"}
QK_NORMS = {"attn_qk_norm": "l2", "attn_qk_rmsnorm": "rms_per_head"}


def layer_reader(
    kind: Any,
    flags: Mapping[str, Any],
    problems: list[str],
    wrapper: str | None = None,
    *,
    prefix: str = "",
    missing: tuple[str, ...] = (),
) -> FlagReader:
    """The checked flags of the layers, and those of their wrapper where both are in one dict."""
    places = [LAYERS] if wrapper is None else [LAYERS, wrapper]
    table = FlagReader({}, places, []).table
    defaults = {
        name: flags.get(name.removeprefix("cross_"), flag.default)  # cross-attention follows `attn_*`
        for name, flag in table.items()
        if name.startswith("cross_attn_")
    }
    defaults |= {"causal": same(kind, "decoder"), "only_cross": same(kind, "cross_attender")}
    read = FlagReader(flags, places, problems, prefix=prefix, defaults=defaults)
    read.check(("dim", "depth", *missing))
    if not isinstance(kind, str) or kind not in CLASSES:
        read.problem(f"kind={shown(kind)} is unknown; there are: {', '.join(map(repr, CLASSES))}.")
    return read


def layer_fields(read: FlagReader, kind: Any) -> dict[str, Any]:
    """The fields that checked flags set; problems are added to the reader's."""
    kind = kind if isinstance(kind, str) else shown(kind)
    fields = Fields(read)
    fields.set("kind", kind, "kind")
    _cross_attend(fields, read, kind)
    _own_groups(fields, read)
    fields.set_copied(LAYERS)
    _norms(fields, read)
    _norm_place(fields, read)
    _attention(fields, read, kind)
    _feedforward(fields, read)
    head_dim = read.whole("head_dim" if read.given.get("head_dim") is not None else "attn_dim_head")
    position = position_of(read, kind, max(1, head_dim or HEAD_DIM))
    return fields.tree if position is None else {**fields.tree, "position": position}


def _cross_attend(fields: Fields, read: FlagReader, kind: Any) -> None:
    if kind == "cross_attender" and read.given.get("cross_attend") is False:
        read.problem(
            f"{read.shown('cross_attend')} contradicts CrossAttender, which consists of cross-attention. Leave it out."
        )
    elif "cross_attend" in read.given:
        fields.set("cross_attend", read.value("cross_attend"), "cross_attend")


def _own_groups(fields: Fields, read: FlagReader) -> None:
    for name in ("norm", "attn", "ff"):
        group = read.given.get(name)
        if name == "norm" and isinstance(group, str):
            group = {"kind": group}
        if isinstance(group, Mapping):
            for key, value in group.items():
                fields.set(f"{name}.{key}", value, name)
        elif group is not None:
            fields.set(name, group, name)


def _choice(read: FlagReader, choices: Mapping[str, str]) -> str | None:
    """The one flag that is on, None where none is; two are a problem."""
    on = [name for name in choices if read.value(name) is True]
    if len(on) > 1:
        names = " and ".join(read.prefix + name for name in on)
        read.problem(f"{names} exclude each other. Keep one of them.")
    return on[0] if on else None


def _needs(read: FlagReader, name: str, switch: str) -> None:
    if read.asked(name) and read.value(switch) is not True:
        read.problem(f"{read.shown(name)} has no effect without {read.prefix}{switch}=True. Give both, or neither.")


def _norms(fields: Fields, read: FlagReader) -> None:
    name = _choice(read, NORM_KINDS)
    if name is None:
        return
    fields.set("norm.kind", NORM_KINDS[name], name)
    if "norm.eps" not in fields.by:
        fields.set("norm.eps", EXACT_EPS, name)


def _norm_place(fields: Fields, read: FlagReader) -> None:
    post, sandwich = read.value("pre_norm") is False, read.value("sandwich_norm") is True
    if post and sandwich:
        shown = " and ".join(map(read.shown, ("pre_norm", "sandwich_norm")))
        read.problem(f"{shown} exclude each other. Keep one of them.")
    elif sandwich:
        fields.set("norm_place", "sandwich", "sandwich_norm")
    elif post:
        fields.set("norm_place", "post", "pre_norm")
        if "final_norm" not in read.given:
            fields.set("final_norm", False, "pre_norm")
    if not post and read.value("pre_norm_has_final_norm") is False:
        fields.set("final_norm", False, "pre_norm_has_final_norm")


def _attention(fields: Fields, read: FlagReader, kind: Any) -> None:
    if read.value("attn_one_kv_head") is True:
        fields.set("kv_heads", 1, "attn_one_kv_head")
    past = read.whole("attn_max_attend_past")
    if past is not None and kind == "decoder":
        fields.set("window", past + 1, "attn_max_attend_past")
    elif past is not None:
        read.problem(
            f"{read.shown('attn_max_attend_past')} is refused outside a Decoder: it bounds the past and not the "
            f"future. Use {read.prefix}window={past + 1}, which bounds both sides."
        )
    name = _choice(read, QK_NORMS)
    if name is not None:
        fields.set("attn.qk_norm", QK_NORMS[name], name)
    _needs(read, "attn_qk_norm_scale", "attn_qk_norm")
    if name == "attn_qk_norm":
        fields.set("attn.qk_norm_scale", read.value("attn_qk_norm_scale"), "attn_qk_norm_scale")
    _needs(read, "attn_logit_softclamp_value", "attn_softclamp_logits")
    if read.value("attn_softclamp_logits") is True:
        fields.set("attn.softcap", read.value("attn_logit_softclamp_value"), "attn_softclamp_logits")


def _feedforward(fields: Fields, read: FlagReader) -> None:
    name = _choice(read, ACTIVATIONS)
    if name is not None:
        fields.set("ff.activation", ACTIVATIONS[name], name)
    if read.value("ff_no_bias") is True:
        fields.set("ff.bias", False, "ff_no_bias")
        if read.value("ff_glu") is True:  # the gated projection of x-transformers always has a bias
            fields.set("ff.gate_bias", True, "ff_no_bias")
