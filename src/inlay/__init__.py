"""inlay sets precise pieces of new behaviour into a frozen language model and tells you what they do.

`import inlay` loads neither torch nor transformers: each public name is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from inlay import errors
from inlay._version import __version__

if TYPE_CHECKING:
    from inlay import attribute, bench, causal, directions, judges, train, world
    from inlay.interventions import (
        RED,
        SAE,
        Ablate,
        Add,
        Affine,
        Angular,
        Bank,
        BasisSwap,
        Boundless,
        Clamp,
        Conceptor,
        ConsReFT,
        DiReFT,
        Edit,
        Function,
        Intervention,
        KeepNorm,
        LatentSet,
        LatentSwap,
        LobiReFT,
        LoRA,
        LoReFT,
        LowRank,
        Mask,
        Mean,
        Noise,
        NoReFT,
        NullOut,
        OrthoDiReFT,
        Project,
        ReluGate,
        Replace,
        Rotate,
        RotateMask,
        Scale,
        SetAlong,
        Skip,
        Source,
        Steer,
        Swap,
        TopKAdd,
        When,
        Zero,
        from_peft,
        merge_into,
        set_temperature,
        to_peft,
    )
    from inlay.model import Activations, Model, Site, Tokens, load, span

_HOMES = {
    "inlay.model": ("Activations", "Model", "Site", "Tokens", "load", "span"),
    "inlay.interventions": (
        "Ablate",
        "Add",
        "Affine",
        "Angular",
        "Bank",
        "BasisSwap",
        "Boundless",
        "Clamp",
        "Conceptor",
        "ConsReFT",
        "DiReFT",
        "Edit",
        "Function",
        "Intervention",
        "KeepNorm",
        "LatentSet",
        "LatentSwap",
        "LoRA",
        "LoReFT",
        "LobiReFT",
        "LowRank",
        "Mask",
        "Mean",
        "NoReFT",
        "Noise",
        "NullOut",
        "OrthoDiReFT",
        "Project",
        "RED",
        "ReluGate",
        "Replace",
        "Rotate",
        "RotateMask",
        "SAE",
        "Scale",
        "SetAlong",
        "Skip",
        "Source",
        "Steer",
        "Swap",
        "TopKAdd",
        "When",
        "Zero",
        "from_peft",
        "merge_into",
        "set_temperature",
        "to_peft",
    ),
}
_ROOMS = ("attribute", "bench", "causal", "directions", "judges", "train", "world")
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "RED",
    "SAE",
    "Ablate",
    "Activations",
    "Add",
    "Affine",
    "Angular",
    "Bank",
    "BasisSwap",
    "Boundless",
    "Clamp",
    "Conceptor",
    "ConsReFT",
    "DiReFT",
    "Edit",
    "Function",
    "Intervention",
    "KeepNorm",
    "LatentSet",
    "LatentSwap",
    "LoRA",
    "LoReFT",
    "LobiReFT",
    "LowRank",
    "Mask",
    "Mean",
    "Model",
    "NoReFT",
    "Noise",
    "NullOut",
    "OrthoDiReFT",
    "Project",
    "ReluGate",
    "Replace",
    "Rotate",
    "RotateMask",
    "Scale",
    "SetAlong",
    "Site",
    "Skip",
    "Source",
    "Steer",
    "Swap",
    "Tokens",
    "TopKAdd",
    "When",
    "Zero",
    "__version__",
    "attribute",
    "bench",
    "causal",
    "directions",
    "errors",
    "from_peft",
    "judges",
    "load",
    "merge_into",
    "set_temperature",
    "span",
    "to_peft",
    "train",
    "world",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"inlay.{name}")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'inlay' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
