"""Distributed alignment search: find the subspace of a Site that a variable of a causal model lies in."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from inlay.causal.aligning import Recipe, train
from inlay.causal.alignment import Alignment
from inlay.causal.counterfactuals import Counterfactual
from inlay.causal.interchange import accuracy_of, candidate_ids
from inlay.causal.stored_runs import StoredRuns
from inlay.errors import CausalError
from inlay.interventions.base import Intervention
from inlay.interventions.edit import Edit
from inlay.interventions.from_source import Swap
from inlay.interventions.rotation import LowRank, Rotate
from inlay.model.restored import restored
from inlay.model.sites import Site

if TYPE_CHECKING:
    from inlay.model.model import Model


def das(
    model: Model,
    data: Sequence[Counterfactual],
    site: str | Site,
    subspace: int | Mapping[str, int] | Intervention,
    tokens: Any = "last",
    *,
    test: Sequence[Counterfactual] | None = None,
    joint: bool = False,
    source_tokens: Any = None,
    epochs: int = 3,
    batch: int = 64,
    lr: float = 1e-3,
    mask_lr: float = 1e-2,
    warmup: float = 0.1,
    penalty: float = 1.0,
    cool_to: float | None = None,
    candidates: Sequence[str | int] | None = None,
    seed: int = 0,
    batch_tokens: int = 8192,
    device: str | torch.device | None = None,
    chat: bool | None = None,
    progress: bool = False,
) -> Alignment:
    """Find the subspace of a Site that a variable of a causal model lies in (DAS, 2303.02536; Boundless, 2305.08809).

    The loss is the cross-entropy of the counterfactual label at the prompt's last token; its gradient reaches the
    interchange alone. The base is frozen and in eval mode meanwhile, and afterwards as it was. Layers below the Site
    and the sources run once, so that a step is a forward and a backward above the Site. Adam; the learning rates rise
    in a line over the first steps and fall to 0 in a line over the others. That of a mask does not fall, because a mask
    decides what it keeps when it has grown cold.

    Args:
        model: the Model.
        data: what `counterfactuals` gives. The rows of a step set the same variables.
        site: one Site of one layer, a few heads among them (`"z.5.h[3,6]"`).
        subspace: the rank for one variable; by name the ranks of several, which get orthogonal subspaces of one
            rotation; or an intervention without a source, of which a copy is trained: `Boundless(None, model.width)`,
            a mask, or any of your own that takes a source.
        tokens: which tokens.
        test: the rows that the accuracy is measured on; by default those of the training.
        joint: take the tokens side by side as one state.
        source_tokens: which tokens of the sources, where they are not `tokens`.
        epochs: how often every row is seen.
        batch: rows in a step; a step of more than `batch_tokens` takes several forwards.
        lr: of the rotation, or of all parameters of an intervention of your own.
        mask_lr: of a mask's parameters.
        warmup: the share of the steps in which the learning rates rise.
        penalty: the weight of a mask's `share` in the loss.
        cool_to: a mask's temperature at the last step, to which it falls in a line from its own; by default 1/500 of
            that, so 50 -> 0.1.
        candidates: the answers that compete in the accuracy; all tokens by default.
        seed: of the start and of the order of the rows.
        batch_tokens: the most padded tokens in one forward (one row at least).
        device: where stored states lie; by default the model's, `"cpu"` where that has not the memory.
        chat: whether plain strings are user turns.
        progress: show a progress bar.

    Raises:
        CausalError: the data and the subspaces do not fit each other, a setting is out of range, the Site is not one,
            nothing is left to train, or the training diverged.
        InlayError: prompts, Sites or Tokens do not fit the model.
    """
    recipe = Recipe(epochs, batch, lr, mask_lr, warmup, penalty, cool_to, seed)
    where = _Where(_one(model, site), tokens, joint)
    more: dict[str, Any] = {
        "source_tokens": source_tokens,
        "batch_tokens": batch_tokens,
        "device": device,
        "chat": chat,
    }
    with restored(model.hf), torch.enable_grad():
        model.hf.requires_grad_(False).eval()
        made = _interventions(model, data, where, subspace, more, seed)
        edits = {name: where.edit(one, model) for name, one in made.items()}
        runs = StoredRuns(model, data, edits, **more)
        measured = runs if test is None else StoredRuns(model, test, edits, **more)
        answers = candidate_ids(measured, candidates)
        history = train(runs, list(made.values()), recipe, progress)
        accuracy = accuracy_of(measured, answers, seed)
    facts = {**vars(recipe), "rows": len(data), "test": None if test is None else len(test)}
    return Alignment(edits, accuracy, history, facts)


@dataclass(frozen=True)
class _Where:
    """What the Edits of all variables have in common."""

    site: Site
    tokens: Any
    joint: bool

    def edit(self, intervention: Intervention, model: Model) -> Edit:
        """An Edit here."""
        return Edit.of(Edit(self.site, intervention, self.tokens, joint=self.joint).parts, model.identity())


def _one(model: Model, site: str | Site) -> Site:
    found = model.sites().expand(site)
    if len(found) > 1:
        raise CausalError(
            f"site={str(site)!r} names {len(found)} Sites: an alignment is made at one; call das for each"
        )
    return found[0]


def _interventions(
    model: Model,
    data: Sequence[Counterfactual],
    where: _Where,
    subspace: int | Mapping[str, int] | Intervention,
    more: Mapping[str, Any],
    seed: int,
) -> dict[str, Intervention]:
    """What is trained, by variable."""
    names = list(dict.fromkeys(name for row in data for name in row.variables))
    if not names:
        raise CausalError("there are no rows of counterfactual data: give at least one")
    if isinstance(subspace, Mapping):
        if set(subspace) != set(names):
            raise CausalError(f"ranks are given for {', '.join(subspace)}, and the data sets {', '.join(names)}")
    elif len(names) > 1:
        raise CausalError(f"the data sets {', '.join(names)}: give a rank for each, {{{names[0]!r}: 4, ...}}")
    if isinstance(subspace, Intervention):
        return {names[0]: copy.deepcopy(subspace.with_source(None)).to(model.device)}
    looking = {name: where.edit(Swap(None), model) for name in data[0].variables}
    look = StoredRuns(model, data[:1], looking, **more)
    width = look.width(look.parts[data[0].variables[0]][0])
    if not isinstance(subspace, Mapping):
        return {names[0]: LowRank(None, width, subspace, seed).to(model.device)}
    whole = Rotate(None, width, list(subspace.values()), seed=seed).to(model.device)
    return {name: whole.part(index) for index, name in enumerate(subspace)}
