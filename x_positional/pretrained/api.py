"""`from_pretrained`: a folder, a training run, a GGUF file or a model on the Hugging Face Hub to a model of x_positional."""

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from x_positional.config.flags.missing import LOADING
from x_positional.errors import ArgumentError, FlagError, PretrainedError, did_you_mean
from x_positional.models.quantize import Quantization, QuantizeLoaded, check_quantization
from x_positional.models.quantize import quantize as quantize_model
from x_positional.pretrained.adapters import add_adapters, load_adapters, merge_adapters
from x_positional.pretrained.config_json.codecs import Fields
from x_positional.pretrained.config_json.encoder_decoder import encoder_only
from x_positional.pretrained.config_json.keys import ignored, overridden, refused_keys
from x_positional.pretrained.families import FAMILIES, NESTED, TOWERS
from x_positional.pretrained.families.refused import REFUSED
from x_positional.pretrained.family import Family
from x_positional.pretrained.folder import CONFIG
from x_positional.pretrained.integrity import ORIGIN
from x_positional.pretrained.limits import Limits, at_most, failures
from x_positional.pretrained.model_kinds import MODEL_KINDS, build_on_meta, layers_of
from x_positional.pretrained.native import NATIVE, load_native, read_native_config
from x_positional.pretrained.nested import chosen_tower, contradictions, inner_model
from x_positional.pretrained.source import INIT, LORA, Source, open_source
from x_positional.pretrained.tensors.files import Tensors
from x_positional.pretrained.tensors.layouts import Same
from x_positional.pretrained.tensors.load import TensorNames, fill, is_mesh

if TYPE_CHECKING:  # torch may be built without distributed, and importing it takes time
    from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True)
class Origin:
    """Where a model was loaded from."""

    family: Family
    config: Mapping[str, Any]
    """Its `config.json`."""


def from_pretrained(
    source: str | Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    backend: str = "auto",
    ignore: Collection[str] = (),
    quantize: Quantization | None = None,
    device_mesh: "DeviceMesh | None" = None,
    **overrides: Any,
) -> Any:
    """Load a published model, or one of your own runs.

    Decoders and encoders are `TransformerWrapper`s: they take `mask=`, `positions=` and `cache=`, and decoders generate as
    usual. An encoder without a head returns hidden states. Encoder-decoders are `XTransformer`s: `logits(src, tgt, mask)`.
    Vision models are `ViTransformerWrapper`s, which take pixel_values [B C H W]; without a head, `encode` returns hidden
    states. Tensors are read one at a time, without a second copy.

    Args:
        source: A folder with `config.json` and safetensors (one file or shards), a model on the Hugging Face Hub, a GGUF
            file, or a folder of `x-positional train`: a run, of which the newest checkpoint is read, or one of its checkpoints.
        dtype: None keeps the stored dtype (float32 for GGUF, which is dequantised).
        device: None is the CPU.
        backend: As in `Decoder`, for published models; x_positional's own format stores it.
        ignore: Keys of `config.json` to ignore, at any depth: their defaults apply. For keys that are refused although you
            know that they do not matter for your use.
        quantize: "int8" turns each matrix into integers of 8 bits once it is read: see `x_positional.quantize`.
        device_mesh: Shard the model among the processes of this mesh with torch's fully_shard. Each process reads the rows that
            it holds, and no process holds the whole model. dtype=None is then the dtype of most tensors.
        overrides: Keys of `config.json`, which override the file, as `rope_parameters={"rope_type": "yarn", ...}`. Of a model
            of two towers, as CLIP, `model_type` names the one to read, as `model_type="clip_vision_model"`.

    Raises:
        PretrainedError: With all problems: an unknown family, unsupported settings, damaged or missing files, pickles,
            tensors that are missing, unexpected or of the wrong shape.
        ArgumentError: If `quantize` is unknown, the device unavailable, or `device_mesh` combined with either.
        FlagError: For keywords of transformers' from_pretrained, with what to use instead.
        MissingExtra: If a GGUF file or the Hub needs a package that is not installed.
    """
    if words := [f"{name} is refused. {LOADING[name]}" for name in overrides if name in LOADING]:
        raise FlagError("from_pretrained", words)
    if quantize is not None:
        check_quantization(quantize)
    if device_mesh is not None and (device is not None or quantize is not None):
        raise ArgumentError(
            "device_mesh cannot be combined with device or quantize: it sets the device, and divides floats"
        )
    _check_device(device)
    where = device if device_mesh is None else device_mesh
    return load_source(open_source(source), dtype, where, backend, ignore, quantize, **overrides)


