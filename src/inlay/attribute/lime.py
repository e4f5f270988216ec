"""LIME: a weighted linear fit of the number around the row, on which features are there.

Legend: R rows, T tokens, n features, k samples.
"""

from __future__ import annotations

import torch
from torch import Tensor

from inlay.attribute.asked import Asked
from inlay.attribute.occlusion import Present, played
from inlay.errors import InputError


def lime(asked: Asked, samples: int | None = None, width: float = 0.25, ridge: float = 1e-3) -> Tensor:
    """LIME's local linear model, [R, T]: the weight of each feature's being there (Ribeiro et al., 1602.04938).

    Args:
        asked: what is asked.
        samples: sets of features, the whole row among them, a forward each; by default 3 a feature and one.
        width: of the kernel exp(-d^2 / (2 width^2)) on the cosine distance d to the whole row; 0.25 is the package
            `lime`'s 25 on 100 d.
        ridge: the penalty on the squared weights, beside the weighted mean of the squared errors; it shrinks the
            scores. The package's 1 on the weighted sum of 5000 is about 1e-3 of the mean.

    Raises:
        InputError: samples < n + 1, which do not determine n weights and a constant; width <= 0 or ridge < 0.
    """
    return played(asked, lambda game, n: fitted(game, n, samples, width, ridge, asked.seed))


def fitted(
    game: Present, n: int, samples: int | None = None, width: float = 0.25, ridge: float = 1e-3, seed: int = 0
) -> Tensor:
    """LIME's weights for a game of n features, float64 [n].

    min over b, phi of sum_k p_k (v_k - b - z_k.phi)^2 + ridge |phi|^2, with the kernel's weights p_k adding up to 1. Of
    each z but the first, which is the whole row, a uniform number of 1 to n features is missing.
    """
    samples = 3 * n + 1 if samples is None else samples
    if samples < n + 1:
        raise InputError(f"samples={samples} do not determine {n} weights and a constant: give at least {n + 1}")
    if width <= 0 or ridge < 0:
        raise InputError(f"width={width} and ridge={ridge}: the one is positive, the other is not negative")
    made = torch.Generator().manual_seed(seed)
    missing = torch.randint(1, n + 1, (samples, 1), generator=made)
    missing[0] = 0
    there = torch.rand(samples, n, generator=made).argsort(1).argsort(1) >= missing
    values = game(there).double().cpu()
    distance = 1 - there.double().mean(1).sqrt()
    weight = (-(distance**2) / (2 * width**2)).exp()
    weight /= weight.sum()
    z = there.double() - weight @ there.double()  # less their means, which takes the constant out
    v = values - weight @ values
    root = weight.sqrt()[:, None]
    left = torch.cat([root * z, ridge**0.5 * torch.eye(n, dtype=torch.float64)])
    right = torch.cat([root * v[:, None], torch.zeros(n, 1, dtype=torch.float64)])
    found: Tensor = torch.linalg.lstsq(left, right, driver="gelsd").solution[:, 0]
    return found
