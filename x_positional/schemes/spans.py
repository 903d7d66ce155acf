"""A range of queries or keys."""

from typing import NamedTuple


class Span(NamedTuple):
    """Queries or keys start .. stop - 1. Not a `range`, for which torch.compile would recompile at each length."""

    start: int
    """The first."""
    stop: int
    """One after the last."""

    @property
    def cut(self) -> slice:
        """The span as a slice."""
        return slice(self.start, self.stop)
