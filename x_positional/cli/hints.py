"""How to call the console script, for the commands that messages suggest next."""

import shlex
import shutil
import sys
from pathlib import Path


def command() -> str:
    """`x-positional`, or its path if its environment is not active."""
    name = "x-positional"
    script = Path(sys.executable).with_name(name)
    if shutil.which(name) is not None or not script.is_file():
        return name
    below_here = script.is_relative_to(Path.cwd())
    return shlex.quote(str(script.relative_to(Path.cwd()) if below_here else script))
