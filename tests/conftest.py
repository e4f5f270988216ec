"""What every test shares: one torch thread, no network, fixed seeds, and skips that say why."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # both are read when transformers is imported
os.environ["TRANSFORMERS_OFFLINE"] = "1"

import hypothesis
import pytest
import torch

torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parent.parent


class _TorchRandom:
    """Torch's global generator as hypothesis wants it: seeded before each example, so failures replay."""

    seed = staticmethod(torch.manual_seed)
    getstate = staticmethod(torch.get_rng_state)
    setstate = staticmethod(torch.set_rng_state)


_torch_random = _TorchRandom()  # hypothesis keeps only a weak reference
hypothesis.register_random(_torch_random)

hypothesis.settings.register_profile("inlay", deadline=None, max_examples=25, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("inlay")


@pytest.hookimpl(tryfirst=True)  # before `-m` selects by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    without_cuda = pytest.mark.skip(reason="needs CUDA, and torch sees none")
    has_cuda = torch.cuda.is_available()
    for item in items:
        if "shared" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.shared)
        if item.get_closest_marker("gpu") and not has_cuda:
            item.add_marker(without_cuda)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared data: `INLAY_SHARED`, or `../shared` beside the repository."""
    folder = (ROOT / os.environ.get("INLAY_SHARED", "../shared")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}: set INLAY_SHARED to its folder")
    return folder
