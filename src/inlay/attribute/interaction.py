"""Self-repair of the attention softmax: what two keys do together that neither does alone.

Legend: R rows, T query tokens, S key tokens, H heads, KV key/value heads, hd head width, N rows of attention found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from inlay.errors import RuleError

if TYPE_CHECKING:
    import polars

    from inlay.model.model import Model, Output

COLUMNS = ("row", "layer", "head", "query", "first", "second")


@dataclass(frozen=True)
class Interactions:
    """Rows of attention in which two keys carry the same effect.

    Attributes:
        where: int64 [N, 6]: row, layer, head, query position and the two keys, the stronger first (`COLUMNS`).
        single: float32 [N, 2], what is lost when one key's score becomes the mean of its row.
        joint: float32 [N], what is lost when both do.
        interaction: float32 [N], (joint - e1 - e2) / joint: 0 where the effects add up, near 1 where either key makes
            up for the other.
    """

    where: Tensor
    single: Tensor
    joint: Tensor

    @property
    def interaction(self) -> Tensor:
        """float32 [N]."""
        return (self.joint - self.single.sum(1)) / self.joint

    def __len__(self) -> int:
        return len(self.joint)

    def frame(self) -> polars.DataFrame:
        """One line for each row of attention: the `COLUMNS`, e1, e2, joint, interaction."""
        import polars

        columns: dict[str, Any] = {name: self.where[:, i].numpy() for i, name in enumerate(COLUMNS)}
        numbers = {"e1": self.single[:, 0], "e2": self.single[:, 1], "joint": self.joint}
        columns |= {name: x.numpy() for name, x in (numbers | {"interaction": self.interaction}).items()}
        return polars.DataFrame(columns)


def softmax_interaction(
    model: Model,
    prompts: Any,
    *,
    layers: str | int = "*",
    effect: Literal["z"] | Callable[[Output], Tensor] = "z",
    threshold: float = 1.0,
    batch_tokens: int = 2048,
    chat: bool | None = None,
) -> Interactions:
    """Find the rows of attention in which the softmax repairs itself, and say by how much.

    A row counts where two keys or more have P_i d_i above `threshold`; the largest two are taken. With f = sum P_i d_i,
    e1, e2 and joint are what f loses when one or both of their scores become the mean of the row's unmasked scores.
    (The self-repair measure in the code of GIM, 2505.17630.)

    Args:
        model: the Model.
        prompts: see `Encoder.rows`.
        layers: one layer, or `"*"` for all.
        effect: what a key's value is worth, d_i: `"z"`, z . v_i, its share in the head's own output; or a function of
            the `Output` that gives one number, summed over rows, whose gradient dM/dP_i is taken.
        threshold: which P_i d_i count.
        batch_tokens: the most padded tokens in one forward.
        chat: whether plain strings are user turns.

    Raises:
        SiteError: the model's attention patterns cannot be read.
        RuleError: a head's values are shared in a way that its width does not tell.
    """
    names = ["pattern"] if callable(effect) else ["pattern", "v", "z"]
    options: dict[str, Any] = {"batch_tokens": batch_tokens, "chat": chat}
    acts = model.read(
        prompts,
        [f"{name}.{layers}" for name in names],
        grads=effect if callable(effect) else False,
        **options,
    )
    wheres, singles, joints = [], [], []
    for site in (name for name in acts if name.startswith("pattern.")):
        layer = int(site.partition(".")[2])
        shares_RHTS = acts[site].transpose(1, 2).float()
        if callable(effect):
            assert acts.gradients is not None
            worth_RHTS = acts.gradients[site].transpose(1, 2).float()
        else:
            worth_RHTS = _alignment(acts[f"z.{layer}"], acts[f"v.{layer}"])
        where, single, joint = interactions(shares_RHTS, worth_RHTS, threshold)
        wheres.append(torch.stack([where[:, 0], torch.full_like(where[:, 0], layer), *where[:, 1:].unbind(1)], 1))
        singles.append(single)
        joints.append(joint)
    return Interactions(torch.cat(wheres), torch.cat(singles), torch.cat(joints))


def _alignment(z_RTHd: Tensor, v_RSKd: Tensor) -> Tensor:
    """z . v_i of every query and key, [R, H, T, S]."""
    groups, left = divmod(z_RTHd.shape[2], v_RSKd.shape[2])
    if left or z_RTHd.shape[3] != v_RSKd.shape[3]:
        raise RuleError(
            f"z has heads {list(z_RTHd.shape[2:])} and v {list(v_RSKd.shape[2:])}: no key's value belongs to a head; "
            "give effect= a function of the Output"
        )
    values = v_RSKd.repeat_interleave(groups, 2).float()
    return torch.einsum("rthd,rshd->rhts", z_RTHd.float(), values)


def interactions(shares_RHTS: Tensor, worth_RHTS: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Where [N, 5] (row, head, query, first, second), single [N, 2] and joint [N], of patterns P and effects d.

    Scores are known up to a constant of the row, S = log P, in which the sum of all exponentials (a sink's too) is 1. A
    share that underflows to 0 counts as masked.
    """
    product = (shares_RHTS * worth_RHTS).masked_fill(shares_RHTS <= 0, -torch.inf)
    if product.shape[-1] < 2:
        return torch.zeros(0, 5, dtype=torch.long), torch.zeros(0, 2), torch.zeros(0)
    top = product.topk(2, -1)
    chosen = (top.values[..., 1] > threshold).nonzero()
    row, head, query = chosen.unbind(1)
    keys = top.indices[row, head, query]
    shares, worth = shares_RHTS[row, head, query], worth_RHTS[row, head, query]
    seen = shares > 0
    mean = (shares.clamp(min=torch.finfo(torch.float32).tiny).log() * seen).sum(1) / seen.sum(1)
    level = mean.exp()[:, None]
    total = (shares * worth).sum(1, keepdim=True)
    p, d = shares.gather(1, keys), worth.gather(1, keys)
    single = total - (total + (level - p) * d) / (1 + level - p)
    both = (total[:, 0] + ((level - p) * d).sum(1)) / (1 + (level - p).sum(1))
    return torch.cat([chosen, keys], 1), single, total[:, 0] - both
