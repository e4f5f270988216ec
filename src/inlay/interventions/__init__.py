"""The modules h -> h', Edits of them, and Banks.

An intervention's arithmetic is a pure tensor function that knows nothing of hooks; an Edit says where and at which
tokens it acts; a Bank stacks K of one kind so that every row of a batch picks its own.
"""

from inlay.interventions.bank import Bank
from inlay.interventions.base import Intervention
from inlay.interventions.closed_form import Ablate, Add, Clamp, Noise, Project, Replace, Scale, Zero
from inlay.interventions.edit import Edit, Part
from inlay.interventions.from_source import Mean, Swap
from inlay.interventions.function import Function
from inlay.interventions.source import Source
from inlay.interventions.when import When
from inlay.model.call import Call

__all__ = [
    "Ablate",
    "Add",
    "Bank",
    "Call",
    "Clamp",
    "Edit",
    "Function",
    "Intervention",
    "Mean",
    "Noise",
    "Part",
    "Project",
    "Replace",
    "Scale",
    "Source",
    "Swap",
    "When",
    "Zero",
]
