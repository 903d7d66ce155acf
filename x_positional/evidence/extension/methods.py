"""The ways to extend a trained model that need no training: each one as a changed config, or the reason why it does not apply.

L trained length, s = target / L.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from x_positional.config.layers import LayerConfig, LayersConfig
from x_positional.config.models import ModelConfig, plain
from x_positional.config.validate import model_report
from x_positional.errors import ArgumentError, did_you_mean, listed
from x_positional.schemes import DefaultRope, DynamicNtk, Linear, Llama3, LongRope, Ntk, NtkByParts, Rope, Yarn
from x_positional.schemes.absolute import Absolute
from x_positional.schemes.base import Dims
from x_positional.schemes.registry import SchemeConfig
from x_positional.schemes.rotary.scaling import RopeScaling
from x_positional.schemes.rotary.scaling.base import rescaled_theta

UNCHANGED = "none"
"""Label of the model as it is."""
FIRST_TOKENS = 4
"""First tokens that keep_first keeps, as in StreamingLLM."""
SCALINGS: Mapping[str, Callable[["Stretch"], RopeScaling | None]] = {
    "linear": lambda to: Linear(factor=to.factor),
    "ntk": lambda to: Ntk(factor=to.factor),
    "dynamic": lambda to: DynamicNtk(
        factor=to.factor, original_max_position_embeddings=to.trained, length_policy="recompute"
    ),
    "ntk_by_parts": lambda to: NtkByParts(factor=to.factor, original_max_position_embeddings=to.trained),
    "yarn": lambda to: Yarn(factor=to.factor, original_max_position_embeddings=to.trained),
    "longrope": lambda to: to.longrope(),
}
"""Scalings of rotary frequencies by name."""
KEEP_FIRST = "keep_first"
METHODS = (*SCALINGS, KEEP_FIRST)
"""Every method, in the order in which they are tried."""


@dataclass(frozen=True)
class Stretch:
    """What a method is asked for."""

    trained: int
    """L."""
    target: int
    """The length to reach, in tokens."""
    factors: Mapping[str, Sequence[float]] | None = None
    """LongRoPE's `short_factor` and `long_factor`; None leaves LongRoPE out."""

    @property
    def factor(self) -> float:
        """s."""
        return self.target / self.trained

    def longrope(self) -> RopeScaling | None:
        """LongRoPE with the given factors; None without factors. Raises ArgumentError for factors that are none."""
        if self.factors is None:
            return None
        sizes = {"factor": self.factor, "original_max_position_embeddings": self.trained}
        return LongRope.model_validate({**self.factors, **sizes, "length_policy": "recompute"})


@dataclass(frozen=True)
class Candidate:
    """A method as a config of the model."""

    label: str
    """`yarn x4`."""
    settings: dict[str, Any]
    """What it sets, as in a config file."""
    config: ModelConfig | None
    """None where the method does not apply."""
    reason: str | None = None
    """Why it does not."""


def candidates(config: ModelConfig, to: Stretch, methods: Sequence[str] = METHODS) -> tuple[Candidate, ...]:
    """The unchanged model, then each method.

    Args:
        config: Of the model.
        to: Trained and target length.
        methods: Those of `METHODS` to try.

    Raises:
        ArgumentError: A method is unknown, or the target does not exceed the trained length.
    """
    problems = [f"unknown method {name!r}; {did_you_mean(name, METHODS)}" for name in methods if name not in METHODS]
    if to.target <= to.trained:
        problems.append(
            f"the target of {to.target:,} tokens does not exceed the trained length of {to.trained:,}; nothing to extend"
        )
    if problems:
        raise ArgumentError(problems[0] if len(problems) == 1 else listed("the model cannot be extended:", problems))
    unchanged = Candidate(UNCHANGED, {}, config)
    chosen = [name for name in METHODS if name in methods]
    return (unchanged, *(_checked(_candidate(name, config, to)) for name in chosen))


def _candidate(name: str, config: ModelConfig, to: Stretch) -> Candidate:
    if name == KEEP_FIRST:
        return _streaming(config, to)
    label = f"{name} x{to.factor:g}"
    if (reason := _unscalable(config)) is not None:
        return Candidate(label, {}, None, reason)
    try:
        scaling = SCALINGS[name](to)
    except ValueError as error:
        return Candidate(label, {}, None, " ".join(str(error).split()))
    if scaling is None:
        return Candidate(label, {}, None, "its factors are searched for each model; give them with --longrope-factors")
    scaled = config.model_copy(
        update={
            "layers": with_scaling(config.layers, scaling),
            # transformers takes the trained length of dynamic NTK from the context length of the model
            "max_seq_len": to.trained if isinstance(scaling, DynamicNtk) else to.target,
        }
    )
    return Candidate(label, plain(scaling), scaled)


def _streaming(config: ModelConfig, to: Stretch) -> Candidate:
    """A window and the first tokens, together as many tokens as the model was trained on."""
    first = min(FIRST_TOKENS, to.trained - 1)
    settings = {"window": to.trained - first, "keep_first": first}
    layers = config.layers
    if not any(_sees_everything(kind) for kind in layers.layer_kinds()):
        return Candidate(KEEP_FIRST, settings, None, "every layer has a window or chunk already")
    if layers.pattern:
        pattern = tuple(k.model_copy(update=settings) if _sees_everything(k) else k for k in layers.pattern)
        layers = layers.model_copy(update={"pattern": pattern})
    else:
        layers = layers.model_copy(update=settings)
    return Candidate(KEEP_FIRST, settings, config.model_copy(update={"layers": layers, "max_seq_len": to.target}))


