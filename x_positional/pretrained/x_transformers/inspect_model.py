"""From a living model of x-transformers to its form: the class and the flags that it was made with, as far as the model still
knows them. Nothing is imported from x-transformers: modules are read by the names of their classes and attributes.
"""

import math
from typing import Any

from torch import nn

from x_positional.errors import ConversionError
from x_positional.pretrained.x_transformers.inspect_parts import plain_norm
from x_positional.pretrained.x_transformers.inspect_stack import NONE, stack_form
from x_positional.pretrained.x_transformers.module_specs import STACKS, XT
from x_positional.pretrained.x_transformers.reader import Members, Reader, class_of, without_defaults

Form = dict[str, dict[str, Any]]
"""{class: its keywords}; the keywords attn_layers and net hold forms."""
TIED = ["encoder.token_emb.emb.weight", "decoder.net.token_emb.emb.weight"]
"""What tie_token_emb makes one."""


def form_of(model: nn.Module) -> Form:
    """{"TransformerWrapper": {"num_tokens": ..., "attn_layers": {"Decoder": {...}}}}: every keyword that is not at its default.

    Raises ConversionError with everything about the model that is not understood.
    """
    read = Reader()
    form = _form(read, model, "")
    _shared(read, model)
    if read.problems:
        raise ConversionError(f"this {class_of(model)} is not understood:", read.problems)
    return form


def _shared(read: Reader, model: nn.Module) -> None:
    """Parameters that stand in two places are one parameter, and would be two here."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for group in names.values():
        if len(group) > 1 and group != TIED:
            read.strange(" and ".join(group), "are one parameter, and would be several here")


def _form(read: Reader, model: nn.Module, path: str) -> Form:
    name = class_of(model)
    if name in STACKS:
        return stack_form(read, model, path)
    maker = MAKERS.get(name)
    if maker is None:
        read.strange(path, f"is a {name}, which is not understood; there are: {', '.join(MAKERS)}")
        return {}
    held = read.members(model, path)
    short = name.removeprefix(XT)
    return {short: without_defaults(maker(read, model, held, path), short)} if held else {}


def _transformer(read: Reader, model: nn.Module, held: Members, path: str) -> dict[str, Any]:
    stack = held["attn_layers"]
    flags = read.said(model, held) | {"attn_layers": _form(read, stack, f"{path}attn_layers.")}
    emb_dim, dim = held["emb_dim"], stack.dim
    flags |= {} if emb_dim == dim else {"emb_dim": emb_dim}
    flags["post_emb_norm"] = plain_norm(read, held["post_emb_norm"], f"{path}post_emb_norm", emb_dim)
    flags["emb_dropout"] = read.dropout(held["emb_dropout"], f"{path}emb_dropout")
    if read.is_a(held["token_emb"], f"{path}token_emb", XT + "TokenEmbedding"):
        inner = read.members(held["token_emb"], f"{path}token_emb")
        if inner:
            read.expect(inner["l2norm_embed"] == held["l2norm_embed"], f"{path}token_emb", "has another l2norm_embed")
            read.expect(inner["emb"].max_norm is None, f"{path}token_emb.emb", "has max_norm")
    projected = class_of(held["project_emb"]) == "torch.Linear"
    read.expect(projected == (emb_dim != dim), f"{path}project_emb", "does not fit emb_dim")
    return flags | _table(read, held, path, stack, emb_dim) | _head(read, model, held, path)


def _head(read: Reader, model: nn.Module, held: Members, path: str) -> dict[str, Any]:
    head = held["to_logits"]
    if head is None:
        return {"return_only_embed": True}
    if class_of(head) == "torch.Linear":
        return {} if head.out_features == held["num_tokens"] else {"logits_dim": head.out_features}
    if class_of(head) == "torch.ModuleList":
        return {"num_output_heads": len(head)}
    if isinstance(head, nn.Module) or "tie_embedding_scale" not in held:
        return {"to_logits": class_of(head)}
    scale = held["tie_embedding_scale"]
    default = model.attn_layers.dim**-0.5  # type: ignore[union-attr, operator]
    return {"tie_embedding": True, **({} if scale == default else {"tie_embedding_scale": scale})}


def _table(read: Reader, held: Members, path: str, stack: Any, dim: int) -> dict[str, Any]:
    """The absolute embedding beside or without the layers' own positions."""
    table, off = held["pos_emb"], stack.disable_abs_pos_emb
    name = class_of(table)
    if name == XT + "always":
        return {} if off or not held["max_seq_len"] else {"use_abs_pos_emb": False}
    if off:
        read.strange(f"{path}pos_emb", "is there, and the layers say disable_abs_pos_emb")
    if not read.is_a(table, f"{path}pos_emb", XT + "AbsolutePositionalEmbedding", XT + "ScaledSinusoidalEmbedding"):
        return {}
    inner = read.members(table, f"{path}pos_emb")
    if name == XT + "ScaledSinusoidalEmbedding":
        return {"scaled_sinu_pos_emb": True}
    unit = held.get("l2norm_embed", False)
    if inner:
        read.expect(inner["l2norm_embed"] == unit, f"{path}pos_emb", "has another l2norm_embed")
        read.expect(inner["scale"] == (1.0 if unit else dim**-0.5), f"{path}pos_emb", f"has scale={inner['scale']}")
    return {}


