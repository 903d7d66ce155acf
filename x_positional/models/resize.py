"""The vocabulary and the position tables of a built model, resized in place.

V vocabulary, N rows, C channels.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, Protocol, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from x_positional.attention.cache import whole_number
from x_positional.config.layers import LayersConfig
from x_positional.config.models import ModelConfig
from x_positional.config.validate import model_report, require
from x_positional.errors import ArgumentError, did_you_mean, listed, shown
from x_positional.models.stacks import ConfiguredLayers, parts_of
from x_positional.modules.plain import plain_weight
from x_positional.modules.quantized import Int8Embedding, Int8Linear
from x_positional.schemes.absolute import Absolute, LearnedAbsolute
from x_positional.schemes.precision import wide_dtype
from x_positional.schemes.registry import Custom, SchemeConfig

NewRows = Literal["mean", "fresh"]
"""New rows of a vocabulary: the mean of the old ones, or random as in a new model."""
NewTable = Literal["slice", "interpolate", "fresh"]
"""What a position table of another length holds: its first rows, all of them interpolated, or old rows and then random ones."""
Fresh = Callable[[int], Tensor]
"""A number of rows -> as many as a new model has, random [N C] or [N]."""
Rows = tuple[nn.Module, str, Fresh]
"""A module, the name of its parameter with a row for each id, and its fresh rows."""


class Language(Protocol):
    """What is resized of a model; `TransformerWrapper` has it."""

    config: ModelConfig
    num_tokens: int
    max_seq_len: int
    attn_layers: ConfiguredLayers

    def vocabulary(self) -> list[Rows]: ...


class VocabularySize:
    """A resize of one model's vocabulary, checked before anything is changed.

    Args:
        net: the model.
        num_tokens: the new V.
        init: what new rows are.
        pad_value: an id that has to stay; None is none.

    Raises:
        ArgumentError: a size or `init` that is none, a quantized or modified matrix, an id that would be lost.
        IncompatibleConfig: a config that the size does not fit.
    """

    def __init__(self, net: Language, num_tokens: int, init: NewRows, pad_value: int | None = None):
        known = get_args(NewRows)
        if init not in known:
            raise ArgumentError(f"unknown init={shown(init)}; {did_you_mean(str(init), known)}")
        self.net, self.init, self.size = net, init, whole_number("num_tokens", num_tokens)
        update = {"num_tokens": self.size}
        if net.config.logits_dim == net.num_tokens:
            update["logits_dim"] = self.size
        self.config = net.config.model_copy(update=update)
        require(model_report(self.config))
        self.rows = net.vocabulary()
        problems = list(_vocabulary_problems(self.rows))
        if pad_value is not None and pad_value >= self.size:
            problems.append(
                f"pad_value={pad_value} is fed to the model, so num_tokens must be at least {pad_value + 1}."
            )
        if problems:
            raise ArgumentError(listed(f"the vocabulary cannot be resized to {self.size} tokens:", problems))

    def apply(self, shared: dict[int, nn.Parameter] | None = None) -> None:
        """Replace the parameters. Those of a table that two modules share stay shared.

        shared: new parameters by the id of the old one, of the models that are resized together.
        """
        known = {} if shared is None else shared
        for module, name, fresh in self.rows:
            old = getattr(module, name)
            if len(old) == self.size:
                continue
            new = known.setdefault(id(old), resized(old, self.size, fresh if self.init == "fresh" else None))
            setattr(module, name, new)
        for module, _, _ in self.rows:
            if isinstance(module, nn.Embedding):
                module.num_embeddings = self.size
            elif isinstance(module, nn.Linear):
                module.out_features = self.size
        self.net.config, self.net.num_tokens = self.config, self.size


def resized(old: nn.Parameter, size: int, fresh: Fresh | None) -> nn.Parameter:
    """The first rows of a parameter [N C] or [N], bit for bit, and fresh ones, or their mean, up to `size`."""
    held, extra = old.detach(), size - len(old)
    rows = held[:size].clone()
    if extra > 0:
        wide = wide_dtype(old.dtype)
        new = held.to(wide).mean(0, keepdim=True).expand(extra, *old.shape[1:]) if fresh is None else fresh(extra)
        rows = torch.cat([rows, new.to(old.device, old.dtype)])
    return nn.Parameter(rows, requires_grad=old.requires_grad)


def fresh_rows(make: Callable[[int], nn.Module], name: str) -> Fresh:
    """Rows of a parameter of a new module. make: (number of rows) -> the module."""
    return lambda count: getattr(make(count), name).detach()


def _vocabulary_problems(rows: list[Rows]) -> Iterator[str]:
    for module, name, _ in rows:
        kind = type(module).__name__
        if isinstance(module, Int8Embedding | Int8Linear):
            yield f"a {kind} holds int8 rows. Resize the model before quantize(model)."
        elif isinstance(module, nn.Embedding | nn.Linear):
            if plain_weight(module) is None:
                yield f"a modified {kind} holds its rows. Merge adapters, remove hooks and parametrizations first."
        elif name == "weight":
            where = f"{type(module).__module__}.{kind}"
            yield f"a {where} holds its rows, which wraps a table. Merge or unload adapters, or unwrap it first."


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Seeds torch's generator of the CPU, and restores its state afterwards; None leaves it alone. What is made is no inference
    tensor: those cannot be trained."""
    with torch.inference_mode(False):
        if seed is None:
            yield
            return
        if whole_number("seed", seed, least=0) >= 2**64:
            raise ArgumentError(f"seed={seed} must be an integer from 0 to 2**64 - 1.")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield


