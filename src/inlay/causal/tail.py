"""The model's own tail on any states: final norm, head, and the scale or soft-cap that a family puts behind them.

Legend: N states, W width of the residual stream, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inlay.errors import CausalError, SiteError
from inlay.model import two_stacks
from inlay.model.inputs import Batch
from inlay.model.resume import States
from inlay.model.running import expanded
from inlay.model.sites import Site

if TYPE_CHECKING:
    from inlay.model.model import Model, Output


RESIDUAL = ("resid_pre", "resid_mid", "resid_post")


def residual_sites(model: Model, sites: str | Site | Sequence[str | Site]) -> list[Site]:
    """States of the residual stream, which a lens reads as if they were the last one; one Site for each layer.

    Raises:
        SiteError: the model lacks a Site, or one is no state of the residual stream.
    """
    found = model.sites().expand(sites)
    for site in found:
        if site.name not in RESIDUAL:
            raise SiteError(
                f"{site} is no state of the residual stream, and a lens takes {', '.join(RESIDUAL)}; what a component "
                "adds to a logit is told by logit_attribution"
            )
    return found


def last_site(model: Model) -> Site:
    """The Site of the state that the tail is made for: the last block's `resid_post`.

    Raises:
        SiteError: the model has none.
        ModelError: it has an encoder and a decoder.
    """
    two_stacks.refuse(model, "a tail")
    return model.sites().expand(Site("resid_post", model.layers - 1))[0]


def run_tail(model: Model, states_NW: Tensor, **forward: Any) -> Output:
    """A forward of the model with every block skipped, for states in the place of the last block's.

    Each state is a row of one token, so that N of them share nothing. Gradients reach the states.

    Args:
        model: the Model.
        states_NW: [N, W], on any device.
        **forward: as in `Model.resume` (`edit=`, `read=`).

    Returns:
        The Output; its logits are [N, 1, V].

    Raises:
        SiteError: the model has no residual stream that a forward could start from.
        ModelError: it has an encoder and a decoder.
    """
    site = last_site(model)
    model.sites().place(Site("resid_pre", 0))  # what the skipped blocks are entered by
    here_N1 = torch.zeros(len(states_NW), 1, dtype=torch.long, device=model.device)
    batch = Batch(here_N1, torch.ones_like(here_N1), None, here_N1)
    return model.resume(States(site, states_NW[:, None], batch), **forward)


def tail_logits(model: Model, states_NW: Tensor) -> Tensor:
    """The logits [N, V] that the model gives where its last block ends in these states [N, W].

    Raises:
        SiteError: as in `run_tail`.
    """
    return run_tail(model, states_NW).logits[:, 0]


def check_edit(model: Model, edit: Any) -> None:
    """Raise where an Edit acts on the tail, which is run on states that were read before it.

    Raises:
        CausalError: a part of it is at `final_norm` or `logits`.
    """
    for part in expanded(model, edit):
        if part.site.name in ("final_norm", "logits"):
            raise CausalError(f"the Edit's part at {part.site} acts behind the states that are looked at: leave it out")
