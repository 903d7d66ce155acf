"""The scheme under test, and the small models it is tested in.

B batch, T tokens, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from x_positional.attention.cache import KVCache
from x_positional.attention.inputs import prepare_tokens
from x_positional.config.models import ModelConfig
from x_positional.config.validate import model_report
from x_positional.errors import ArgumentError
from x_positional.models.language import TransformerWrapper, build_model
from x_positional.models.quantize import Quantization, quantize
from x_positional.schemes.base import Capabilities, Dims, PositionScheme
from x_positional.schemes.registry import SchemeConfig, scheme_config
from x_positional.testing.expect import NotApplicable, rounding_bound

Kind = Literal["decoder", "encoder"]
KINDS: tuple[Kind, ...] = ("decoder", "encoder")

Makes = Callable[[Dims], PositionScheme]
Scheme: TypeAlias = str | dict[str, Any] | SchemeConfig | Makes
"""A registered name, a config (or its fields), or a function of `Dims` that makes the scheme (a class will do)."""

NOISE = 0.2
"""Standard deviation of the noise added to every parameter: parameters that start at zero would hide errors."""
DEPTH = 2
"""Layers of the models."""
SHORT = 32
"""No text of the checks is longer, unless a check says so."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of the models that a scheme is tested in: small, all different, and a head dim whose square root is irrational."""

    dim: int = 22
    heads: int = 6
    kv_heads: int = 3
    head_dim: int = 24
    max_seq_len: int = 288
    num_tokens: int = 37


