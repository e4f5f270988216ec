"""Losses of pairs of responses, as functions on their summed log-probs.

Each takes tensors [R], one number for each pair, and gives losses [R]. A log-prob is that of a whole response, summed
over its tokens; `win` is the response to be preferred.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid


def reps_difference(
    win: Tensor, lose: Tensor, ref_win: Tensor, ref_lose: Tensor, win_length: Tensor, lose_length: Tensor
) -> Tensor:
    """How far RePS (2505.20809) finds `win` preferred: beta LP(win) / |win| - LP(lose) / |lose|, [R].

    beta = max(LPref(lose) - LPref(win), 1) is the more, the less the frozen model likes `win`; it carries no gradient.

    Args:
        win, lose: log-probs under the Edit.
        ref_win, ref_lose: log-probs by the frozen model.
        win_length, lose_length: numbers of tokens, of the response (the paper's) or of the whole sequence (its code's).
    """
    beta = (ref_lose - ref_win).detach().clamp_min(1)
    return beta / win_length * win - lose / lose_length


def reps(
    win: Tensor, lose: Tensor, ref_win: Tensor, ref_lose: Tensor, win_length: Tensor, lose_length: Tensor
) -> Tensor:
    """RePS of one direction, -log sigmoid(D) with D of `reps_difference` and its arguments, [R]."""
    return -logsigmoid(reps_difference(win, lose, ref_win, ref_lose, win_length, lose_length))


def log_ratio(win: Tensor, lose: Tensor, ref_win: Tensor, ref_lose: Tensor) -> Tensor:
    """By how much more `win` is preferred than without the Edit, [R].

    (LP(win) - LP(lose)) - (LPref(win) - LPref(lose)).
    """
    return (win - lose) - (ref_win - ref_lose)


def dpo(win: Tensor, lose: Tensor, ref_win: Tensor, ref_lose: Tensor, beta: float = 0.1) -> Tensor:
    """DPO (2305.18290 equation 7): -log sigmoid(beta d) with d of `log_ratio`, [R]."""
    return -logsigmoid(beta * log_ratio(win, lose, ref_win, ref_lose))


def bipo(win: Tensor, lose: Tensor, ref_win: Tensor, ref_lose: Tensor, beta: float = 1.0) -> Tensor:
    """BiPO (2406.00045) of one direction, `dpo` with another beta, [R]; the other one has the two swapped."""
    return dpo(win, lose, ref_win, ref_lose, beta)


def ipo(win: Tensor, lose: Tensor, ref_win: Tensor, ref_lose: Tensor, beta: float = 0.1) -> Tensor:
    """IPO (2310.12036 equation 17): (d - 1 / (2 beta))^2 with d of `log_ratio`, [R]."""
    return (log_ratio(win, lose, ref_win, ref_lose) - 1 / (2 * beta)) ** 2


def simpo(
    win: Tensor, lose: Tensor, win_length: Tensor, lose_length: Tensor, beta: float = 2.0, gamma: float = 1.0
) -> Tensor:
    """SimPO (2405.14734): -log sigmoid(beta LP(win) / |win| - beta LP(lose) / |lose| - gamma), [R]."""
    return -logsigmoid(beta * win / win_length - beta * lose / lose_length - gamma)


def apo_zero(win: Tensor, lose: Tensor, ref_win: Tensor, ref_lose: Tensor, beta: float = 0.1) -> Tensor:
    """APO-zero (2408.06266 equation 7): (1 - sigmoid(beta r(win))) + sigmoid(beta r(lose)), r = LP - LPref, [R].

    `win` gets more likely and `lose` less, each by itself; the loss lies between 0 and 2.
    """
    return (-beta * (win - ref_win)).sigmoid() + (beta * (lose - ref_lose)).sigmoid()
