"""A tiny random model's folder and the command line, for every test of a command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.cli.random_folder import save_random_folder
from typer.testing import CliRunner, Result

from inlay.cli import app


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_folder(tmp_path_factory.mktemp("chat"), chat=True)


@pytest.fixture
def inlay_command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """`inlay_command("sites", folder)`; a wide terminal, so that no table folds."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: Any) -> Result:
        return CliRunner().invoke(app, [str(a) for a in arguments])

    return run


@pytest.fixture
def refused(inlay_command: Callable[..., Result]) -> Callable[..., str]:
    """Runs a command that must fail as our errors do: exit code 2, nothing on stdout, one line on stderr."""

    def run(*arguments: Any) -> str:
        result = inlay_command(*arguments)
        assert result.exit_code == 2, result.output
        assert result.stdout == ""
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
        return result.stderr

    return run
