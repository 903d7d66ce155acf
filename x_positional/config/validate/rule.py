"""The validator's rules, in one list: a rule is a function, registered by a decorator, that yields messages.

Its docstring states what holds; a message gives the value, the reason and the way out. What concerns one scheme alone is
checked by `problems` and `warnings` of its config, in the scheme's own file.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

from x_positional.config.validate.case import Case

Verdict = Literal["error", "warning"]
Needs = Literal["config", "schemes", "backend"]
Messages = Callable[..., Iterator[str]]
F = TypeVar("F", bound=Messages)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One registered rule."""

    messages: Messages
    """Takes the case, and the model too where `models` is set."""
    verdict: Verdict
    """What its messages are."""
    needs: Needs
    """What must exist before it can run: nothing beside the config, a scheme that can be built, or a backend."""
    models: type | None
    """The kind of model that it applies to. None is any, and stacks without a model."""

    def __call__(self, case: Case) -> Iterator[str]:
        """Its messages; none where it does not apply."""
        exists = {"config": True, "schemes": bool(case.named), "backend": case.backend is not None}
        if not exists[self.needs]:
            return
        if self.models is None:
            yield from self.messages(case)
        elif isinstance(case.model, self.models):
            yield from self.messages(case, case.model)


RULES: list[Rule] = []


def rule(verdict: Verdict = "error", *, needs: Needs = "config", models: type | None = None) -> Callable[[F], F]:
    """Registers the function below as a rule."""

    def register(function: F) -> F:
        RULES.append(Rule(messages=function, verdict=verdict, needs=needs, models=models))
        return function

    return register