class LengthSize:
    """A resize of one model's max_seq_len, checked before anything is changed.

    Args:
        net: the model.
        max_seq_len: the new length.
        how: what a table holds then.

    Raises:
        ArgumentError: a size or `how` that is none, a table that `how` does not fit, a scheme that is built for the old length.
        IncompatibleConfig: a config that the size does not fit.
    """

    def __init__(self, net: Language, max_seq_len: int, how: NewTable | None):
        size = whole_number("max_seq_len", max_seq_len)
        if how is not None and how not in get_args(NewTable):
            raise ArgumentError(f"unknown how={shown(how)}; {did_you_mean(str(how), get_args(NewTable))}")
        self.net, self.size, own = net, size, net.config
        self.how: NewTable | None = how
        self.tables = _tables(net.attn_layers)
        problems = [p for table in self.tables for p in _table_problems(table, size, how)]
        problems += _length_problems(net.attn_layers, own, size)
        if problems:
            raise ArgumentError(listed(f"max_seq_len={own.max_seq_len} cannot become {size}:", dict.fromkeys(problems)))
        self.config = own.model_copy(update={"max_seq_len": size, "layers": _with_rows(own.layers, size)})
        require(model_report(self.config))

    def apply(self) -> None:
        """Replace the tables."""
        net, layers, size = self.net, self.net.attn_layers, self.size
        for table in self.tables:
            if table.limit != size:
                table.table, table.limit = _resized_table(table, size, self.how), size
        layers.dims, layers.config = replace(layers.dims, max_seq_len=size), self.config.layers
        net.config, net.max_seq_len = self.config, size


def _tables(layers: ConfiguredLayers) -> list[LearnedAbsolute]:
    """The learned tables that the config describes, rather than instances of the caller's."""
    given = {id(part.scheme) for part in parts_of(layers.config) if isinstance(part, Custom)}
    schemes = layers.position_schemes
    return [scheme for scheme in schemes if isinstance(scheme, LearnedAbsolute) and id(scheme) not in given]


def _table_problems(table: LearnedAbsolute, size: int, how: NewTable | None) -> Iterator[str]:
    rows = len(table.table) - table.offset
    if size == rows:
        return
    if type(table.table) is not nn.Parameter:
        yield "the position table is a modified parameter. Remove parametrizations first."
    if how is None:
        fitting = "'slice' (the first rows)" if size < rows else "'fresh' (random rows after the old ones)"
        yield f"the position table has {rows} rows, and how= is not set. Use {fitting} or 'interpolate' (all rows, linearly)."
    elif how == "slice" and size > rows:
        yield f"how='slice' keeps the first rows, but the position table has only {rows}. Use 'fresh' or 'interpolate'."
    elif how == "fresh" and size < rows:
        yield f"how='fresh' adds rows, but the position table has {rows} already. Use 'slice' or 'interpolate'."


def _resized_table(scheme: LearnedAbsolute, size: int, how: NewTable | None) -> nn.Parameter:
    """[N + offset C] -> [size + offset C]. Rows of the offset stay."""
    old, offset = scheme.table, scheme.offset
    if how != "interpolate":
        return resized(old, size + offset, lambda extra: torch.randn(extra, old.shape[1]))
    held = old.detach()
    wide = wide_dtype(old.dtype)
    rows = F.interpolate(held[offset:].to(wide).T[None], size=size, mode="linear", align_corners=True)[0].T
    return nn.Parameter(torch.cat([held[:offset], rows.to(old.dtype)]), requires_grad=old.requires_grad)


def _length_problems(layers: ConfiguredLayers, config: ModelConfig, size: int) -> Iterator[str]:
    """Schemes whose numbers follow from max_seq_len."""
    now, then = layers.dims, replace(layers.dims, max_seq_len=size)
    for part in parts_of(config.layers):
        if isinstance(part, Absolute) or "max_seq_len" not in part.model_dims():
            continue
        if type(part).resolved is SchemeConfig.resolved or part.resolved(now) != part.resolved(then):
            yield (
                f"{part.label} is built for max_seq_len={now.max_seq_len}, and would compute other numbers for {size}. To accept "
                "these, build a model of model.config.model_copy(update={'max_seq_len': ...}) and load model.state_dict(); to keep "
                "the old ones, set the length in the scheme's own config first (length=, center= or trained=)."
            )


def _with_rows(layers: LayersConfig, size: int) -> LayersConfig:
    """The same layers, where a table with its own number of rows has `size`."""

    def each(position: Any) -> Any:
        if position is None:
            return None
        own = [isinstance(part, Absolute) and part.max_seq_len is not None for part in position]
        pairs = zip(position, own, strict=True)
        return tuple(part.model_copy(update={"max_seq_len": size}) if sized else part for part, sized in pairs)

    pattern = tuple(kind.model_copy(update={"position": each(kind.position)}) for kind in layers.pattern)
    return layers.model_copy(update={"position": each(layers.position), "pattern": pattern})
