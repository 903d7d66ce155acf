"""What the fixture `call` of the command line's tests is."""

from collections.abc import Callable

Call = Callable[..., tuple[int, str, str]]
"""Arguments -> exit code, standard output, standard error."""
