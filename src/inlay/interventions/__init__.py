"""The modules h -> h', Edits of them, and Banks.

An intervention's arithmetic is a pure tensor function that knows nothing of hooks; an Edit says where and at which
tokens it acts; a Bank stacks K of one kind so that every row of a batch picks its own.
"""

from inlay.interventions.adapters import from_peft, to_peft
from inlay.interventions.affine import RED, Affine
from inlay.interventions.bank import Bank
from inlay.interventions.base import Intervention
from inlay.interventions.basis import BasisSwap
from inlay.interventions.closed_form import Ablate, Add, Clamp, Noise, Project, Replace, Scale, Zero
from inlay.interventions.conceptor import Conceptor
from inlay.interventions.edit import Edit, Part
from inlay.interventions.from_source import Mean, Skip, Swap
from inlay.interventions.function import Function
from inlay.interventions.latents import LatentSet, LatentSwap
from inlay.interventions.lora import LoRA
from inlay.interventions.masks import Boundless, Mask, RotateMask, set_temperature
from inlay.interventions.merge import merge_into
from inlay.interventions.norms import Angular, KeepNorm
from inlay.interventions.reft import ConsReFT, DiReFT, LobiReFT, LoReFT, NoReFT, OrthoDiReFT
from inlay.interventions.rotation import LowRank, Rotate
from inlay.interventions.sae import SAE
from inlay.interventions.source import Source
from inlay.interventions.steering import NullOut, ReluGate, SetAlong, Steer, TopKAdd
from inlay.interventions.when import When
from inlay.model.call import Call

__all__ = [
    "RED",
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
    "Part",
    "Project",
    "ReluGate",
    "Replace",
    "Rotate",
    "RotateMask",
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
]
