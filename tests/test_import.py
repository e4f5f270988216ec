"""`import inlay` is light, and every public name is there."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys

import pytest

import inlay


def loaded_after(code: str) -> set[str]:
    """The modules that a fresh interpreter holds after `code`."""
    code = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_import_loads_neither_torch_nor_transformers() -> None:
    loaded = loaded_after("import inlay, inlay.errors\ninlay.__version__\ndir(inlay)\nhasattr(inlay, 'nothing')")
    assert "inlay" in loaded
    heavy = {"torch", "transformers", "numpy", "tokenizers", "safetensors", "huggingface_hub", "rich", "pydantic"}
    assert not loaded & heavy


def test_tab_completion_before_the_first_use() -> None:
    code = "import inlay\nassert set(inlay.__all__) <= set(dir(inlay)) and dir(inlay) == sorted(dir(inlay))"
    assert "torch" not in loaded_after(code)


@pytest.mark.parametrize("name", inlay.__all__)
def test_every_public_name_resolves(name: str) -> None:
    value = getattr(inlay, name)
    assert value is getattr(inlay, name), "one object, also at the second use"
    assert value is vars(inlay)[name], "later uses do not go through __getattr__"


def test_names() -> None:
    in_order = sorted(inlay.__all__, key=lambda name: (not name.isupper(), name))
    assert inlay.__all__ == in_order and len(set(inlay.__all__)) == len(inlay.__all__)
    assert set(inlay.__all__) <= set(dir(inlay))
    scope: dict[str, object] = {}
    exec("from inlay import *", scope)
    assert set(inlay.__all__) <= set(scope)


def test_public_names_are_those_of_their_rooms() -> None:
    import inlay.interventions
    import inlay.model

    for room in (inlay.model, inlay.interventions):
        for name in set(room.__all__) & set(inlay.__all__):
            assert getattr(inlay, name) is getattr(room, name)


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'inlay' has no attribute 'Nudge'"):
        _ = inlay.Nudge
    with pytest.raises(ImportError, match="Nudge"):
        exec("from inlay import Nudge")


def test_the_version_is_that_of_the_package() -> None:
    assert inlay.__version__ == importlib.metadata.version("inlay")
