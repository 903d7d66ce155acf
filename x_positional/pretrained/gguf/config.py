"""What a GGUF file says, as the `config.json` of a published family. F pairs of a rotation."""

import math
from typing import Any

from torch import Tensor

from x_positional.errors import PretrainedError, RopeError, did_you_mean
from x_positional.pretrained.gguf.architectures import ARCHITECTURES, ELSEWHERE, Architecture
from x_positional.pretrained.gguf.file import GgufFile
from x_positional.pretrained.rope import inverse_frequencies

ROPE_FREQS = "rope_freqs.weight"
TOKENS = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}


def architecture_of(file: GgufFile) -> Architecture:
    """The architecture of a file. Raises PretrainedError with the nearest one."""
    name = file.get("general.architecture")
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    raise PretrainedError(
        f"{file.source} cannot be read:",
        [
            f"general.architecture={name!r} is not known here; {did_you_mean(str(name), ARCHITECTURES)} "
            "A folder with config.json and safetensors may work: docs/pretrained.md lists the families."
        ],
    )


def config_of(file: GgufFile) -> dict[str, Any]:
    """`config.json` of a file. Raises PretrainedError with all that cannot be followed."""
    architecture, problems = architecture_of(file), list[str]()
    config: dict[str, Any] = {"model_type": architecture.model_type, **architecture.fixed}
    for key, theirs in architecture.keys.items():
        value = _one(file, f"{architecture.name}.{key}", problems)
        if value is not None:
            config[theirs] = value
    names = file.names()
    config["vocab_size"] = file.shape("token_embd.weight")[0] if "token_embd.weight" in names else None
    config["tie_word_embeddings"] = "output.weight" not in names
    config |= {key: True for tensor, key in architecture.biases.items() if tensor in names}
    config |= {key: file.get(f"tokenizer.ggml.{name}_token_id") for key, name in TOKENS.items()}
    config = {key: value for key, value in config.items() if value is not None}
    problems += _not_followed(file, architecture, config)
    if not problems:
        config.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
        config |= _rope(file, architecture, config, problems)
    if problems:
        raise PretrainedError(f"{file.source} cannot be followed:", problems)
    return config | _unread(file, architecture)


def _one(file: GgufFile, key: str, problems: list[str]) -> Any:
    """The value of a key; of a list with one number per layer, the number that all have."""
    value = file.get(key)
    if isinstance(value, list):
        if len(set(value)) > 1:
            problems.append(f"{key} differs by layer: {value}. This architecture is read with one number for all.")
        return value[0] if value else None
    return value


def _not_followed(file: GgufFile, architecture: Architecture, config: dict[str, Any]) -> list[str]:
    problems, name = [], architecture.name
    if file.get(f"{name}.expert_count"):
        problems.append(
            f"{name}.expert_count={file.get(f'{name}.expert_count')}: experts are not read from GGUF files."
        )
    lengths = [file.get(f"{name}.attention.{part}_length") for part in ("key", "value")]
    if lengths[0] != lengths[1]:
        problems.append(f"keys have {lengths[0]} channels and values {lengths[1]}; they must be alike.")
    if "token_embd.weight" not in file.names():
        problems.append("token_embd.weight is missing: there are no embeddings, so this is no language model.")
    needed = ("hidden_size", "num_attention_heads", "num_hidden_layers")
    keys = {theirs: key for key, theirs in architecture.keys.items()}
    return problems + [f"{name}.{keys[key]} is missing." for key in needed if key not in config]


def _rope(file: GgufFile, architecture: Architecture, config: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    """Rotary parameters. llama.cpp keeps those of Llama 3.1 as a tensor of divisors."""
    prefix = f"{architecture.name}.rope."
    head_dim = config["head_dim"]
    width, scaling = file.get(f"{prefix}dimension_count", head_dim), file.get(f"{prefix}scaling.type", "none")
    parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": file.get(f"{prefix}freq_base", 10000.0)}
    if width != head_dim:
        parameters["partial_rotary_factor"] = width / head_dim
    if ROPE_FREQS in file.names():
        parameters |= _llama3(file.read(ROPE_FREQS), parameters["rope_theta"], width, problems)
    elif scaling in ("linear", "yarn"):
        parameters |= {"rope_type": scaling, "factor": file.get(f"{prefix}scaling.factor")}
        trained = file.get(f"{prefix}scaling.original_context_length")
        if scaling == "yarn":
            parameters |= {} if trained is None else {"original_max_position_embeddings": trained}
            parameters |= _yarn(file, prefix, parameters)
    elif scaling != "none":
        problems.append(f"{prefix}scaling.type={scaling!r} is not read from GGUF files; there are: none, linear, yarn.")
    return {"rope_parameters": parameters}


def _yarn(file: GgufFile, prefix: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """Their factor of the scores comes on top of the usual one; ours takes its place."""
    more = file.get(f"{prefix}scaling.attn_factor", 1.0)
    return {} if more == 1 else {"attention_factor": more * (1 + 0.1 * math.log(parameters["factor"]))}


def _llama3(divisors: Tensor, theta: float, width: int, problems: list[str]) -> dict[str, Any]:
    """The parameters of `llama3` whose divisors these are [F].

    With n the turns of a pair over the trained length, the divisor is s below n = low, 1 above n = high, and between them
    1 / divisor = 1/s + (1 - 1/s) (n - low) / (high - low), so two pairs in between give the line. Only its slope and where
    it begins can be told; low = 1 is what all published models have.
    """
    pairs = (theta ** (-2 * i / width) / (2 * math.pi) for i in range(width // 2))
    factor = float(divisors.max())
    ramp = [
        (turns, (1 / float(divisor) - 1 / factor) / (1 - 1 / factor))
        for turns, divisor in zip(pairs, divisors, strict=False)
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
        if _divides(found, theta, width, divisors):
            return found
    problems.append(f"{ROPE_FREQS} holds divisors of frequencies that are not those of rope_type='llama3'.")
    return {}


def _divides(found: dict[str, Any], theta: float, width: int, divisors: Tensor) -> bool:
    """Whether parameters give these divisors."""
    try:
        plain, _ = inverse_frequencies({"rope_theta": theta}, width)
        ours, _ = inverse_frequencies({"rope_theta": theta, **found}, width)
    except RopeError:
        return False
    return bool(((plain / ours).sub(divisors).abs() <= 1e-4 * divisors).all())


def _rounded(value: float) -> float:
    """A number meant to be whole."""
    return float(round(value)) if math.isclose(value, round(value), rel_tol=1e-3) else value


def _unread(file: GgufFile, architecture: Architecture) -> dict[str, Any]:
    """What the metadata say of the model that nothing here reads, under their own names: loading warns of it."""
    known, start = set(architecture.keys) | ELSEWHERE, f"{architecture.name}."
    names = [key for key in file.metadata() if key.startswith(start) and key.removeprefix(start) not in known]
    return {key: file.get(key) for key in names}