def _continuous(read: Reader, model: nn.Module, held: Members, path: str) -> dict[str, Any]:
    stack = held["attn_layers"]
    flags = read.said(model, held) | {"attn_layers": _form(read, stack, f"{path}attn_layers.")}
    flags["post_emb_norm"] = plain_norm(read, held["post_emb_norm"], f"{path}post_emb_norm", stack.dim)
    flags["emb_dropout"] = read.dropout(held["emb_dropout"], f"{path}emb_dropout")
    if held["has_memory_tokens"]:
        flags["num_memory_tokens"] = len(held["memory_tokens"])
    for name, width in (("project_in", "in"), ("project_out", "out")):
        part = held[name]
        if class_of(part) == "torch.Linear" and part.bias is None:
            flags[f"dim_{width}"] = part.in_features if width == "in" else part.out_features
        elif class_of(part) not in NONE:
            flags[name] = class_of(part)
    return flags | _table(read, held, path, stack, stack.dim)


def _vision(read: Reader, model: nn.Module, held: Members, path: str) -> dict[str, Any]:
    stack, patch = held["attn_layers"], held["patch_size"]
    flags = read.said(model, held) | {"attn_layers": _form(read, stack, f"{path}attn_layers.")}
    side = math.isqrt(held["pos_embedding"].shape[1])
    norms = list(held["patch_to_embedding"])
    right = [class_of(part) for part in norms] == [XT + "LayerNorm", "torch.Linear", XT + "LayerNorm"]
    read.expect(right, f"{path}patch_to_embedding", "is not norm, linear, norm")
    if right:
        pixels = norms[1].in_features
        flags["channels"] = pixels // patch**2
        plain_norm(read, norms[0], f"{path}patch_to_embedding.0", pixels)
        plain_norm(read, norms[2], f"{path}patch_to_embedding.2", stack.dim)
    flags["image_size"] = side * patch
    flags["post_emb_norm"] = plain_norm(read, held["post_emb_norm"], f"{path}post_emb_norm", stack.dim)
    flags["emb_dropout"] = read.dropout(held["dropout"], f"{path}dropout")
    flags["num_register_tokens"] = len(held["register_tokens"]) if held["has_register_tokens"] else 0
    head = held["mlp_head"]
    if class_of(head) not in NONE and read.is_a(head, f"{path}mlp_head", "torch.Linear"):
        flags["num_classes"] = head.out_features
    return flags


def _xtransformer(read: Reader, model: nn.Module, held: Members, path: str) -> dict[str, Any]:
    """Both sides under their prefixes, as they were given."""
    flags = read.said(model, held)
    encoder = _form(read, held["encoder"], "encoder.").get("TransformerWrapper", {})
    outer = _form(read, held["decoder"], "decoder.").get("AutoregressiveWrapper", {})
    decoder = dict(outer.get("net", {}).get("TransformerWrapper", {}))
    read.expect(bool(encoder.pop("return_only_embed", False)), "encoder", "has a head")
    for prefix, side, kind in (("enc_", encoder, "Encoder"), ("dec_", decoder, "Decoder")):
        layers = dict(side.pop("attn_layers", {}).get(kind, {}))
        dim = layers.pop("dim", None)
        read.expect(flags.setdefault("dim", dim) == dim, prefix, "has another dim than the other side")
        if kind == "Decoder":
            read.expect(bool(layers.pop("cross_attend", False)), "decoder", "does not attend to the encoder")
        flags |= {prefix + name: value for name, value in {**side, **layers}.items()}
    flags |= {name: value for name, value in outer.items() if name != "net"}
    tied = model.encoder.token_emb is model.decoder.net.token_emb  # type: ignore[union-attr]
    return flags | {"tie_token_emb": tied}


def _autoregressive(read: Reader, model: nn.Module, held: Members, path: str) -> dict[str, Any]:
    return read.said(model, held) | {"net": _form(read, held["net"], f"{path}net.")}


MAKERS = {
    XT + "TransformerWrapper": _transformer,
    XT + "ContinuousTransformerWrapper": _continuous,
    XT + "ViTransformerWrapper": _vision,
    XT + "XTransformer": _xtransformer,
    XT + "AutoregressiveWrapper": _autoregressive,
}
