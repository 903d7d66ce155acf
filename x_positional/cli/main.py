"""Entry of the console script: works without the extras far enough to say which one is missing."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit: 0 done, 1 a check that found errors, 2 a problem of the request, 130 interrupted."""
    try:
        import typer  # noqa: F401
    except ImportError:
        _fail("the command line needs typer: pip install 'x-positional[train]' (or [cli] for check and generate alone)")
    from x_positional.cli.app import app
    from x_positional.training.errors import UserError

    try:
        app(args=None if arguments is None else list(arguments), prog_name="x-positional")
    except UserError as error:
        _fail(str(error))
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        _fail(f"{error.strerror or error}: {error.filename}" if error.filename else str(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
