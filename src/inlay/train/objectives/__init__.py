"""Objectives: what an Edit is trained for.

An objective is a function of a `Step` that gives each example's contribution to its concept's loss, [R]. It names the
`sides` of an example that it needs, and the `references`: sides whose log-probs by the frozen model it takes. Each file
here has the formula as a function on tensors, and the objective that takes its numbers from a Step.
"""

from inlay.train.objectives.detection import ProbeBCE, ReFTr1, outside_top, probe_bce
from inlay.train.objectives.imitation import Imitate, distance
from inlay.train.objectives.language import Lang
from inlay.train.objectives.margins import Prism, Split, margin
from inlay.train.objectives.matching import JSDMatch, jsd
from inlay.train.objectives.names import OBJECTIVES, objective
from inlay.train.objectives.pairs import apo_zero, bipo, dpo, ipo, log_ratio, reps, reps_difference, simpo
from inlay.train.objectives.preference import DPO, IPO, APOZero, BiPO, SimPO
from inlay.train.objectives.steering import RePS

__all__ = [
    "DPO",
    "IPO",
    "OBJECTIVES",
    "APOZero",
    "BiPO",
    "Imitate",
    "JSDMatch",
    "Lang",
    "Prism",
    "ProbeBCE",
    "ReFTr1",
    "RePS",
    "SimPO",
    "Split",
    "apo_zero",
    "bipo",
    "distance",
    "dpo",
    "ipo",
    "jsd",
    "log_ratio",
    "margin",
    "objective",
    "outside_top",
    "probe_bce",
    "reps",
    "reps_difference",
    "simpo",
]
