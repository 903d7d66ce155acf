"""What reading a checkpoint may cost: its config is compared with its tensors before a layer is built, and whatever foreign
data makes other code raise becomes a PretrainedError.
"""

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from x_positional.errors import ConfigError, MissingExtra, PretrainedError, RopeError, XPositionalError
from x_positional.pretrained.config_json.codecs import Fields, Hf
from x_positional.pretrained.family import Family
from x_positional.pretrained.tensors.files import Tensors

COUNTS = ("depth",)
"""Fields that count layers: each has a tensor."""
WIDTHS = (
    "heads",
    "kv_heads",
    "dim",
    "head_dim",
    "emb_dim",
    "num_tokens",
    "token_types",
    "experts",
    "context_dim",
    "moe",
    "mla",
)
"""Fields that are an axis of some tensor, or a factor of one."""
SLACK = 8
"""Most axes or parameters that one tensor is split into, rounded up: queries, keys and values of a fused projection are 3."""
FEW = 64
"""Parameters that a model may have beyond its tensors."""


@dataclass(frozen=True)
class Limits:
    """The largest counts and widths that the tensors of a checkpoint allow."""

    tensors: int
    """Number of tensors."""
    axis: int
    """The longest axis of all tensors."""

    @classmethod
    def of(cls, tensors: Tensors) -> "Limits":
        """The limits of a checkpoint."""
        names = tensors.names()
        return cls(len(names), max((size for name in names for size in tensors.shape(name)), default=0))

    def problems(self, named: Iterable[tuple[str, str, Any]]) -> list[str]:
        """(Label, name of the field, value) -> the values that are too large."""
        out = []
        for label, field, value in named:
            if not isinstance(value, int) or isinstance(value, bool):
                continue
            if field in COUNTS and value > self.tensors:
                out.append(f"{label}={value}, but the checkpoint has only {self.tensors} tensors.")
            if field in WIDTHS and value > SLACK * self.axis:
                out.append(f"{label}={value}, but the longest axis of the checkpoint's tensors is {self.axis}.")
        return out

    def config_problems(self, family: Family, hf: Hf) -> list[str]:
        """Keys of a config.json that are too large. Only codecs of one key and one field are evaluated."""
        named = []
        for codec in family.codecs:
            if len(codec.keys) == 1 and len(codec.sets) == 1 and codec.sets[0].split(".")[-1] in COUNTS + WIDTHS:
                try:
                    value = codec.to_fields(hf)[codec.sets[0]]
                except (ConfigError, RopeError, ArithmeticError, LookupError, TypeError):  # reported by the family
                    continue
                named.append((codec.keys[0], codec.sets[0].split(".")[-1], value))
        return self.problems(named)

    def tree_problems(self, tree: Any, path: str = "") -> list[str]:
        """The same for nested fields."""
        return self.problems(_leaves(tree, path))

    def field_problems(self, fields: Fields) -> list[str]:
        """The same for fields by path."""
        return [problem for path, value in fields.items() for problem in self.tree_problems({path: value})]


def _leaves(tree: Any, path: str) -> Iterator[tuple[str, str, Any]]:
    """(Path, last key, value) of every value; entries of a list are named by the list's key."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _leaves(value, path)
    else:
        yield path, path.rpartition(".")[2], tree


@contextmanager
def at_most(tensors: int) -> Iterator[None]:
    """Stop a model from being built with many more parameters than there are tensors. Raises PretrainedError."""
    left, thread = SLACK * tensors + FEW, threading.get_ident()

    def count(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal left
        left -= threading.get_ident() == thread
        if left < 0:
            raise PretrainedError(
                "this model cannot be built:", [f"it has many more parameters than {tensors} tensors."]
            )

    hook: Any = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def failures(what: str) -> Iterator[None]:
    """Raise whatever reading foreign data raises as a PretrainedError that begins with `what`."""
    try:
        yield
    except (PretrainedError, MissingExtra, Warning):
        raise
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}." for one in error.errors(include_url=False)]
        raise PretrainedError(what, wrong) from error
    except XPositionalError as error:
        lines = [line.strip().removeprefix("- ") for line in str(error).splitlines()]
        raise PretrainedError(what, lines) from error
    except Exception as error:  # a value of a wrong type may fail anywhere
        reason = f"a value has a wrong type or size ({type(error).__name__}: {str(error)[:200]})"
        raise PretrainedError(what, [reason]) from error
