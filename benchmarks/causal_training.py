"""What a training step of DAS costs: a rank-r interchange at a middle layer, beside plain HF and pyvene by turns."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from typing import TYPE_CHECKING, Any

import torch
from interleaved import AGAIN, PLAIN, Case, Section
from random_llama import LAYERS, SIZES, ids, inputs
from torch import Tensor
from torch.nn.functional import cross_entropy

import inlay
from inlay.causal.counterfactuals import Counterfactual
from inlay.causal.das import das
from inlay.causal.stored_runs import StoredRuns

if TYPE_CHECKING:
    from causal_sections import Loaded

LAYER, LR = 6, 1e-3
ROWS, BATCH, TOKENS, EPOCHS = 64, 16, 16, 5  # of data, in a step, of a prompt; of a short training


def das_step(title: str, on: Loaded, rank: int) -> Section:
    """Steps one by one, and on the small model also whole calls of `das`."""
    base, source = ids(on.size, 2 * ROWS, TOKENS).chunk(2)
    labels = torch.randint(1, SIZES[on.size]["vocab_size"], (ROWS,), generator=torch.Generator().manual_seed(4))
    site, tokens, width = f"resid_post.{LAYER}", "last", on.hf.config.hidden_size
    data = [
        Counterfactual(mine, (theirs,), ("x",), label, label)
        for mine, theirs, label in zip(base.tolist(), source.tolist(), labels.tolist(), strict=True)
    ]
    arguments = inputs(base[:BATCH])

    @torch.no_grad()
    def plain() -> None:
        on.hf(**arguments)

    edit = inlay.Edit(site, inlay.LowRank(None, width, rank), tokens=tokens)
    start = edit.parts[0].intervention.basis()
    by_hand = _by_hand(on, base[:BATCH], source[:BATCH], labels[:BATCH], start)
    mine, hand = "inlay, a step of das", f"the {LAYERS - 1 - LAYER} upper blocks by hand, forward and backward"
    ours = _steps(StoredRuns(on.model, data, {"x": edit}), edit)
    loss = ours()
    _same(by_hand(), loss, f"{title}: the first loss by hand")
    cases = [
        Case(f"{PLAIN}, a forward of the batch", plain),
        Case(f"{AGAIN}, a forward of the batch", plain),
        Case(hand, by_hand),
        Case(mine, ours, beside=hand),
    ]
    if on.size == "d64":

        def whole() -> Any:
            return das(on.model, data, site, rank, tokens=tokens, epochs=EPOCHS, batch=BATCH, lr=LR)

        steps = EPOCHS * ROWS // BATCH
        cases.append(Case(f"inlay, das, all of {steps} steps with its accuracies", whole, part=steps))
    if on.pyvene:
        step = on.pyvene.das(LAYER, rank, start, LR)
        batches = cycle(
            {"base": base[rows], "source": source[rows], "labels": labels[rows], "position": TOKENS - 1}
            for rows in torch.arange(ROWS).split(BATCH)
        )
        theirs: Callable[[], Tensor] = lambda: step(next(batches))  # noqa: E731
        _same(theirs(), loss, f"{title}: the first loss of pyvene")
        cases.append(Case("pyvene, a step of its training loop", theirs, beside=mine))
    return Section(title, cases, 7 if on.size == "d768" else 21)


def _same(found: Tensor, wanted: Tensor, what: str) -> None:
    """A case that computes something else has no time worth reporting."""
    if abs(float(found - wanted)) > 1e-5:
        raise AssertionError(f"{what}: {float(found)}, and of inlay {float(wanted)}")


def _by_hand(on: Loaded, base: Tensor, source: Tensor, labels: Tensor, start: Tensor) -> Callable[[], Tensor]:
    """The least that a step above stored states can be: no library, no optimizer; gives the loss."""
    model, arguments = on.hf.model, inputs(base)
    site = f"resid_post.{LAYER}"
    h, x = on.model.states(base.tolist(), site).hidden, on.model.states(source.tolist(), site).hidden[:, -1]
    weight = start.clone().requires_grad_()

    def step() -> Tensor:
        basis = torch.linalg.qr(weight)[0]
        new = h.clone()
        new[:, -1] += (x - h[:, -1]) @ basis @ basis.T
        rotary = model.rotary_emb(new, position_ids=arguments["position_ids"])
        for block in model.layers[LAYER + 1 :]:
            new = block(new, attention_mask=None, position_embeddings=rotary, position_ids=arguments["position_ids"])
        loss = cross_entropy(on.hf.lm_head(model.norm(new[:, -1])), labels)
        loss.backward()
        return loss.detach()

    return step


def _steps(runs: StoredRuns, edit: inlay.Edit) -> Callable[[], Tensor]:
    """What `das` does in a step, on the batches in turn; gives the loss before it."""
    optimizer = torch.optim.Adam(edit.parameters(), lr=LR)
    batches = cycle(rows.tolist() for rows in torch.arange(ROWS).split(BATCH))

    def step() -> Tensor:
        rows = next(batches)
        optimizer.zero_grad()
        loss = cross_entropy(runs.logits(rows, runs.edit(rows)), runs.labels[rows])
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step
