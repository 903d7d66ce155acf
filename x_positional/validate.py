"""What cannot work, what deserves a second look, and which backend will run, before anything is built."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from x_positional.backends import BackendError, Choice, choose, obstacles
from x_positional.config import LayersConfig, ModelConfig
from x_positional.registry import SchemeConfig
from x_positional.scheme import Capabilities, Dims, PositionScheme
from x_positional.schemes.absolute import Absolute
from x_positional.schemes.compose import Chain, chain_problems
from x_positional.schemes.none import NoPEConfig


class IncompatibleConfig(ValueError):
    """A configuration with at least one error; the message lists all of them."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """The validator's verdict. errors: what cannot work; warnings: what may not be meant; each says the way out."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    backend: str | None = None
    reason: str | None = None
    capabilities: Capabilities | None = None

    @property
    def ok(self) -> bool:
        return not self.errors


def resolve_position(config: LayersConfig, max_seq_len: int | None) -> tuple[SchemeConfig, ...]:
    """The schemes that apply: those chosen; otherwise a learned table where a length is known, and nothing elsewhere."""
    if config.position is not None:
        return config.position
    return (NoPEConfig(),) if max_seq_len is None else (Absolute(),)


def build_parts(parts: tuple[SchemeConfig, ...], dims: Dims) -> list[PositionScheme]:
    """One instance of each scheme, on the meta device: enough to ask what it can do."""
    with torch.device("meta"):
        return [p.build(dims) for p in parts]


def features(config: LayersConfig) -> frozenset[str]:
    """Score features that some backends lack."""
    attn = config.attn
    on = {"softcap": attn.softcap is not None, "sinks": attn.sinks, "dropout": attn.dropout > 0}
    return frozenset(name for name, is_on in on.items() if is_on)


def layers_report(config: LayersConfig, max_seq_len: int | None = None, embed_dim: int | None = None) -> Report:
    """The verdict on a stack of layers."""
    dims = config.dims(max_seq_len, embed_dim)
    parts = resolve_position(config, max_seq_len)
    errors = list(_shape_problems(config)) + [p for part in parts for p in part.problems(dims)]
    warnings = [w for part in parts for w in part.warnings(dims)]
    if errors:
        return Report(errors=errors, warnings=warnings)
    schemes = build_parts(parts, dims)
    errors += chain_problems(schemes)
    if errors:
        return Report(errors=errors, warnings=warnings)
    caps = (schemes[0] if len(schemes) == 1 else Chain(*schemes)).capabilities()
    errors += _scheme_problems(config, parts, schemes)
    choice: Choice | None = None
    try:
        choice = choose(config.backend, config.flash, caps.kernel, features(config))
    except BackendError as error:
        errors.append(str(error))
    return Report(
        errors=errors, warnings=warnings, backend=choice and choice.name, reason=choice and choice.reason, capabilities=caps
    )


def _shape_problems(config: LayersConfig) -> Iterator[str]:
    kv_heads = config.kv_heads or config.heads
    if config.heads % kv_heads:
        yield f"heads={config.heads} must be a multiple of kv_heads={kv_heads}: each key head serves the same number of query heads."
    if config.kind == "cross_attender" and config.window is not None:
        yield "window is for self-attention, and a cross_attender has none. Leave it out."
    if config.ff.gate_bias is not None and not config.ff.glu:
        yield "ff.gate_bias is the bias of the gated projection, and ff.glu is off. Set ff.glu or leave it out."
    if config.attn.qk_norm == "l2" and config.attn.scale is not None:
        yield "attn.qk_norm='l2' scales scores by qk_norm_scale; attn.scale says it again. Give one."


def _scheme_problems(
    config: LayersConfig, parts: tuple[SchemeConfig, ...], schemes: list[PositionScheme]
) -> Iterator[str]:
    if config.kind == "decoder":
        return
    undefined = [p.kind for p, s in zip(parts, schemes, strict=True) if s.causal_only and not isinstance(p, NoPEConfig)]
    if undefined:
        yield (
            f"position={', '.join(undefined)} is defined only under a causal mask, and a {config.kind} sees both sides. "
            "Use a Decoder, or rope, alibi, t5, dynamic, sinusoidal."
        )
    elif all(s.causal_only for s in schemes) and config.position is not None and config.kind == "encoder":
        yield (
            "position='none' in an encoder: without a causal mask nothing tells one order of tokens from another. "
            "Use rope, alibi, t5, dynamic, absolute or sinusoidal."
        )


def model_report(config: ModelConfig) -> Report:
    """The verdict on a language model."""
    return layers_report(config.layers, config.max_seq_len, config.emb_dim)


def require(report: Report) -> None:
    """Raises IncompatibleConfig with every error."""
    if report.errors:
        raise IncompatibleConfig("\n".join(f"- {e}" for e in report.errors))


__all__ = ["IncompatibleConfig", "Report", "layers_report", "model_report", "obstacles", "require", "resolve_position"]
