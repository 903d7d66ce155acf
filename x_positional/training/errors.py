"""The one exception type for problems that the person who started the command can fix."""


class UserError(ValueError):
    """A problem in what was asked: bad config, unreadable data, foreign checkpoint.

    The command line prints the message without a traceback and ends with exit code 2.
    """


class NonFiniteLoss(UserError):
    """The loss or the gradient became NaN or infinite; the message names the step and the last good checkpoint."""


class MissingExtra(UserError):
    """A package of an optional extra is not installed; the message says what to install."""


def listed(title: str, problems: list[str]) -> str:
    """One message for all `problems`, one line each."""
    return "\n".join([title, *(f"  - {problem}" for problem in problems)])