class Subject:
    """A scheme under test. Models made by `model(...)` have equal values in the parameters that they share.

    quantization: of all models; see `x_positional.quantize`.
    """

    def __init__(
        self,
        scheme: Scheme | Sequence[Scheme],
        sizes: Sizes,
        device: torch.device,
        quantization: Quantization | None = None,
    ):
        self.quantization: Quantization | None = quantization
        chain = isinstance(scheme, Sequence) and not isinstance(scheme, str)
        self.specs = tuple(_checked(s) for s in (scheme if chain else [scheme]))  # type: ignore[union-attr]
        self.sizes, self.device = sizes, device
        self._models: dict[Any, TransformerWrapper] = {}
        self._rounding: dict[Any, float] = {}
        reports = {kind: model_report(self.config(kind)) for kind in KINDS}
        self.kinds: list[Kind] = [kind for kind in KINDS if reports[kind].ok]
        self.errors = {kind: " ".join(reports[kind].errors) for kind in KINDS}
        if not self.kinds:
            raise ArgumentError(f"no model can be built with this scheme. {' '.join(self.errors.values())}")

    def config(self, kind: Kind = "decoder", **fields: Any) -> ModelConfig:
        """The config of a model with the scheme; `fields` are those of LayersConfig."""
        s = self.sizes
        dims = Dims(
            dim=s.dim,
            heads=s.heads,
            kv_heads=s.kv_heads,
            head_dim=s.head_dim,
            causal=kind == "decoder",
            embed_dim=s.dim,
            max_seq_len=s.max_seq_len,
        )
        position = [spec if isinstance(spec, SchemeConfig) else spec(dims) for spec in self.specs]
        layers = {
            "kind": kind,
            "dim": s.dim,
            "depth": DEPTH,
            "heads": s.heads,
            "kv_heads": s.kv_heads,
            "head_dim": s.head_dim,
            "position": position,
            **fields,
        }
        return ModelConfig.model_validate({"num_tokens": s.num_tokens, "max_seq_len": s.max_seq_len, "layers": layers})

    def fresh(self, kind: Kind = "decoder", *, seed: int = 0, **fields: Any) -> TransformerWrapper:
        """A new model in eval mode, every parameter moved off its initial value."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = build_model(self.config(kind, **fields))
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter) * NOISE)
        return self.stored(model.to(self.device).eval())

    def stored(self, model: TransformerWrapper) -> TransformerWrapper:
        """The same model in eval mode, quantized where the subject is."""
        return model if self.quantization is None else quantize(model, self.quantization)

    def model(self, kind: Kind = "decoder", **fields: Any) -> TransformerWrapper:
        """The same model, shared between checks: do not modify it."""
        key = (kind, *((name, repr(fields[name])) for name in sorted(fields)))
        if key not in self._models:
            self._models[key] = self.fresh(kind, **fields)
        return self._models[key]

    def exact(self, kind: Kind = "decoder", **fields: Any) -> TransformerWrapper:
        """The same model in float64, with the eager backend; also shared."""
        key = ("float64", kind, *((name, repr(fields[name])) for name in sorted(fields)))
        if key not in self._models:
            self._models[key] = self.fresh(kind, backend="eager", **fields).double()
        return self._models[key]

    def terms(self, length: int) -> int:
        """How many additions a logit goes through, one after the other, in a text of this length.

        In each layer: projections to queries, keys and values, scores, the average over values, the output projection, and
        both projections of the feedforward; then the projection to logits.
        """
        s = self.sizes
        layer = s.dim + s.head_dim + length + s.heads * s.head_dim + s.dim + 4 * s.dim
        return DEPTH * layer + s.dim

    @torch.no_grad()
    def rounding(self, kind: Kind | None = None, length: int = SHORT) -> float:
        """The largest difference between equal logits of texts up to this length: see `rounding_bound`.

        By default the larger bound of decoder and encoder, for short texts.
        """
        if kind is None:
            return max(self.rounding(kind, length) for kind in self.kinds)
        length = max(length, SHORT)
        length = min(length, self.scheme(kind).limit or length)
        if (kind, length) not in self._rounding:
            tokens = self.tokens(length)
            narrow, exact = self.model(kind, backend="eager")(tokens), self.exact(kind)(tokens)
            self._rounding[kind, length] = rounding_bound(narrow, exact, self.terms(length))
        return self._rounding[kind, length]

    def scheme(self, kind: Kind | None = None) -> PositionScheme:
        """The scheme of the first layer: a single scheme or a Chain."""
        return self.model(kind or self.kinds[0]).attn_layers.kinds[0].scheme

    def capabilities(self, kind: Kind | None = None) -> Capabilities:
        """The capabilities that the scheme declares."""
        return self.scheme(kind).capabilities()

    def need_decoder(self) -> None:
        """Raises NotApplicable for a scheme that works in encoders only."""
        if "decoder" not in self.kinds:
            raise NotApplicable(f"refused in a decoder: {self.errors['decoder']}")

    def need_cacheable(self) -> None:
        """Raises NotApplicable for a scheme that cannot be cached."""
        if not self.capabilities("decoder").kv_cacheable:
            raise NotApplicable("kv_cacheable=False: the model refuses a cache")

    def need_positions(self) -> None:
        """Raises NotApplicable for a scheme that reads no positions."""
        if not self.capabilities().uses_positions:
            raise NotApplicable("the scheme reads no positions")

    def tokens(self, length: int, batch: int = 3, seed: int = 1) -> Tensor:
        """[B T] random ids."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(0, self.sizes.num_tokens, (batch, length), generator=generator).to(self.device)

    def positions(self, length: int, start: int = 0) -> Tensor:
        """[1 T] start, start + 1, ..."""
        return torch.arange(start, start + length, device=self.device)[None]

    def stretched(self, length: int, batch: int = 3) -> Tensor:
        """[B T] increasing positions with gaps, different in each row, all below 3 * length."""
        generator = torch.Generator().manual_seed(7)
        steps = torch.randint(1, 4, (batch, length), generator=generator)
        return (steps.cumsum(-1) - 1).to(self.device)


def _checked(spec: Scheme) -> SchemeConfig | Makes:
    if isinstance(spec, PositionScheme):
        raise TypeError(
            f"check_scheme got an instance of {type(spec).__name__}, but builds the scheme many times, in several sizes. "
            "Pass the class, a function of Dims, a config or a registered name."
        )
    return spec if not isinstance(spec, str | dict | SchemeConfig) else scheme_config(spec)


def forced(
    model: TransformerWrapper, tokens: Tensor, positions: Tensor | None = None, cache: KVCache | None = None
) -> Tensor:
    """Logits [B T V] without asking whether the scheme can use these positions."""
    layers, (batch, length) = model.attn_layers, tokens.shape
    layout = prepare_tokens(batch, length, tokens.device, positions=positions, cache=cache)
    return model.logits(layers.run(layers.embed(model.token_emb(tokens), layout), layout, cache))


def forced_cache(model: TransformerWrapper, batch: int) -> KVCache:
    """A growing cache, without asking whether the scheme's keys stay right."""
    layers = model.attn_layers
    windows = [kind.window for kind in layers.kinds]
    return KVCache(windows, batch, None, next(model.parameters()).device, None, layers.identity)


def both_sides(model: TransformerWrapper) -> TransformerWrapper:
    """The same model without its causal mask, without asking whether the scheme is defined there."""
    model.attn_layers.dims = replace(model.attn_layers.dims, causal=False)
    return model
