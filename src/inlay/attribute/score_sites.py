"""Score the parts of a model: positions of a layer, heads, neurons, latents of a sparse autoencoder.

Legend: R rows, k positions of a row, H heads, W width of a Site, m latents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from inlay.attribute.asked import Asked
from inlay.attribute.backward import backward_rules, refuse_dropout
from inlay.attribute.baselines import baselines
from inlay.attribute.features import features
from inlay.attribute.methods import refuse_flat
from inlay.attribute.question import Target, question
from inlay.attribute.rules import PRESETS, RuleSet
from inlay.attribute.site_scores import SiteScores
from inlay.errors import InputError, SiteError
from inlay.interventions.sae import SAE
from inlay.model.answers import Answer
from inlay.model.chosen import chosen_slots, token_text
from inlay.model.reading import collect, with_gradients
from inlay.model.running import make_run, wanted
from inlay.model.sites import HEADED, Site
from inlay.model.two_stacks import refuse

if TYPE_CHECKING:
    from inlay.model.model import Model

Level = Literal["position", "head", "unit"]


@torch.inference_mode(False)  # as for `tokens`
def site(
    model: Model,
    prompts: Any,
    sites: str | Site | Sequence[str | Site],
    target: Target = None,
    foil: Answer | Sequence[Answer] | None = None,
    method: str = "gim",
    *,
    level: Level | None = None,
    tokens: Any = "all",
    baseline: Any = "space",
    sae: SAE | None = None,
    at: Any = None,
    quantity: str | None = None,
    responses: Sequence[str] | None = None,
    rules: str | RuleSet | None = None,
    n: int = 50,
    batch_tokens: int = 8192,
    chat: bool | None = None,
) -> SiteScores:
    """What each part of the model adds to a number, by Site: (activation - baseline's activation) . gradient.

    One forward and one backward give all Sites, and one forward the baseline's activations. `"conductance"` integrates
    along the straight path of the embeddings from the baseline, in n + 1 forwards and backwards: what flows through
    each part of integrated gradients (1805.12233). At all positions of one layer of the residual stream it adds up to
    the whole change of the number.

    Args:
        model: the Model.
        prompts, responses, chat: see `Encoder.rows`.
        sites: which parts, such as `"resid_post.*"`, `"z.*"`, `"mlp_act.*"`, `"attn_out.3"`.
        target, foil, at, quantity: what is explained; see `question`.
        method: a rule set of `PRESETS`, or `"conductance"`.
        level: what gets a score of its own: each `"position"` (summed over the width), each `"head"`, each `"unit"`
            (neuron, or latent with `sae`). By default heads where every Site is made of heads, units with `sae`, else
            positions.
        tokens: which tokens.
        baseline: as in `tokens`: the Sites' activations on the baseline's embeddings are what is subtracted. `"zero"`
            subtracts nothing: the scores are then activation . gradient.
        sae: a sparse autoencoder of the one Site: its latents are scored, (z - baseline's z) . (gradient W_dec^T). What
            it does not reconstruct has no score.
        rules: for `"conductance"`, a rule set for its gradients.
        n: steps of the path of `"conductance"`.
        batch_tokens: the most padded tokens of one forward.

    Raises:
        SiteError: the model has no such Site, no gradient reaches it, or its shape does not fit `level` or `sae`.
        InputError: the method scores tokens alone, or the settings do not fit each other.
        TargetError, BaselineError, RuleError: as in `tokens`.
    """
    refuse(model, "attribute.site")
    refuse_dropout(model.base)
    refuse_flat(method, quantity)
    where = model.sites().expand(sites)
    if any(one.name == "logits" for one in where):
        raise SiteError("the logits are what is explained, not a part of it: name Sites below them")
    asks = question(
        model,
        prompts,
        target,
        foil,
        at=at,
        quantity=quantity,
        responses=responses,
        batch_tokens=batch_tokens,
        chat=chat,
    )
    if asks.projection is not None:
        raise InputError("a direction's score is explained by tokens: use inlay.attribute.tokens")
    zero = isinstance(baseline, str) and baseline == "zero"
    base = baselines(model, baseline, asks.rows)
    if len(base) > 1:
        raise InputError("an Expected baseline is of tokens: give one baseline for Sites")
    if zero and method == "conductance":
        raise InputError("conductance runs along a path of embeddings: give a baseline of tokens or embeddings")
    asked = Asked(model, asks, base[0], features(model, asks.rows), batch_tokens)
    part = _Part(asked, where, tokens, _level(model, where, level, sae), sae)
    under, name = _rules(method, rules, n)
    with nullcontext() if under is None else backward_rules(model, under) as hit:
        scores = [
            part.conductance(rows, n) if method == "conductance" else part.change(rows, zero)
            for rows in asked.batches()
        ]
    slots = chosen_slots(model, asked.batch(range(len(asks.rows))), tokens).cpu()
    count, order = slots.sum(1), [row for rows in asked.batches() for row in rows]
    return SiteScores(
        scores={str(one): _joined([some[str(one)] for some in scores], order, int(count.max())) for one in where},
        mask=torch.arange(int(count.max())) < count[:, None],
        tokens=[
            [token_text(model, row.ids[slot]) for slot in mine.nonzero().flatten().tolist()]
            for row, mine in zip(asks.rows, slots, strict=True)
        ],
        level=part.level,
        target=asks.target,
        foil=asks.foil,
        quantity=asks.quantity,
        method=name,
        baseline="zero activation" if zero else base[0].name,
        m_clean=asked.all_values(base=False),
        m_baseline=asked.all_values(base=True),
        report="" if hit is None else str(hit),
    )


def _rules(method: str, rules: str | RuleSet | None, n: int) -> tuple[str | RuleSet | None, str]:
    """The rule set that gradients are taken under, and what the scores are called."""
    if method in PRESETS:
        if rules is not None:
            raise InputError(f"method={method!r} is a rule set already: leave rules= out")
        return method, method
    if method != "conductance":
        raise InputError(f"method={method!r}: Sites are scored by {', '.join(PRESETS)} or conductance")
    if n < 1:
        raise InputError(f"n={n}: give at least 1 step")
    named = "" if rules is None else f" under {rules if isinstance(rules, str) else 'rules'}"
    return rules, f"conductance(n={n}){named}"


def _level(model: Model, where: Sequence[Site], level: Level | None, sae: SAE | None) -> Level:
    headed = all(one.name in HEADED for one in where)
    if sae is not None:
        if len(where) != 1 or model.sites().width(where[0]) != sae.width:
            raise SiteError(
                f"sae= reads one Site of width {sae.width}, and these were named: {', '.join(map(str, where))}"
            )
        if level not in (None, "unit", "position"):
            raise SiteError(f"level={level!r} with sae=: 'unit' scores its latents, 'position' their sum")
        return level or "unit"
    if level == "head" and not headed:
        raise SiteError(f"level='head' is of Sites that are made of heads: {', '.join(HEADED)}")
    if level not in (None, "position", "head", "unit"):
        raise SiteError(f"level={level!r}: 'position', 'head' or 'unit'")
    return level or ("head" if headed else "position")


@dataclass(frozen=True)
class _Part:
    """Some Sites at some tokens, scored batch by batch."""

    asked: Asked
    where: list[Site]
    tokens: Any
    level: Level
    sae: SAE | None

    def change(self, rows: list[int], zero: bool) -> dict[str, Tensor]:
        """(h - h_b) . gradient, by Site."""
        acts, gradients = self._read(rows, self.asked.embeds[rows])
        if zero:
            ground = {name: torch.zeros_like(h) for name, h in acts.items()}
        else:
            with torch.no_grad():
                ground, _ = self._read(rows, self.asked.base[rows], grads=False)
        return {name: self._scored(h, ground[name], gradients[name]) for name, h in acts.items()}

    def conductance(self, rows: list[int], n: int) -> dict[str, Tensor]:
        """The integral of gradient . dh along the path of the embeddings by the trapezoid rule, by Site."""
        x, b = self.asked.embeds[rows], self.asked.base[rows]
        before, g_before = self._read(rows, b)
        total: dict[str, Tensor] = {}
        for k in range(1, n + 1):
            now, g_now = self._read(rows, b + (k / n) * (x - b))
            for name, h in now.items():
                step = self._scored(h, before[name], (g_before[name] + g_now[name]) / 2)
                total[name] = total[name] + step if name in total else step
            before, g_before = now, g_now
        return total

    def _read(self, rows: list[int], embeds: Tensor, grads: bool = True) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Activations and gradients at the Sites, each [n, k, ...], float32."""
        asked, model = self.asked, self.asked.model
        batch = asked.batch(rows)
        run = make_run(
            model,
            None,
            wanted(model, self.where, self.tokens),
            attended=batch.mask,
            prompt_mask=batch.prompt,
            grads=grads,
        )
        with torch.set_grad_enabled(grads):
            with run:
                value = asked.values(rows, embeds.detach())
            acts = with_gradients(run, value.sum()) if grads else collect(run)
        assert acts is not None
        gradients = {} if acts.gradients is None else acts.gradients

        def even(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: (t if acts.mask is not None else t[:, None]).detach().float() for name, t in tensors.items()}

        return even(acts), even(gradients)

    def _scored(self, h: Tensor, ground: Tensor, gradient: Tensor) -> Tensor:
        """What a change of activations adds, at the level that is wanted."""
        if self.sae is not None:
            found = (self.sae.encode(h) - self.sae.encode(ground)) * (
                gradient @ self.sae.get_parameter("W_dec").float().T
            )
        else:
            found = (h - ground) * gradient
        if self.level == "unit":
            return found.flatten(2)
        if self.level == "head":
            return found.sum(-1) if found.ndim == 4 else found.sum(-1, keepdim=True)
        return found.flatten(2).sum(-1)


def _joined(pieces: list[Tensor], order: list[int], count: int) -> Tensor:
    """Batches [n, k, ...] as all rows in their own order, [R, count, ...], on the CPU."""
    padded = [pad(one, (0, 0) * (one.ndim - 2) + (0, count - one.shape[1])) for one in pieces]
    return torch.cat(padded)[torch.tensor(order).argsort()].cpu()
