"""What cannot work, what deserves a second look, and which backend will run, before anything is built."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from x_positional.attention.backends import Choice, choose, obstacles
from x_positional.config.layers import ContinuousConfig, LayerConfig, LayersConfig, ModelConfig
from x_positional.config.validate import rules_parts as part_rules
from x_positional.config.validate import rules_stack as rules
from x_positional.config.validate import rules_use as use_rules
from x_positional.config.validate import rules_vision as vision_rules
from x_positional.config.validate.case import CacheName, Case, Use, features, part_name, resolve_kinds
from x_positional.config.validate.report import Report, across, merged, require
from x_positional.config.validate.target import AnyConfig, Stack, read_target
from x_positional.config.vision import VisionConfig
from x_positional.errors import BackendError, IncompatibleConfig
from x_positional.schemes.base import Capabilities, Dims, PositionScheme
from x_positional.schemes.registry import SchemeConfig

__all__ = [
    "IncompatibleConfig",
    "Report",
    "Use",
    "check",
    "features",
    "layers_report",
    "model_report",
    "obstacles",
    "require",
    "resolve_kinds",
]


DTYPES = {
    str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)
}


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
    """Everything that is wrong with a model, or with what is asked of it, at once. Never raises for a bad config.

    target: a config, a built model or stack, its fields as a dict, the path of a YAML file; or nothing, and then keyword
    flags as for `Decoder` (`kind="encoder"` for another class) and, in the same call, for `TransformerWrapper`.
    The rest says what the model is for, and what it cannot do becomes an error: cache "static", "growing" or "sliding"
    (with cache_window tokens if the layers have no window), decode_to tokens of prompt and new text, device "cpu" or
    "cuda", dtype as "float16", train for gradients.

    >>> print(check(dim=64, depth=2, heads=2, position="rope", max_seq_len=128, cache="static", decode_to=4096))
    """
    use, problems = _read_use(cache, cache_window, decode_to, device, dtype, train)
    read = read_target(target, flags)
    reports = {name: _stack_report(stack, use) for name, stack in read.stacks.items()}
    return merged(read.problems + problems, reports)


def layers_report(
    config: LayersConfig,
    max_seq_len: int | None = None,
    embed_dim: int | None = None,
    *,
    model: ModelConfig | ContinuousConfig | VisionConfig | None = None,
    use: Use | None = None,
) -> Report:
    """The verdict on a stack of layers, with the length and the embedding width of the wrapper around it."""
    stack, reports = resolve_kinds(config, max_seq_len), []
    dims = config.dims(max_seq_len, embed_dim)
    blind = config.kind == "encoder" and all(_is_blind(kind, dims) for kind in stack)
    for place, (said, kind) in enumerate(zip(config.layer_kinds(), stack, strict=True)):
        if kind in stack[:place]:
            continue
        own = {name: getattr(said, name) for name in type(said).model_fields}
        case = Case(
            layers=config.model_copy(update={**own, "pattern": ()}),
            parts=kind.parts,
            stack=stack,
            blind=blind,
            max_seq_len=max_seq_len,
            embed_dim=embed_dim,
            model=model,
            use=use or Use(),
        )
        reports.append(judge(case))
    return across(list(rules.the_pattern_is_the_whole_word(config)), reports)


def model_report(config: ModelConfig | ContinuousConfig | VisionConfig, use: Use | None = None) -> Report:
    """The verdict on a model."""
    if isinstance(config, VisionConfig):
        report = layers_report(config.stack, config.trained_patches, model=config, use=use)
        return vision_rules.with_table(report, config)
    embed_dim = config.placed_dim if isinstance(config, ModelConfig) else None
    return layers_report(config.layers, config.max_seq_len, embed_dim, model=config, use=use)


def judge(case: Case) -> Report:
    """Applies every rule, and asks which backend runs."""
    dims = case.dims
    errors = [e for rule in (*rules.SETTINGS, *part_rules.SETTINGS) for e in rule(case)]
    warnings = [w for part in case.parts for w in part.warnings(dims)]
    named, unbuilt = build_parts(case.parts, dims)
    errors += unbuilt
    case = replace(case, named=tuple(named))
    for rule in (*rules.COMBINATIONS, *part_rules.COMBINATIONS, *use_rules.ERRORS):
        errors += rule(case)
    errors += vision_rules.found(vision_rules.ERRORS, case)
    warnings += vision_rules.found(vision_rules.WARNINGS, case)
    for rule in (*rules.WARNINGS, *part_rules.WARNINGS, *use_rules.WARNINGS):
        warnings += rule(case)
    caps, choice = combined(case.schemes), None
    try:
        kernel = "fused" if caps is None else caps.kernel  # what cannot run even that cannot run any
        choice = choose(
            case.layers.backend, case.layers.flash, kernel, features(case.layers.attn, case.attention_window)
        )
        errors += [e for rule in use_rules.BACKEND_ERRORS for e in rule(case, choice)]
        warnings += [w for rule in use_rules.BACKEND_WARNINGS for w in rule(case, choice)]
    except BackendError as error:
        errors.append(str(error))
    report = Report(errors=errors, warnings=warnings, position=" + ".join(case.kinds) or None)
    if caps is None or unbuilt:  # what is left of the schemes says nothing about the whole
        return report
    return replace(
        report,
        backend=choice and choice.name,
        reason=choice and _reason(case, choice),
        capabilities=caps,
        decodes=use_rules.decodes(case, caps),
        past=use_rules.past(case),
    )


def build_parts(parts: tuple[SchemeConfig, ...], dims: Dims) -> tuple[list[tuple[str, PositionScheme]], list[str]]:
    """By name, one instance of each scheme that can be built, enough to ask what it can do; and why others cannot."""
    named, problems = [], []
    for part in parts:
        if found := part.problems(dims):
            problems += found
            continue
        try:
            named.append((part_name(part), _build_lightly(part, dims)))
        except Exception as error:  # a scheme of the user's own: whatever it raises is a problem of the config
            problems.append(f"{part_name(part)} cannot be built: {type(error).__name__}: {error}")
    return named, problems


def _build_lightly(part: SchemeConfig, dims: Dims) -> PositionScheme:
    """Without memory for parameters where that works, and without a trace in the random numbers."""
    try:
        with torch.device("meta"):
            return part.build(dims)
    except (NotImplementedError, RuntimeError):  # it reads values while it is built
        with torch.random.fork_rng(devices=[]):
            return part.build(dims)


def _is_blind(kind: LayerConfig, dims: Dims) -> bool:
    """Whether layers of this kind, without a causal mask, cannot tell one order of tokens from another."""
    named, unbuilt = build_parts(kind.parts, dims)
    blank = all(scheme.causal_only and not scheme.capabilities().tells_order for _, scheme in named)
    return kind.attention_window.kept is None and not unbuilt and blank


def combined(schemes: list[PositionScheme]) -> Capabilities | None:
    """What the schemes can do together; None where they do not combine."""
    if not schemes or rules.chain_problems(schemes):
        return None
    return Capabilities.combined([scheme.capabilities() for scheme in schemes])


def _reason(case: Case, choice: Choice) -> str:
    kernel, others = use_rules.kernel_of(case, choice)
    if kernel is None:
        return choice.reason
    return f"{choice.reason}; the {kernel} kernel on {case.use.device}{': ' if others else ''}{'; '.join(others)}"


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


def _read_use(
    cache: Any, cache_window: Any, decode_to: Any, device: Any, dtype: Any, train: bool
) -> tuple[Use, list[str]]:
    """What was asked, without what makes no sense; and that."""
    problems: list[str] = []
    if cache is not None and cache not in get_args(CacheName):
        problems.append(f"cache={cache!r} is none of {', '.join(map(repr, get_args(CacheName)))}.")
        cache = None
    use = Use(
        cache=cache,
        cache_window=_count("cache_window", cache_window, problems),
        device=_device(device, problems),
        decode_to=_count("decode_to", decode_to, problems),
        dtype=_dtype(dtype, problems),
        train=bool(train),
    )
    return use, problems


def _count(name: str, value: Any, problems: list[str]) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    problems.append(f"{name}={value!r} must be a whole number of tokens, 1 or more.")
    return None


def _device(value: Any, problems: list[str]) -> str | None:
    if isinstance(value, str | torch.device):
        try:
            return torch.device(value).type
        except RuntimeError:
            pass  # told below
    if value is not None:
        problems.append(f"device={value!r} is no device. Use 'cpu' or 'cuda'.")
    return None


def _dtype(value: Any, problems: list[str]) -> torch.dtype | None:
    dtype = DTYPES.get(value.removeprefix("torch.")) if isinstance(value, str) else value
    if isinstance(dtype, torch.dtype):
        return dtype
    if value is not None:
        problems.append(f"dtype={value!r} is no dtype of a model. Use {', '.join(map(repr, DTYPES))}.")
    return None
