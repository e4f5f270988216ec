"""Side effects: how far an edit moves the model where nothing was asked of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inlay.bench.plan import Choice, Halves, Picked
from inlay.bench.steering import Cell, Steering
from inlay.model.inputs import Row, plan_batches

if TYPE_CHECKING:
    from inlay.model.model import Model


@dataclass(frozen=True)
class _Job:
    """A method's edit for a concept, and the unsteered replies that it is measured on."""

    method: str
    concept: int
    choice: Choice
    replies: tuple[tuple[str, str], ...]


def side_effects(model: Model, steering: Steering, picked: Picked, of: dict[int, Halves]) -> list[dict[str, Any]]:
    """Divergence from the unedited model on its own unsteered replies, for each method and concept at its factor.

    Args:
        model: the Model.
        steering: the run's; its unsteered replies to the reporting prompts are what is scored.
        picked: the factors; the concept's own, or the shared one where the run's setting `pick` is so.
        of: the prompts of each concept.

    Returns:
        Rows `method, concept_id, site, factor, kl, logprob_drop`: KL(unedited || edited) and the fall of the replies'
        log-probability, both in nats a token; unsteered replies without a token are left out.
    """
    jobs = [_job(steering, picked, of, *key) for key in picked.own]
    found = []
    for site in steering.edits:
        mine = [job for job in jobs if job.choice.site == site]
        work = [(index, *reply) for index, job in enumerate(mine) for reply in job.replies]
        if not work:
            continue
        rows = model.encoder.rows([prompt for _, prompt, _ in work], [said for *_, said in work])
        totals = torch.zeros(len(mine), 3, dtype=torch.float64)  # KL, fall, tokens
        for batch in plan_batches(rows, max(1, steering.config.batch_tokens // 4)):  # logits are wide
            numbers = [work[i][0] for i in batch]
            moved = _moved(model, steering, [mine[n] for n in numbers], work, rows, batch)
            totals.index_add_(0, torch.tensor(numbers), moved)
        for job, (kl, fall, tokens) in zip(mine, totals.tolist(), strict=True):
            if tokens:
                about = {"method": job.method, "concept_id": job.concept, "site": site, "factor": job.choice.factor}
                found.append({**about, "kl": kl / tokens, "logprob_drop": fall / tokens})
    return found


def _job(steering: Steering, picked: Picked, of: dict[int, Halves], method: str, concept: int) -> _Job:
    choice = picked.shared[method] if steering.config.pick == "global" else picked.own[method, concept]
    prompts = steering.concepts.prompts[concept]
    said = {p: steering.replies.rows[Cell("unsteered", concept, p).key]["text"] for p in of[concept].report}
    return _Job(method, concept, choice, tuple((steering.instruction(prompts[p]), said[p]) for p in said if said[p]))


@torch.no_grad()
def _moved(
    model: Model,
    steering: Steering,
    jobs: Sequence[_Job],
    work: Sequence[tuple[int, str, str]],
    rows: Sequence[Row],
    batch: Sequence[int],
) -> Tensor:
    """For each reply the summed KL, the summed fall of log-probability and the tokens, float64 [replies, 3]."""
    prompts, said = [work[i][1] for i in batch], [work[i][2] for i in batch]
    site = jobs[0].choice.site
    bank = [steering.rows[job.method, site, job.concept] for job in jobs]
    factors = [job.choice.factor for job in jobs]
    plain = model.forward(prompts, responses=said).logits
    edited = model.forward(prompts, responses=said, edit=steering.edits[site], rows=bank, strength=factors).logits
    found = []
    for at, i in enumerate(batch):
        reply = slice(rows[i].prompt - 1, len(rows[i].ids) - 1)  # what predicts each of its tokens
        before, after = (logits[at, reply].float().log_softmax(-1) for logits in (plain, edited))
        ids = torch.tensor(rows[i].ids[rows[i].prompt :], device=before.device)[:, None]
        kl, fall = (before.exp() * (before - after)).sum(), (before - after).gather(-1, ids).sum()
        found.append(torch.stack([kl, fall, kl.new_tensor(len(ids))]).double().cpu())
    return torch.stack(found)
