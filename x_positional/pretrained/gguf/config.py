"""The metadata of a GGUF file as the `config.json` of a published family. F pairs of rotated channels."""

import math
from typing import Any

from torch import Tensor

from x_positional.errors import PretrainedError, RopeError, did_you_mean
from x_positional.pretrained.gguf.architectures import ARCHITECTURES, KNOWN_KEYS, Architecture
from x_positional.pretrained.gguf.file import GgufFile
from x_positional.pretrained.rope import inverse_frequencies

ROPE_FREQS = "rope_freqs.weight"
FRACTIONS = ("rms_norm_eps",)
"""Keys of config.json that are not sizes."""
SPECIAL_IDS = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}


def architecture_of(file: GgufFile) -> Architecture:
    """The architecture of a file. Raises PretrainedError with the closest one."""
    name = file.get("general.architecture")
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    raise PretrainedError(
        f"{file.source} cannot be read:",
        [
            f"unsupported general.architecture={name!r}; {did_you_mean(str(name), ARCHITECTURES)} "
            "A folder with config.json and safetensors may work: docs/pretrained.md lists the families."
        ],
    )


def config_of(file: GgufFile) -> dict[str, Any]:
    """`config.json` of a file. Raises PretrainedError with everything that is unsupported."""
    architecture, problems = architecture_of(file), list[str]()
    config: dict[str, Any] = {"model_type": architecture.model_type}
    for key, theirs in architecture.keys.items():
        value = _single_value(file, f"{architecture.name}.{key}", problems)
        if value is not None:
            config[theirs] = _number(f"{architecture.name}.{key}", value, theirs in FRACTIONS, problems)
    names = file.names()
    config["vocab_size"] = file.shape("token_embd.weight")[0] if "token_embd.weight" in names else None
    config["tie_word_embeddings"] = "output.weight" not in names
    config |= {key: True for tensor, key in architecture.biases.items() if tensor in names}
    config |= {key: file.get(f"tokenizer.ggml.{name}_token_id") for key, name in SPECIAL_IDS.items()}
    config = {key: value for key, value in config.items() if value is not None}
    problems += _unsupported(file, architecture, config)
    if not problems:
        head_dim = config["hidden_size"] // config["num_attention_heads"]
        if head_dim == 0:
            heads = config["num_attention_heads"]
            raise PretrainedError(
                f"unsupported metadata in {file.source}:",
                [f"{architecture.name}.attention.head_count={heads} exceeds the width {config['hidden_size']}."],
            )
        config.setdefault("head_dim", head_dim)
        config |= _rope(file, architecture, config, problems)
    if problems:
        raise PretrainedError(f"unsupported metadata in {file.source}:", problems)
    return config | _unknown_keys(file, architecture)


def _single_value(file: GgufFile, key: str, problems: list[str]) -> Any:
    """The value of a key; of a list with one number per layer, the number that all layers share."""
    value = file.get(key)
    if isinstance(value, list):
        if any(one != value[0] for one in value):
            problems.append(f"{key} differs by layer: {value}. Only a single value for all layers is supported.")
        return value[0] if value else None
    return value


def _number(key: str, value: Any, fraction: bool, problems: list[str]) -> Any:
    """The value of a key that must be a positive number; 1 after adding to `problems`."""
    kinds = (int, float) if fraction else (int,)
    if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < math.inf:
        problems.append(f"{key}={value!r} must be a positive {'number' if fraction else 'integer'}.")
        return 1
    return value


def _unsupported(file: GgufFile, architecture: Architecture, config: dict[str, Any]) -> list[str]:
    problems, name = [], architecture.name
    if experts := file.get(f"{name}.expert_count"):
        problems.append(f"{name}.expert_count={experts}: experts in GGUF files are unsupported.")
    lengths = [file.get(f"{name}.attention.{part}_length") for part in ("key", "value")]
    if lengths[0] != lengths[1]:
        problems.append(f"keys have {lengths[0]} channels and values {lengths[1]}; they must be equal.")
    if "token_embd.weight" not in file.names():
        problems.append("token_embd.weight is missing: without embeddings this is not a language model.")
    required = ("hidden_size", "num_attention_heads", "num_hidden_layers")
    keys = {theirs: key for key, theirs in architecture.keys.items()}
    return problems + [f"{name}.{keys[key]} is missing." for key in required if key not in config]


