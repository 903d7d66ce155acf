"""Keys of a published `config.json` before a family reads it: those that are refused in every family (quantised weights, configs
that differ by layer), and those that the caller ignores or overrides.
"""

import difflib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from x_positional.errors import PretrainedError, did_you_mean
from x_positional.pretrained.config_json.codecs import Hf

QUANTISED = ("quantization_config", "compression_config", "quantization")
"""Keys that describe quantised weights; the last one is MLX's."""
PER_LAYER = "per_layer_config"
TEXT_CONFIGS = ("text_config", "llm_config", "language_config")
"""Keys of the text config inside of a multimodal one."""
REFUSED_KEYS = frozenset((*QUANTISED, PER_LAYER))

SYNONYMS = {"rope_parameters": "rope_scaling", "rope_scaling": "rope_parameters"}
"""Two names of one setting: an override under one name removes the other."""

DEQUANTISE: Mapping[str, str] = {
    "fp8": "quantization_config=FineGrainedFP8Config(dequantize=True)",
    "mxfp4": "quantization_config=Mxfp4Config(dequantize=True)",
    "compressed-tensors": "quantization_config=CompressedTensorsConfig(dequantize=True)",
    "bitsandbytes": "dtype=torch.bfloat16, then call model.dequantize()",
}
"""`quant_method` -> arguments with which transformers gives unquantised weights."""


def refused_keys(hf: Hf) -> list[str]:
    """Problems of the keys that no family supports, of the text config inside of a multimodal one too."""
    inner = {f"{name}.": hf[name] for name in TEXT_CONFIGS if isinstance(hf.get(name), Mapping)}
    return [problem for where, part in {"": hf, **inner}.items() for problem in _refused(where, part)]


def _refused(where: str, hf: Hf) -> list[str]:
    problems = [_quantised(where, key, hf[key]) for key in QUANTISED if hf.get(key)]
    if hf.get(PER_LAYER):
        problems.append(
            f"{where}{PER_LAYER}: settings that differ by layer are read only from the keys of each family."
        )
    return problems


def _quantised(where: str, key: str, value: Any) -> str:
    method = str(value.get("quant_method") or "") if isinstance(value, Mapping) else ""
    named = f" (quant_method={method!r})" if method else ""
    arguments = DEQUANTISE.get(method)
    way_out = (
        "Load the unquantised checkpoint of this model instead."
        if arguments is None
        else f"Load it with transformers ({arguments}), save it with save_pretrained(folder), and load that folder."
    )
    return (
        f"{where}{key}{named}: quantised weights are unsupported. {way_out} If the tensors are not quantised, pass "
        f"ignore=({key!r},)."
    )


def ignored(hf: Hf, ignore: Collection[str]) -> dict[str, Any]:
    """The config without these keys, at any depth. Raises PretrainedError for a key that it does not contain."""
    names = (ignore,) if isinstance(ignore, str) else tuple(ignore)
    if not names:
        return dict(hf)
    present = set(_keys(hf))
    unknown = [f"unknown key {name!r}; {did_you_mean(str(name), present)}" for name in names if name not in present]
    if unknown:
        raise PretrainedError("ignore= names keys that config.json does not contain:", unknown)
    return _without(hf, set(names))


def _keys(hf: Hf) -> Iterator[str]:
    for key, value in hf.items():
        yield key
        if isinstance(value, Mapping):
            yield from _keys(value)


def _without(hf: Hf, names: set[str]) -> dict[str, Any]:
    return {
        key: _without(value, names) if isinstance(value, Mapping) else value
        for key, value in hf.items()
        if key not in names
    }


def overridden(hf: Hf, overrides: Hf, keys: Collection[str], known: Collection[str], family: str) -> dict[str, Any]:
    """The config with overrides applied. An override also removes the other name of the same setting.

    Args:
        hf: The config.
        overrides: Key -> value.
        keys: Keys that the family reads, for suggestions.
        known: Keys that may be overridden.
        family: Its name, for messages.

    Raises:
        PretrainedError: With every override that is not a known key.
    """
    problems = []
    for key in overrides:
        if key not in known:
            close = difflib.get_close_matches(key, keys, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"keys of {family}: {', '.join(sorted(keys))}"
            problems.append(f"unknown config.json key {key}; {hint}")
    if problems:
        raise PretrainedError("unsupported overrides:", problems)
    removed = {SYNONYMS[key] for key in overrides if key in SYNONYMS}
    return {**{key: value for key, value in hf.items() if key not in removed}, **overrides}
