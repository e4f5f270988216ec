"""The modules h -> h', Edits of them, and Banks.

An intervention's arithmetic is a pure tensor function that knows nothing of hooks; an Edit says where and at which
tokens it acts; a Bank stacks K of one kind so that every row of a batch picks its own.
"""

from inlay.interventions.affine import Affine
from inlay.interventions.bank import Bank
from inlay.interventions.base import Intervention
from inlay.interventions.basis import BasisSwap
from inlay.interventions.closed_form import Ablate, Add, Clamp, Noise, Project, Replace, Scale, Zero
from inlay.interventions.conceptor import Conceptor
from inlay.interventions.edit import Edit, Part
from inlay.interventions.from_source import Mean, Skip, Swap
from inlay.interventions.function import Function
from inlay.interventions.latents import LatentSet, LatentSwap
from inlay.interventions.masks import Boundless, Mask, RotateMask, set_temperature
from inlay.interventions.norms import Angular, KeepNorm
from inlay.interventions.rotation import LowRank, Rotate
from inlay.interventions.sae import SAE
from inlay.interventions.source import Source
from inlay.interventions.when import When
from inlay.model.call import Call

__all__ = [
    "SAE",
    "Ablate",
    "Add",
    "Affine",
    "Angular",
    "Bank",
    "BasisSwap",
    "Boundless",
    "Call",
    "Clamp",
    "Conceptor",
    "Edit",
    "Function",
    "Intervention",
    "KeepNorm",
    "LatentSet",
    "LatentSwap",
    "LowRank",
    "Mask",
    "Mean",
    "Noise",
    "Part",
    "Project",
    "Replace",
    "Rotate",
    "RotateMask",
    "Scale",
    "Skip",
    "Source",
    "Swap",
    "When",
    "Zero",
    "set_temperature",
]