def _check_device(device: torch.device | str | None) -> None:
    """Raises ArgumentError for a device that does not exist or is unavailable."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises either
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ArgumentError(f"device={str(device)!r} cannot be used: {reason}. Use device='cpu', or None.") from None


def load_source(
    source: Source,
    dtype: torch.dtype | None = None,
    device: "torch.device | str | DeviceMesh | None" = None,
    backend: str = "auto",
    ignore: Collection[str] = (),
    quantize: Quantization | None = None,
    **overrides: Any,
) -> Any:
    """`from_pretrained` of an opened checkpoint."""
    hf = source.config
    if hf.get("model_type") == NATIVE:
        changed = [
            f"{name}: a model in x_positional's own format has no published keys." for name in (*ignore, *overrides)
        ]
        if backend != "auto":
            changed.append(f"backend={backend!r}: the stored config of the model sets it, as `backend` of its layers.")
        if changed:
            raise PretrainedError(f"unsupported options for {source.path}:", changed)
        return _load_native(source, dtype, device, quantize)
    family, hf, tensors, outer = _published(source, ignore, overrides)
    return load(family, hf, tensors, dtype, device, backend, quantize, outer)


def config_of(source: Source) -> Any:
    """The config of the model that `load_source` gives; no parameter is read."""
    hf = source.config
    if hf.get("model_type") == NATIVE:
        return read_native_config(hf, str(source.path))
    family, hf, tensors, outer = _published(source, (), {})
    with failures(f"unsupported {CONFIG} in {tensors.source}:"):
        return _build(family, hf, TensorNames(tensors, family), "auto", outer).config


def _published(
    source: Source, ignore: Collection[str], overrides: Mapping[str, Any]
) -> tuple[Family, Mapping[str, Any], Tensors, Mapping[str, Any]]:
    """Family, config.json with its overrides, tensors, and keys that are set beside the config of a text model."""
    hf = source.config
    with failures(f"unsupported {CONFIG} in {source.path}:"):
        hf = ignored(hf, ignore)
        if problems := refused_keys({**hf, **overrides}):
            raise PretrainedError(f"unsupported {CONFIG} in {source.path}:", problems)
        if tower := chosen_tower(hf, TOWERS, overrides.get("model_type")):
            overrides = {key: value for key, value in overrides.items() if key != "model_type"}
        part = tower or NESTED.get(str(hf.get("model_type")))
        hf, tensors, outer = inner_model(hf, source.tensors(), part)
        family = family_of(hf, str(source.path))
        changes = family.resolve_aliases(overrides)
        hf = overridden(family.resolve_aliases(hf), changes, family.keys, family.known_keys, family.model_type)
        outer = {key: value for key, value in outer.items() if key not in overrides}
    return family, hf, tensors, outer


def _load_native(
    source: Source,
    dtype: torch.dtype | None,
    device: "torch.device | str | DeviceMesh | None",
    quantization: Quantization | None,
) -> nn.Module:
    """A model in x_positional's format, or the newest checkpoint of a run, whose adapters are merged into its base."""
    hf = source.config
    if LORA not in hf:
        model = load_native(hf, source.tensors(), dtype, device, quantization)
        if ORIGIN in hf:
            model.origin = Origin(family_of(hf[ORIGIN], str(source.path)), hf[ORIGIN])  # type: ignore[assignment]
        return model
    if is_mesh(device):
        raise PretrainedError(
            f"{source.path} cannot be read:",
            ["it holds adapters, which device_mesh does not divide. Merge them first: x-positional convert."],
        )
    model = adapted(source)
    merge_adapters(model)
    model.to(device=device, dtype=dtype)  # type: ignore[arg-type]
    return model if quantization is None else quantize_model(model, quantization)


