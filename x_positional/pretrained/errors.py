"""What can be wrong with a published model's folder, all of it at once."""

from collections.abc import Iterable

MOST = 12
"""Problems shown in full; a wrong folder has one per tensor."""


class PretrainedError(ValueError):
    """A folder that cannot be read, or a model that cannot be written, with every reason. problems: all of them."""

    def __init__(self, what: str, problems: Iterable[str]):
        self.problems = list(problems)
        shown = [f"- {problem}" for problem in self.problems[:MOST]]
        more = len(self.problems) - len(shown)
        super().__init__("\n".join([what, *shown, *([f"- and {more} more"] if more > 0 else [])]))
