"""Log-odds of a concept answer and its twin: how a model leans, without a judge."""

from __future__ import annotations

import math

from inlay.errors import JudgeError


def preference_odds(nll_concept: float, nll_twin: float) -> float:
    """How far the model prefers the answer with the concept: L- - L+ (arXiv 2602.02343).

    Args:
        nll_concept: L+, the negative log-likelihood of the answer with the concept, in nats, 0 or more.
        nll_twin: L-, that of its twin without.

    Returns:
        The log-odds log(e^-L+ / e^-L-); 0 where both are as likely.

    Raises:
        JudgeError: one is negative or not finite.
    """
    _check(nll_concept, nll_twin)
    return nll_twin - nll_concept


def utility_odds(nll_concept: float, nll_twin: float) -> float:
    """How likely either answer is against all others: log((e^-L+ + e^-L-) / (1 - e^-L+ - e^-L-)) (arXiv 2602.02343).

    Args:
        nll_concept: L+, the negative log-likelihood of the answer with the concept, in nats, 0 or more.
        nll_twin: L-, that of its twin without.

    Returns:
        The log-odds; low where an edit has left the model little use of either answer.

    Raises:
        JudgeError: one is negative or not finite, or the two probabilities make 1 or more.
    """
    _check(nll_concept, nll_twin)
    near, far = sorted((nll_concept, nll_twin))
    both = math.log1p(math.exp(near - far)) - near  # log(e^-L+ + e^-L-), also where each of them is 0 as a float
    if both >= 0:
        raise JudgeError(
            f"answers of NLL {nll_concept} and {nll_twin} have a probability of {math.exp(both):g} together, and two "
            "different answers have less than 1: give the NLL of whole answers, summed over their tokens"
        )
    return both - math.log1p(-math.exp(both))


def _check(*nlls: float) -> None:
    for nll in nlls:
        if not 0 <= nll < math.inf:
            raise JudgeError(f"a negative log-likelihood of {nll} is none: give a finite number of nats, 0 or more")