def adapted(source: Source) -> Any:
    """The base of a run with adapters, with the adapters beside its weights. Raises PretrainedError where there are none."""
    hf = source.config
    if LORA not in hf:
        raise PretrainedError(f"{source.path} has no adapters:", ["it is not a run that was started with lora."])
    base = (hf.get(INIT) or {}).get("source")
    stored = source.tensors()
    tensors = {name: stored.read(name) for name in stored.names()}
    wide = any(tensor.dtype == torch.float64 for tensor in tensors.values())
    try:
        opened = open_source(str(base))
    except PretrainedError as error:
        raise PretrainedError(
            f"{source.path} holds adapters of {base}, which cannot be read:",
            error.problems,
        ) from error
    model = load_source(opened, torch.float64 if wide else torch.float32)
    add_adapters(model, **hf[LORA])
    load_adapters(model, tensors, str(source.path))
    return model.eval()


def load(
    family: Family,
    hf: Mapping[str, Any],
    tensors: Tensors,
    dtype: torch.dtype | None,
    device: "torch.device | str | DeviceMesh | None",
    backend: str,
    quantize: Quantization | None = None,
    outer: Mapping[str, Any] = MappingProxyType({}),
) -> nn.Module:
    """The model of a config and its tensors. outer: keys of a text model that are set beside its config."""
    if family.kind == "seq2seq" and not any("decoder." in name for name in tensors.names()):
        family = encoder_only(family)
    family = next((variant for tensor, variant in family.variants.items() if tensor in tensors.names()), family)
    names = TensorNames(tensors, family)
    with failures(f"unsupported {CONFIG} in {tensors.source}:"):
        model = _build(family, hf, names, backend, outer)
    config: Any = model.config
    loaded = QuantizeLoaded(model, quantize)
    fill(model, family, lambda name: layers_of(config, name), names, dtype=dtype, device=device, loaded=loaded)
    model.origin = _origin(family, hf)  # type: ignore[assignment]
    return model.eval()


def _origin(family: Family, hf: Mapping[str, Any]) -> Origin:
    """The family that the model is saved as, and its `config.json`."""
    written = family.written_as
    if written is None:
        return Origin(family, hf)
    known = {key: value for key, value in hf.items() if key in written.known_keys}
    return Origin(written, {**known, "model_type": written.model_type})


def _build(family: Family, hf: Mapping[str, Any], names: TensorNames, backend: str, outer: Mapping[str, Any]) -> Any:
    """The model of a config on the meta device, after comparing its sizes with the tensors."""
    tensors = names.tensors
    limits = Limits.of(tensors)
    if problems := limits.config_problems(family, hf):
        raise PretrainedError(f"{CONFIG} of {tensors.source} does not fit its tensors:", problems)
    fields, problems = family.to_fields(hf)
    problems += contradictions(
        outer, hf, lambda given: limits.config_problems(family, given) or family.to_fields(given)
    )
    problems = problems or limits.field_problems(fields)
    if problems:
        raise PretrainedError(f"unsupported {CONFIG} in {tensors.source}:", problems)
    if unknown := family.unknown_keys(hf):
        warnings.warn(
            f"{CONFIG} of {tensors.source} has unknown keys, which are ignored: {', '.join(unknown)}. If one of them changes "
            "what the model computes, its logits are wrong; check with `x-positional verify`, which compares them with "
            "transformers.",
            stacklevel=5,
        )
    fields |= {path: names.find(tensor) is not None for path, tensor in family.optional.items()}
    headed, kind = resolve_head(family, fields, names, hf), MODEL_KINDS[family.kind]
    fields |= {f"{prefix}layers.backend": backend for prefix in kind.stack_prefixes}
    with at_most(limits.tensors):
        return build_on_meta(family.kind, fields, headed)


