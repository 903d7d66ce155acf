"""From a model instance of x-transformers to its form: the class and the keyword arguments it was made with.

Nothing is imported from x-transformers: modules are recognised by the names of their classes and attributes. Arguments
that affect only the initial weights leave no trace in an instance and are not part of the form.
"""

import math
from typing import Any

from torch import nn

from x_positional.errors import ConversionError
from x_positional.pretrained.x_transformers.inspect_parts import plain_norm
from x_positional.pretrained.x_transformers.inspect_stack import NONE, stack_form
from x_positional.pretrained.x_transformers.module_specs import STACKS, XT
from x_positional.pretrained.x_transformers.reader import Attributes, ModuleReader, class_of, without_defaults

Form = dict[str, dict[str, Any]]
"""{class name: keyword arguments}; the values of attn_layers and net are forms themselves."""
TIED = ["encoder.token_emb.emb.weight", "decoder.net.token_emb.emb.weight"]
"""The one pair of parameters that may be shared: tie_token_emb shares it."""


def form_of(model: nn.Module) -> Form:
    """The class name and the keyword arguments of an x-transformers model instance, as `from_x_transformers` takes them.

    Example: {"TransformerWrapper": {"num_tokens": 256, "attn_layers": {"Decoder": {"dim": 512, "depth": 6}}}}. Keywords
    at their default are left out. The form holds no weights: pass `model.state_dict()` beside it.

    Raises:
        ConversionError: for everything in the model that is unsupported, all at once.
    """
    reader = ModuleReader()
    form = _form(reader, model, "")
    _report_shared(reader, model)
    if reader.problems:
        raise ConversionError(f"this {class_of(model)} is unsupported:", reader.problems)
    return form


