"""Entry point of the console script; without the extras it reports which one is missing."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

FROM_EXTRAS = ("typer", "numpy")  # dependencies of the command line that only the extras install


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit: 0 done, 1 `check` or `verify` failed, 2 invalid request, 130 interrupted."""
    try:
        from x_positional.cli.app import app
    except ModuleNotFoundError as error:
        if error.name not in FROM_EXTRAS:
            raise
        _fail(f"the command line needs {error.name}: pip install 'x-positional[train]'")
    guarded(lambda: app(args=None if arguments is None else list(arguments), prog_name="x-positional"))


def guarded(command: Callable[[], object]) -> None:
    """Call `command`; an error that the user can fix is printed without a traceback and exits with code 2."""
    from x_positional.errors import PretrainedError, UserError

    try:
        command()
    except (UserError, PretrainedError) as error:
        _fail(str(error))
    except BrokenPipeError:  # the reader of the pipe exited, as `head` does
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