def family_of(hf: Mapping[str, Any], source: str) -> Family:
    """The family of a `config.json`. Raises PretrainedError with the closest one."""
    name = hf.get("model_type")
    if isinstance(name, str) and name in FAMILIES:
        return FAMILIES[name]
    if isinstance(name, str) and name in REFUSED:
        raise PretrainedError(
            f"{source} cannot be read:",
            [f"unsupported model_type={name!r}: {REFUSED[name]}, which x_positional does not support."],
        )
    raise PretrainedError(
        f"{source} cannot be read:",
        [
            f"unsupported model_type={name!r}; {did_you_mean(str(name), {*FAMILIES, *NESTED, *TOWERS})} A family is a table of "
            "tensor names and config keys: docs/pretrained.md shows how to write one."
        ],
    )


def resolve_head(family: Family, fields: Fields, names: TensorNames, hf: Mapping[str, Any]) -> bool:
    """Whether there is a head. Sets in `fields` whether it is tied to the embedding, which the tensors decide.

    If head and embedding are both stored and differ, they are two parameters. If they are equal, or only one is stored, they
    are one parameter where the config ties them.
    """
    kind = MODEL_KINDS[family.kind]
    head = _tensor_name(family, kind.head)
    embedding = next(filter(None, (_tensor_name(family, name) for name in kind.embeddings)), None)
    if head is not None and not kind.embeddings:
        return names.find(head) is not None or not _is_body(family, names, hf)
    if head is None or embedding is None:
        return False
    found_head, found_embedding = names.find(head), names.find(embedding)
    if found_head is None:
        headed = not _is_body(family, names, hf, tied=bool(fields[kind.tied]))
        if headed and family.kind != "seq2seq":
            _explain_body(family, names, hf, (kind.head, "head.linear.weight"))
        return headed
    if fields[kind.tied] and found_embedding is None:
        names.alias(embedding, found_head)
    elif fields[kind.tied] and found_embedding is not None:
        fields[kind.tied] = names.equal(found_head, found_embedding)
    if fields[kind.tied]:
        names.used.add(found_head)
    return True


def _tensor_name(family: Family, parameter: str) -> str | None:
    """The tensor of a parameter that is stored as it is; None where the family has no such parameter."""
    location = family.locate(parameter)
    if location is None or not isinstance(location.layout, Same):
        return None
    return location.layout.name + location.leaf


def _is_body(family: Family, names: TensorNames, hf: Mapping[str, Any], tied: bool = True) -> bool:
    """Whether a checkpoint without a stored head has none, according to its `architectures`, or else to its tensors.

    `architectures` may name the class with a head although only the body was saved (embedding models). Then the tensors lack
    the prefix of the body, and an untied head cannot be made of them. Nor can it where `architectures` names nothing.
    """
    named = hf.get("architectures") or ()
    without_prefix = bool(family.prefix) and not any(name.startswith(family.prefix) for name in names.stored)
    if not tied and (without_prefix or not named):
        return True
    if family.architecture in named:
        return False
    location = family.locate("head.linear.weight")
    bare = location is not None and names.find(location.names(None)[0]) is None  # type: ignore[arg-type]
    return bare or any(name.endswith(("Model", "Encoder", "Backbone")) for name in named)


def _explain_body(family: Family, names: TensorNames, hf: Mapping[str, Any], parameters: tuple[str, ...]) -> None:
    """How to read the body, for the messages about a missing head."""
    for location in filter(None, map(family.locate, parameters)):
        for tensor in location.names(None):  # type: ignore[arg-type]
            names.advice[tensor] = (
                f"architectures={list(hf.get('architectures') or ())} is read as a model with a head. For the body alone, "
                "which returns hidden states, pass architectures=[]."
            )