def _rope(file: GgufFile, architecture: Architecture, config: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    """RoPE parameters. llama.cpp stores those of Llama 3.1 as a tensor of divisors."""
    prefix = f"{architecture.name}.rope."
    head_dim = config["head_dim"]
    width, scaling = file.get(f"{prefix}dimension_count", head_dim), file.get(f"{prefix}scaling.type", "none")
    parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": file.get(f"{prefix}freq_base", 10000.0)}
    width = _number(f"{prefix}dimension_count", width, False, problems)
    parameters["rope_theta"] = _number(f"{prefix}freq_base", parameters["rope_theta"], True, problems)
    if problems:
        return {}
    if width != head_dim:
        parameters["partial_rotary_factor"] = width / head_dim
    if ROPE_FREQS in file.names():
        parameters |= _llama3(file.read(ROPE_FREQS), parameters["rope_theta"], width, problems)
    elif scaling in ("linear", "yarn"):
        factor = _number(f"{prefix}scaling.factor", file.get(f"{prefix}scaling.factor"), True, problems)
        parameters |= {"rope_type": scaling, "factor": factor}
        trained = file.get(f"{prefix}scaling.original_context_length")
        if scaling == "yarn":
            parameters |= {} if trained is None else {"original_max_position_embeddings": trained}
            parameters |= _yarn(file, prefix, factor, problems)
    elif scaling != "none":
        problems.append(f"unsupported {prefix}scaling.type={scaling!r}; supported in GGUF files: none, linear, yarn.")
    return {"rope_parameters": parameters}


def _yarn(file: GgufFile, prefix: str, factor: float, problems: list[str]) -> dict[str, Any]:
    """GGUF's attention factor multiplies the usual one; that of config.json replaces it."""
    key = f"{prefix}scaling.attn_factor"
    more = _number(key, file.get(key, 1.0), True, problems)
    return {} if more == 1 else {"attention_factor": more * (1 + 0.1 * math.log(factor))}


def _llama3(divisors: Tensor, theta: float, width: int, problems: list[str]) -> dict[str, Any]:
    """The parameters of `llama3` that give these divisors [F].

    With n the rotations of a pair over the trained length, the divisor is s below n = low, 1 above n = high, and in between
    1 / divisor = 1/s + (1 - 1/s) (n - low) / (high - low), so two pairs in between determine the line. They only determine
    its slope and its start; low = 1 is what all published models have.
    """
    pairs = (theta ** (-2 * i / width) / (2 * math.pi) for i in range(width // 2))
    factor = float(divisors.max())
    ramp = [
        (rotations, (1 / float(divisor) - 1 / factor) / (1 - 1 / factor))
        for rotations, divisor in zip(pairs, divisors, strict=False)
        if 1 < divisor < factor
    ]
    if len(ramp) >= 2 and divisors.numel() == width // 2:
        (x0, y0), (x1, y1) = ramp[0], ramp[-1]
        slope = (y1 - y0) / (x1 - x0)
        begin = x0 - y0 / slope
        length = round(1 / begin)
        found = {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": _rounded(1 + length / slope),
            "original_max_position_embeddings": length,
        }
        if _gives(found, theta, width, divisors):
            return found
    problems.append(f"{ROPE_FREQS} contains frequency divisors that are not those of rope_type='llama3'.")
    return {}


def _gives(found: dict[str, Any], theta: float, width: int, divisors: Tensor) -> bool:
    """Whether parameters give these divisors."""
    try:
        plain, _ = inverse_frequencies({"rope_theta": theta}, width)
        scaled, _ = inverse_frequencies({"rope_theta": theta, **found}, width)
    except RopeError:
        return False
    return bool(((plain / scaled).sub(divisors).abs() <= 1e-4 * divisors).all())


def _rounded(value: float) -> float:
    """The nearest integer where the value is within 0.1% of it."""
    return float(round(value)) if math.isclose(value, round(value), rel_tol=1e-3) else value


def _unknown_keys(file: GgufFile, architecture: Architecture) -> dict[str, Any]:
    """Metadata of the model that are not read, under their own names, so that loading warns about them."""
    known, start = set(architecture.keys) | KNOWN_KEYS, f"{architecture.name}."
    names = [key for key in file.metadata() if key.startswith(start) and key.removeprefix(start) not in known]
    return {key: file.get(key) for key in names}
