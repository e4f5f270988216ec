"""Train Edits on a frozen model: a parameterisation, an objective and data, for one concept or many at once.

`fit` trains one Edit, `train_bank` one for each of many concepts. What is trained is an Edit with parameters (`reft`,
`steering`, `reft_r1`, `lora`, or any of your own), what for is a function of a `Step`. `EditedModel` hands an edited
model to Hugging Face's trainers instead.
"""

from inlay.train.attached import EditedModel
from inlay.train.banks import row, stacked
from inlay.train.config import TrainConfig
from inlay.train.data import load_examples
from inlay.train.examples import Example, fitting
from inlay.train.factors import Between, Choice, Factors, Fixed
from inlay.train.fit import fit, train_bank
from inlay.train.objectives import (
    DPO,
    IPO,
    OBJECTIVES,
    APOZero,
    BiPO,
    Imitate,
    JSDMatch,
    Lang,
    Prism,
    ProbeBCE,
    ReFTr1,
    RePS,
    SimPO,
    Split,
    objective,
)
from inlay.train.parameterise import lora, reft, reft_r1, steering
from inlay.train.plan import Plan
from inlay.train.recipe import Recipe
from inlay.train.step import Ran, Step
from inlay.train.suppress import suppressing
from inlay.train.trained import Trained

__all__ = [
    "DPO",
    "IPO",
    "OBJECTIVES",
    "APOZero",
    "Between",
    "BiPO",
    "Choice",
    "EditedModel",
    "Example",
    "Factors",
    "Fixed",
    "Imitate",
    "JSDMatch",
    "Lang",
    "Plan",
    "Prism",
    "ProbeBCE",
    "Ran",
    "ReFTr1",
    "RePS",
    "Recipe",
    "SimPO",
    "Split",
    "Step",
    "TrainConfig",
    "Trained",
    "fit",
    "fitting",
    "load_examples",
    "lora",
    "objective",
    "reft",
    "reft_r1",
    "row",
    "stacked",
    "steering",
    "suppressing",
    "train_bank",
]
