"""What keeps a model of x-transformers from becoming one of ours, all of it at once."""

from collections.abc import Iterable


class ConversionError(ValueError):
    """A model that cannot be converted, with every reason. problems: all of them."""

    def __init__(self, what: str, problems: Iterable[str]):
        self.problems = list(dict.fromkeys(problems))
        super().__init__("\n".join([what, *(f"- {problem}" for problem in self.problems)]))
