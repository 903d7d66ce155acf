"""The console script as a fixture."""

from pathlib import Path

import pytest

from tests.support.command_line import Call, command_line


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    return command_line(capsys, monkeypatch, tmp_path)
