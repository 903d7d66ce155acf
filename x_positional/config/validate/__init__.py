"""What cannot work, what deserves a second look, and which backend will run, before anything is built."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from x_positional.attention.backends import Choice, choose, obstacles
from x_positional.config.layers import LayerConfig, LayersConfig
from x_positional.config.models import ContinuousConfig, ModelConfig
from x_positional.config.validate import rules_ignored, rules_parts, rules_stack, rules_use, rules_vision  # noqa: F401  (registers their rules)
from x_positional.config.validate.case import CacheName, Case, Use, read_use
from x_positional.config.validate.fields import invalid_fields
from x_positional.config.validate.report import Report, across, merged, require
from x_positional.config.validate.rule import RULES, Rule
from x_positional.config.validate.target import AnyConfig, Stack, read_target
from x_positional.config.vision import VisionConfig
from x_positional.errors import BackendError, IncompatibleConfig, shown
from x_positional.schemes.base import Capabilities, Dims, PositionScheme
from x_positional.schemes.compose import chain_problems
from x_positional.schemes.registry import SchemeConfig
from x_positional.schemes.values import MAX_KINDS, MAX_SCHEMES, MAX_WIDTH

Named = list[tuple[str, PositionScheme]]
"""Schemes by name."""

__all__ = [
    "RULES",
    "IncompatibleConfig",
    "Report",
    "Rule",
    "Use",
    "check",
    "layers_report",
    "model_report",
    "obstacles",
    "require",
]


def check(
    target: AnyConfig | nn.Module | Mapping[str, Any] | str | Path | None = None,
    /,
    *,
    cache: CacheName | None = None,
    cache_window: int | None = None,
    decode_to: int | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    train: bool = False,
    **flags: Any,
) -> Report:
    """Everything that is wrong with a model, or with its intended use, at once. Never raises for a bad config.

    What the model cannot do of the intended use is an error.

    Args:
        target: A config, a built model or stack, its fields as a dict, or the path of a YAML file. Without one, `flags`.
        cache: Decode with a "static", "growing" or "sliding" cache.
        cache_window: Tokens that a sliding cache keeps, if the layers have no window.
        decode_to: Tokens of prompt and new text together.
        device: Run on this device, as "cpu" or "cuda".
        dtype: Run in this dtype, as "float16".
        train: Compute gradients.
        flags: Keyword flags as for `Decoder` (`kind="encoder"` for another class) and, in the same call, for
            `TransformerWrapper`.

    >>> print(check(dim=64, depth=2, heads=2, position="rope", max_seq_len=128, cache="static", decode_to=4096))
    """
    given = {"cache": cache, "cache_window": cache_window, "decode_to": decode_to, "device": device, "dtype": dtype}
    try:
        use, problems = read_use({**given, "train": train})
        read = read_target(target, flags)
        reports = {name: _stack_report(stack, use) for name, stack in read.stacks.items()}
        return merged(read.problems + problems, reports)
    except Exception as error:  # code of a user's scheme, module or mapping
        return Report(
            errors=[f"the check itself failed, in code of the given objects or of the package: {shown(error)}"]
        )


def layers_report(
    config: LayersConfig,
    max_seq_len: int | None = None,
    embed_dim: int | None = None,
    *,
    model: ModelConfig | ContinuousConfig | VisionConfig | None = None,
    use: Use | None = None,
) -> Report:
    """The verdict on a stack of layers, with the length and the embedding width of the wrapper around it."""
    if model is None and (problems := invalid_fields(config)):
        return Report(errors=problems)
    dims, distinct = config.dims(max_seq_len, embed_dim), _distinct(config, max_seq_len)
    if problems := size_problems(config, [kind for _, kind in distinct]):
        return Report(errors=problems)
    windows = tuple(dict.fromkeys(kind.attention_window for _, kind in distinct))
    built = _built([kind for _, kind in distinct], dims)
    blind = config.kind == "encoder" and all(_is_blind(kind, *_parts(kind, built)) for _, kind in distinct)
    partly_embedded = _partly_embedded([kind for _, kind in distinct], built)
    reports = []
    for written, kind in distinct:
        own = {name: getattr(written, name) for name in type(written).model_fields}
        named, unbuilt = _parts(kind, built)
        case = Case(
            whole=config,
            layers=config.model_copy(update={**own, "pattern": ()}),
            parts=kind.parts,
            named=tuple(named),
            everywhere=tuple(pair for pairs, _ in built.values() for pair in pairs),
            unbuilt=tuple(unbuilt),
            windows=windows,
            blind=blind,
            partly_embedded=partly_embedded,
            max_seq_len=max_seq_len,
            embed_dim=embed_dim,
            model=model,
            use=use or Use(),
        )
        reports.append(judge(case))
    return across(reports)


def _distinct(config: LayersConfig, max_seq_len: int | None) -> list[tuple[LayerConfig, LayerConfig]]:
    """Each kind of layer once, as written and with the default position filled in: equal ones are validated together."""
    found: dict[Any, tuple[LayerConfig, LayerConfig]] = {}
    for written, kind in zip(config.layer_kinds(), config.resolved_layers(max_seq_len), strict=True):
        found.setdefault(_key(kind), (written, kind))
    return list(found.values())


def size_problems(config: LayersConfig, distinct: list[LayerConfig]) -> list[str]:
    """Why a stack is too large to be looked at; [] if it is not."""
    found, schemes = [], {_key(part) for kind in distinct for part in kind.parts}
    if config.heads * config.head_dim > MAX_WIDTH:
        found.append(
            f"heads={config.heads} of head_dim={config.head_dim} are {config.heads * config.head_dim} channels, and at most "
            f"{MAX_WIDTH} are supported. Lower one of them."
        )
    if len(distinct) > MAX_KINDS:
        found.append(
            f"pattern has {len(distinct)} different layers, and at most {MAX_KINDS} are supported: each kind has masks, a "
            "cache and a backend of its own. Repeat some of them."
        )
    if len(schemes) > MAX_SCHEMES:
        found.append(
            f"pattern has {len(schemes)} different position schemes, and at most {MAX_SCHEMES} are supported. Repeat some of "
            "them."
        )
    return found


def _built(kinds: Iterable[LayerConfig], dims: Dims) -> dict[Any, tuple[Named, list[str]]]:
    """Name and scheme of each distinct part, or why it cannot be built."""
    parts = {_key(part): part for kind in kinds for part in kind.parts}
    return {key: build_parts((part,), dims) for key, part in parts.items()}


def _parts(kind: LayerConfig, built: Mapping[Any, tuple[Named, list[str]]]) -> tuple[Named, list[str]]:
    """The same for all parts of a layer."""
    found = [built[_key(part)] for part in kind.parts]
    return [scheme for named, _ in found for scheme in named], [problem for _, unbuilt in found for problem in unbuilt]


def _partly_embedded(kinds: Sequence[LayerConfig], built: Mapping[Any, tuple[Named, list[str]]]) -> tuple[str, ...]:
    """Names of the schemes that change the embeddings and are not one scheme, built once, of all kinds of layers."""
    each = [
        {
            (place, _key(part)): name
            for place, part in enumerate(kind.parts)
            for name, scheme in built[_key(part)][0]
            if scheme.overrides("embed")
        }
        for kind in kinds
    ]
    return tuple(
        dict.fromkeys(name for own in each for at, name in own.items() if any(at not in other for other in each))
    )


def _key(value: Any) -> Any:
    """The value as a key; the identity of a config whose own fields cannot be hashed, which then equals itself alone."""
    try:
        hash(value)
    except TypeError:
        return id(value)
    return value


def model_report(config: ModelConfig | ContinuousConfig | VisionConfig, use: Use | None = None) -> Report:
    """The verdict on a model."""
    if problems := invalid_fields(config):
        return Report(errors=problems)
    if isinstance(config, VisionConfig):
        report = layers_report(config.stack, config.trained_patches, model=config, use=use)
        return rules_vision.with_table(report, config)
    embed_dim = config.placed_dim if isinstance(config, ModelConfig) else None
    return layers_report(config.layers, config.max_seq_len, embed_dim, model=config, use=use)


def judge(case: Case) -> Report:
    """Chooses the backend and applies every rule."""
    caps = combined(case.schemes)
    choice, unsupported = _choose(case, caps)
    case = replace(case, backend=choice and choice.name)
    found = {"error": list(case.unbuilt), "warning": [w for part in case.parts for w in part.warnings(case.dims)]}
    for rule in RULES:
        found[rule.verdict] += rule(case)
    report = Report(
        errors=found["error"] + unsupported, warnings=found["warning"], position=" + ".join(case.kinds) or None
    )
    if caps is None or case.unbuilt:  # the remaining schemes do not describe the whole
        return report
    return replace(
        report,
        backend=case.backend,
        reason=choice and _reason(case, choice),
        capabilities=_of_stack(case, caps),
        decodes=rules_use.decodes(case, caps),
        past=rules_use.past(case),
    )


def _of_stack(case: Case, caps: Capabilities) -> Capabilities:
    """What the schemes can do in this stack: kept first tokens take their positions from the cache, so none can be given."""
    kept = any(window.keep_first for window in case.windows)
    return replace(caps, uses_positions=False) if kept else caps


def build_parts(parts: tuple[SchemeConfig, ...], dims: Dims) -> tuple[Named, list[str]]:
    """The schemes that can be built, by name, without memory for parameters; and why the others cannot."""
    named, problems = [], []
    for part in parts:
        if found := part.problems(dims):
            problems += found
            continue
        try:
            named.append((part.label, _build_lightly(part, dims)))
        except Exception as error:  # a user's scheme may raise anything
            problems.append(f"{part.label} cannot be built: {type(error).__name__}: {error}")
    return named, problems


def _build_lightly(part: SchemeConfig, dims: Dims) -> PositionScheme:
    """On the meta device where that works, and without touching the random state."""
    try:
        with torch.device("meta"):
            return part.build(dims)
    except (NotImplementedError, RuntimeError):  # it reads values while it is built
        with torch.random.fork_rng(devices=[]):
            return part.build(dims)


def _is_blind(kind: LayerConfig, named: Named, unbuilt: list[str]) -> bool:
    """Whether layers of this kind, without a causal mask, cannot tell one order of tokens from another."""
    blank = all(scheme.causal_only and not scheme.capabilities().tells_order for _, scheme in named)
    return kind.attention_window.kept is None and not unbuilt and blank


def combined(schemes: list[PositionScheme]) -> Capabilities | None:
    """The capabilities of all schemes together; None where they do not combine."""
    if not schemes or chain_problems(schemes):
        return None
    return Capabilities.combined([scheme.capabilities() for scheme in schemes])


def _choose(case: Case, caps: Capabilities | None) -> tuple[Choice | None, list[str]]:
    """The backend that runs, or why none does."""
    kernel = "fused" if caps is None else caps.kernel  # what cannot run even that cannot run any
    features = case.layers.attn.features(case.attention_window)
    try:
        return choose(case.layers.backend, case.layers.flash, kernel, features), []
    except BackendError as error:
        return None, [str(error)]


def _reason(case: Case, choice: Choice) -> str:
    kernel, others = rules_use.kernel_of(case)
    if kernel is None:
        return choice.reason
    fewest = rules_use.blocks_from(case) if kernel == "math" else None
    short = "" if fewest is None else f" below {fewest} tokens, blocks of queries from there on"
    return (
        f"{choice.reason}; the {kernel} kernel on {case.use.device}{short}{': ' if others else ''}{'; '.join(others)}"
    )


def _stack_report(stack: Stack, use: Use) -> Report:
    config = stack.config
    if isinstance(config, LayersConfig):
        report = layers_report(config, stack.max_seq_len, stack.embed_dim, use=use)
    else:
        report = model_report(config, use)
    if not stack.doubtful:
        return report
    sure = [e for e in report.errors if not any(name in e for name in stack.doubtful)]
    return Report(errors=sure)
