from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points

import pytest
from typer.testing import Result

import inlay
from inlay.cli import main

Command = Callable[..., Result]


def test_version(inlay_command: Command) -> None:
    result = inlay_command("--version")
    assert (result.exit_code, result.stdout) == (0, f"inlay {inlay.__version__}\n")


def test_alone_it_shows_the_help(inlay_command: Command) -> None:
    result = inlay_command()
    assert result.exit_code == 0
    assert result.stdout.strip() == inlay_command("--help").stdout.strip()
    for command in ("sites", "read", "generate"):
        assert command in result.stdout


@pytest.mark.parametrize("command", ["sites", "read", "generate"])
def test_every_option_has_a_help_text(inlay_command: Command, command: str) -> None:
    result = inlay_command(command, "--help")
    assert result.exit_code == 0
    lines = [line.strip("│ *") for line in result.stdout.splitlines() if line.strip("│ *").startswith("--")]
    assert lines
    for line in lines:
        assert len(line.split("  ", 1)[1].split()) >= 4, line  # type, and a sentence


def test_an_unknown_command_is_refused(inlay_command: Command) -> None:
    result = inlay_command("reed")
    assert result.exit_code == 2
    assert "reed" in result.stderr


def test_the_script_is_main() -> None:
    (script,) = entry_points(group="console_scripts", name="inlay")
    assert script.load() is main


@pytest.mark.parametrize(
    "code",
    [
        "import inlay",
        "import inlay; dir(inlay); inlay.errors.InlayError; inlay.__version__",
        "import inlay.cli",
        "import inlay.cli; sys.argv = ['inlay', '--version']; inlay.cli.main()",
        "import inlay.cli; sys.argv = ['inlay', 'read', '--help']; inlay.cli.main()",
    ],
)
def test_torch_is_not_loaded(code: str) -> None:
    program = f"""
import atexit, sys
heavy = {{"torch", "transformers", "numpy", "safetensors", "huggingface_hub"}}
atexit.register(lambda: print("loaded:", sorted(heavy & set(sys.modules))))
{code}
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded: []"
