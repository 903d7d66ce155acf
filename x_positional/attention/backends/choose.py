"""Which backend runs a kind of layer, and why."""

from dataclasses import dataclass
from typing import Literal

from x_positional.attention.backends.base import Backend
from x_positional.attention.backends.eager import Blockwise, Eager
from x_positional.attention.backends.flex import Flex
from x_positional.attention.backends.sdpa import Sdpa
from x_positional.attention.backends.varlen import Varlen
from x_positional.errors import BackendError, did_you_mean
from x_positional.schemes.base import Kernel

BackendName = Literal["auto", "eager", "blockwise", "sdpa", "flex", "varlen"]
BACKENDS: dict[str, Backend] = {b.name: b for b in (Eager(), Blockwise(), Sdpa(), Flex(), Varlen())}

_NEEDS: dict[str, str] = {
    "fused": "changes only queries and keys, so any kernel supports it",
    "bias": "adds a pointwise bias to the scores",
    "rows": "needs whole rows of scores, which fused kernels never materialize",
}


@dataclass(frozen=True)
class Choice:
    """A backend by name, and why it was chosen."""

    name: str
    reason: str

    @property
    def backend(self) -> Backend:
        return BACKENDS[self.name]


def obstacles(name: str, kernel: Kernel, features: frozenset[str]) -> list[str]:
    """Why a backend does not support a kernel class with these features ("softcap", "sinks", "dropout", "chunk",
    "keep_first"); [] if it does."""
    backend = BACKENDS[name]
    found = []
    if kernel not in backend.kernels:
        found.append(f"the scheme {_NEEDS[kernel]}")
    return found + [reason for feature, reason in backend.refuses.items() if feature in features]


def choose(requested: str, flash: bool, kernel: Kernel, features: frozenset[str] = frozenset()) -> Choice:
    """The backend for a layer.

    Args:
        requested: a name, or "auto".
        flash: require one that never holds the whole score matrix.
        kernel: what the scheme needs.
        features: what else the layer needs, see `obstacles`.

    Raises:
        BackendError: where the request cannot be met; it names the backends that can.
    """
    if requested not in BACKENDS and requested != "auto":
        raise BackendError(f"unknown backend {requested!r}; {did_you_mean(requested, ['auto', *BACKENDS])}")
    able = [name for name in ("sdpa", "blockwise", "eager", "flex") if not obstacles(name, kernel, features)]
    if requested != "auto":
        if found := obstacles(requested, kernel, features):
            raise BackendError(
                f"backend={requested!r} does not support this: {'; '.join(found)}. Use one of: {', '.join(able)}."
            )
        if flash and requested == "eager":
            raise BackendError(
                "attn_flash=True requires a backend that never holds the whole score matrix, which backend='eager' does. "
                f"Use backend={' or '.join(repr(n) for n in able if n != 'eager')}."
            )
        return Choice(requested, "requested by name")
    if "sdpa" in able:
        return Choice("sdpa", f"fused: the scheme {_NEEDS[kernel]}")
    why = "; ".join(obstacles("sdpa", kernel, features))
    return Choice("blockwise", f"one block of queries at a time, exact: {why}")
