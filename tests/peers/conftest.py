"""pyvene, where it is installed: `make peers` does that."""

from __future__ import annotations

from types import ModuleType

import pytest
from tests.peers.beside import Pair


@pytest.fixture(scope="session")
def pyvene() -> ModuleType:
    """Imported once for all tests: that takes it ten seconds."""
    return pytest.importorskip("pyvene", reason="agreement with pyvene is tested where it is installed: make peers")


@pytest.fixture(scope="session", params=["llama", "gpt2"])
def pair(request: pytest.FixtureRequest, pyvene: ModuleType) -> Pair:
    """A random model of each family, once for inlay and once for pyvene."""
    return Pair(request.param, pyvene)