def _report_shared(reader: ModuleReader, model: nn.Module) -> None:
    """Report parameters used in several places: x_positional would train a copy in each."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for group in names.values():
        if len(group) > 1 and group != TIED:
            reader.unsupported(
                " and ".join(group), "share one parameter; the converted model would have a separate one for each"
            )


def _form(reader: ModuleReader, model: nn.Module, path: str) -> Form:
    name = class_of(model)
    if name in STACKS:
        return stack_form(reader, model, path)
    inspector = INSPECTORS.get(name)
    if inspector is None:
        reader.unsupported(path, f"is a {name}, which is unsupported. Supported: {', '.join(SUPPORTED)}")
        return {}
    attrs = reader.attributes(model, path)
    short = name.removeprefix(XT)
    return {short: without_defaults(inspector(reader, model, attrs, path), short)} if attrs else {}


def _transformer(reader: ModuleReader, model: nn.Module, attrs: Attributes, path: str) -> dict[str, Any]:
    stack = attrs["attn_layers"]
    flags = reader.flags(model, attrs) | {"attn_layers": _form(reader, stack, f"{path}attn_layers.")}
    emb_dim, dim = attrs["emb_dim"], stack.dim
    flags |= {} if emb_dim == dim else {"emb_dim": emb_dim}
    flags["post_emb_norm"] = plain_norm(reader, attrs["post_emb_norm"], f"{path}post_emb_norm", emb_dim)
    flags["emb_dropout"] = reader.dropout(attrs["emb_dropout"], f"{path}emb_dropout")
    if reader.is_instance(attrs["token_emb"], f"{path}token_emb", XT + "TokenEmbedding"):
        inner = reader.attributes(attrs["token_emb"], f"{path}token_emb")
        if inner:
            reader.expect(
                inner["l2norm_embed"] == attrs["l2norm_embed"],
                f"{path}token_emb",
                "does not have the l2norm_embed of the model",
            )
            reader.expect(inner["emb"].max_norm is None, f"{path}token_emb.emb", "has max_norm, which is unsupported")
    projected = class_of(attrs["project_emb"]) == "torch.Linear"
    reader.expect(
        projected == (emb_dim != dim),
        f"{path}project_emb",
        "must be a Linear where emb_dim differs from dim, and only there",
    )
    return flags | _table(reader, attrs, path, stack, emb_dim) | _head(reader, model, attrs, path)


def _head(reader: ModuleReader, model: nn.Module, attrs: Attributes, path: str) -> dict[str, Any]:
    head = attrs["to_logits"]
    if head is None:
        return {"return_only_embed": True}
    if class_of(head) == "torch.Linear":
        return {} if head.out_features == attrs["num_tokens"] else {"logits_dim": head.out_features}
    if class_of(head) == "torch.ModuleList":
        return {"num_output_heads": len(head)}
    if isinstance(head, nn.Module) or "tie_embedding_scale" not in attrs:
        return {"to_logits": class_of(head)}
    scale = attrs["tie_embedding_scale"]
    default = model.attn_layers.dim**-0.5  # type: ignore[union-attr, operator]
    return {"tie_embedding": True, **({} if scale == default else {"tie_embedding_scale": scale})}


def _table(reader: ModuleReader, attrs: Attributes, path: str, stack: Any, dim: int) -> dict[str, Any]:
    """The flags of the absolute position embedding."""
    table, off = attrs["pos_emb"], stack.disable_abs_pos_emb
    name = class_of(table)
    if name == XT + "always":
        return {} if off or not attrs["max_seq_len"] else {"use_abs_pos_emb": False}
    if off:
        reader.unsupported(f"{path}pos_emb", "exists although the layers have disable_abs_pos_emb=True")
    if not reader.is_instance(
        table, f"{path}pos_emb", XT + "AbsolutePositionalEmbedding", XT + "ScaledSinusoidalEmbedding"
    ):
        return {}
    inner = reader.attributes(table, f"{path}pos_emb")
    if name == XT + "ScaledSinusoidalEmbedding":
        return {"scaled_sinu_pos_emb": True}
    unit = attrs.get("l2norm_embed", False)
    if inner:
        reader.expect(inner["l2norm_embed"] == unit, f"{path}pos_emb", "does not have the l2norm_embed of the model")
        reader.expect(
            inner["scale"] == (1.0 if unit else dim**-0.5),
            f"{path}pos_emb",
            f"has scale={inner['scale']}, not the default",
        )
    return {}


def _continuous(reader: ModuleReader, model: nn.Module, attrs: Attributes, path: str) -> dict[str, Any]:
    stack = attrs["attn_layers"]
    flags = reader.flags(model, attrs) | {"attn_layers": _form(reader, stack, f"{path}attn_layers.")}
    flags["post_emb_norm"] = plain_norm(reader, attrs["post_emb_norm"], f"{path}post_emb_norm", stack.dim)
    flags["emb_dropout"] = reader.dropout(attrs["emb_dropout"], f"{path}emb_dropout")
    if attrs["has_memory_tokens"]:
        flags["num_memory_tokens"] = len(attrs["memory_tokens"])
    for name, width in (("project_in", "in"), ("project_out", "out")):
        part = attrs[name]
        if class_of(part) == "torch.Linear" and part.bias is None:
            flags[f"dim_{width}"] = part.in_features if width == "in" else part.out_features
        elif class_of(part) not in NONE:
            flags[name] = class_of(part)
    return flags | _table(reader, attrs, path, stack, stack.dim)


def _vision(reader: ModuleReader, model: nn.Module, attrs: Attributes, path: str) -> dict[str, Any]:
    stack, patch = attrs["attn_layers"], attrs["patch_size"]
    flags = reader.flags(model, attrs) | {"attn_layers": _form(reader, stack, f"{path}attn_layers.")}
    side = math.isqrt(attrs["pos_embedding"].shape[1])
    norms = list(attrs["patch_to_embedding"])
    right = [class_of(part) for part in norms] == [XT + "LayerNorm", "torch.Linear", XT + "LayerNorm"]
    reader.expect(right, f"{path}patch_to_embedding", "is not LayerNorm, Linear, LayerNorm")
    if right:
        pixels = norms[1].in_features
        flags["channels"] = pixels // patch**2
        plain_norm(reader, norms[0], f"{path}patch_to_embedding.0", pixels)
        plain_norm(reader, norms[2], f"{path}patch_to_embedding.2", stack.dim)
    flags["image_size"] = side * patch
    flags["post_emb_norm"] = plain_norm(reader, attrs["post_emb_norm"], f"{path}post_emb_norm", stack.dim)
    flags["emb_dropout"] = reader.dropout(attrs["dropout"], f"{path}dropout")
    flags["num_register_tokens"] = len(attrs["register_tokens"]) if attrs["has_register_tokens"] else 0
    head = attrs["mlp_head"]
    if class_of(head) not in NONE and reader.is_instance(head, f"{path}mlp_head", "torch.Linear"):
        flags["num_classes"] = head.out_features
    return flags


def _xtransformer(reader: ModuleReader, model: nn.Module, attrs: Attributes, path: str) -> dict[str, Any]:
    """The flags of both sides, with the prefixes enc_ and dec_."""
    flags = reader.flags(model, attrs)
    encoder = _form(reader, attrs["encoder"], "encoder.").get("TransformerWrapper", {})
    outer = _form(reader, attrs["decoder"], "decoder.").get("AutoregressiveWrapper", {})
    decoder = dict(outer.get("net", {}).get("TransformerWrapper", {}))
    reader.expect(bool(encoder.pop("return_only_embed", False)), "encoder", "must have return_only_embed=True")
    for prefix, side, kind in (("enc_", encoder, "Encoder"), ("dec_", decoder, "Decoder")):
        layers = dict(side.pop("attn_layers", {}).get(kind, {}))
        dim = layers.pop("dim", None)
        reader.expect(flags.setdefault("dim", dim) == dim, "encoder and decoder", "have different dim")
        if kind == "Decoder":
            reader.expect(bool(layers.pop("cross_attend", False)), "decoder", "must have cross_attend=True")
        flags |= {prefix + name: value for name, value in {**side, **layers}.items()}
    flags |= {name: value for name, value in outer.items() if name != "net"}
    tied = model.encoder.token_emb is model.decoder.net.token_emb  # type: ignore[union-attr]
    return flags | {"tie_token_emb": tied}


def _autoregressive(reader: ModuleReader, model: nn.Module, attrs: Attributes, path: str) -> dict[str, Any]:
    return reader.flags(model, attrs) | {"net": _form(reader, attrs["net"], f"{path}net.")}


INSPECTORS = {
    XT + "TransformerWrapper": _transformer,
    XT + "ContinuousTransformerWrapper": _continuous,
    XT + "ViTransformerWrapper": _vision,
    XT + "XTransformer": _xtransformer,
    XT + "AutoregressiveWrapper": _autoregressive,
}
SUPPORTED = [*(name.removeprefix(XT) for name in INSPECTORS), "Encoder", "Decoder", "CrossAttender"]
