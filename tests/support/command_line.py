"""The console script, called in this process."""

from collections.abc import Callable
from pathlib import Path

import pytest

from x_positional.cli.main import main

Call = Callable[..., tuple[int, str, str]]
"""Arguments -> (exit code, standard output, standard error)."""


def command_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path) -> Call:
    """Calls the console script in `folder`, with wide lines and without colours."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return (caught.value.code or 0), out, err  # type: ignore[return-value]

    return call
