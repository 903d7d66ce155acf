"""Entry of the console script: works without the extras far enough to say which one is missing."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

NEEDED = ("typer", "numpy")  # what the extras bring and the package alone does not


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit: 0 done, 1 a check that found errors, 2 a problem of the request, 130 interrupted."""
    try:
        from x_positional.cli.app import app
    except ModuleNotFoundError as error:
        if error.name not in NEEDED:
            raise
        _fail(f"the command line needs {error.name}: pip install 'x-positional[train]'")
    guarded(lambda: app(args=None if arguments is None else list(arguments), prog_name="x-positional"))


def guarded(command: Callable[[], object]) -> None:
    """Call `command`; a problem that the user can fix becomes a message and exit code 2, not a traceback."""
    from x_positional.errors import PretrainedError, UserError

    try:
        command()
    except (UserError, PretrainedError) as error:
        _fail(str(error))
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        _fail(f"{error.strerror or error}: {error.filename}" if error.filename else str(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