def _sees_everything(layer: LayerConfig) -> bool:
    return layer.window is None and layer.chunk is None


def _checked(candidate: Candidate) -> Candidate:
    """The same, without its config where the validator refuses that."""
    if candidate.config is None:
        return candidate
    errors = model_report(candidate.config).errors
    return Candidate(candidate.label, candidate.settings, None, " ".join(errors)) if errors else candidate


def _schemes(config: ModelConfig) -> list[SchemeConfig]:
    """The schemes of every kind of layer, the default one included."""
    return [part for kind in config.layers.resolved_layers(config.max_seq_len) for part in kind.parts]


def _unscalable(config: ModelConfig) -> str | None:
    """Why rotary frequencies cannot be scaled; None where they can."""
    schemes = _schemes(config)
    ropes = [part for part in schemes if isinstance(part, Rope)]
    names = " + ".join(dict.fromkeys(part.label for part in schemes))
    if not ropes:
        return f"the model has no rotary frequencies to scale (position {names})"
    bound = [part.label for part in schemes if part not in ropes and "max_seq_len" in part.model_dims()]
    if bound:
        return f"{bound[0]} beside RoPE is built for max_seq_len={config.max_seq_len}"
    scaled = [part for part in ropes if not _unscaled(part)]
    if not scaled:
        return None
    what = (
        scaled[0].scaling.rope_type if scaled[0].scaling is not None else "interpolation_factor or base_rescale_factor"
    )
    return f"the model was trained with scaled frequencies already ({what})"


def _unscaled(rope: Rope) -> bool:
    own = rope.interpolation_factor == 1 and rope.base_rescale_factor == 1
    return own and (rope.scaling is None or isinstance(rope.scaling, DefaultRope))


def with_scaling(layers: LayersConfig, scaling: RopeScaling | None) -> LayersConfig:
    """The same layers with scaled rotary frequencies, in the layers that see the whole text: others do not see farther than
    before."""
    return with_ropes(layers, lambda rope: rope.model_copy(update={"scaling": scaling}))


def with_ropes(layers: LayersConfig, change: Callable[[Rope], Rope]) -> LayersConfig:
    """The same layers, where each `Rope` of the layers that see the whole text is changed."""

    def changed(kind: LayerConfig) -> tuple[SchemeConfig, ...]:
        return tuple(change(part) if isinstance(part, Rope) else part for part in kind.parts)

    kinds = layers.layer_kinds()
    anywhere = any(_sees_everything(kind) for kind in kinds)
    concerned = [_sees_everything(kind) or not anywhere for kind in kinds]
    if not layers.pattern:
        return layers.model_copy(update={"position": changed(kinds[0])})
    pattern = tuple(
        own.model_copy(update={"position": changed(kind)}) if this else own
        for own, kind, this in zip(layers.pattern, kinds, concerned, strict=True)
    )
    return layers.model_copy(update={"pattern": pattern})


def for_transformers(config: ModelConfig) -> ModelConfig:
    """The same model in words that transformers has: NTK as a larger theta, NTK-by-parts as llama3, whose ramp is the same."""
    dims = config.layers.dims(config.max_seq_len, config.placed_dim)
    return config.model_copy(update={"layers": with_ropes(config.layers, lambda rope: _equivalent(rope, dims))})


def _equivalent(rope: Rope, dims: Dims) -> Rope:
    scaling = rope.scaling
    if type(scaling) is Ntk:
        theta = float(rescaled_theta(rope.width(dims), rope.theta, scaling.factor))
        return rope.model_copy(update={"theta": theta, "scaling": None})
    if type(scaling) is NtkByParts:
        same = Llama3(
            factor=scaling.factor,
            low_freq_factor=scaling.alpha,
            high_freq_factor=scaling.beta,
            original_max_position_embeddings=scaling.original_max_position_embeddings,
        )
        return rope.model_copy(update={"scaling": same})
    return rope


def alternatives(config: ModelConfig) -> list[str]:
    """What a model can do whose rotary frequencies cannot be scaled; [] for one whose frequencies can."""
    reason = _unscalable(config)
    if reason is None:
        return []
    schemes = _schemes(config)
    if any(isinstance(part, Absolute) for part in schemes):
        return [
            "a learned table has no rows past its length: model.resize_max_seq_len(N, how='interpolate') stretches it, and "
            "fine-tuning is needed after that"
        ]
    if any(isinstance(part, Rope) for part in schemes):
        return ["load the model with its scaling overridden to compare others, or fine-tune it at the target length"]
    names = " + ".join(dict.fromkeys(part.label for part in schemes))
    return [
        f"{names} has no frequencies, so it runs at any length as it is: the row of the unchanged model shows how well. A window "
        "with the first tokens kept (keep_first) bounds the distances, and fine-tuning at the target length trains longer ones"
    ]
