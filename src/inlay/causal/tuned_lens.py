"""The tuned lens: an affine map for each Site after which the model's own head says what the model will say.

Legend: N positions, W width, V vocabulary, S Sites.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from inlay.causal.tail import last_site, residual_sites, tail_logits
from inlay.errors import CausalError, SiteError
from inlay.model.inputs import Row, plan_batches
from inlay.model.sites import Site

if TYPE_CHECKING:
    from inlay.model.activations import Activations
    from inlay.model.model import Model

Sites = str | Site | Sequence[str | Site]
MOMENTUM, WEIGHT_DECAY, CLIP = 0.9, 1e-3, 1.0


class TunedLens(nn.Module):
    """h + A h + b for every Site, then the model's own final norm and head.

    A and b begin at 0, where it is the logit lens. Written as a change of h, so that weight decay draws it to the
    identity. The last block's `resid_post` needs no translator and has none.

    Source: Belrose et al. 2023, "Eliciting latent predictions from transformers with the tuned lens" (2303.08112,
    section 3), and the authors' `tuned-lens` 0.2.0 for the training.

    Args:
        model: the Model that it belongs to.
        sites: states of the residual stream.

    Attributes:
        sites: the Sites that have a translator, in the forward's order of `sites`.
        translators: for each of them an `nn.Linear` with A and b, float32.
        facts: how it was fitted; empty for one that was not.

    Raises:
        SiteError: the model lacks a Site, or one is no state of the residual stream.
    """

    def __init__(self, model: Model, sites: Sites = "resid_post.*") -> None:
        super().__init__()
        self.model, self.end = model, last_site(model)
        self.sites = [site for site in residual_sites(model, sites) if site != self.end]
        self.translators = nn.ModuleList(
            nn.Linear(model.width, model.width, device=model.device, dtype=torch.float32) for _ in self.sites
        )
        self.facts: dict[str, Any] = {}
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def translate(self, site: str | Site, states: Tensor) -> Tensor:
        """States [..., W] of a Site as the last block would put them; computed in float32, given in their own dtype.

        Raises:
            SiteError: it has no translator for the Site.
        """
        (found,) = self.model.sites().expand(site)
        if found == self.end:
            return states
        if found not in self.sites:
            raise SiteError(f"this lens has no translator for {found}; it has: {', '.join(map(str, self.sites))}")
        translator = self.translators[self.sites.index(found)]
        states = states.to(next(translator.parameters()).device)
        change: Tensor = translator(states.float())
        return states + change.to(states.dtype)

    def logits(self, acts: Activations) -> dict[str, Tensor]:
        """Logits [n, V] or [n, k, V] by Site, of all states in `acts`; those behind a short row's own mean nothing.

        Raises:
            SiteError: it has no translator for a Site.
        """
        found = {}
        for site, states in acts.items():
            here = self.translate(site, states)
            found[site] = tail_logits(self.model, here.flatten(0, -2)).unflatten(0, here.shape[:-1])
        return found

    @classmethod
    def fit(
        cls,
        model: Model,
        texts: Any,
        sites: Sites = "resid_post.*",
        *,
        steps: int = 250,
        lr: float = 1.0,
        step_tokens: int = 2**14,
        batch_tokens: int = 2048,
        seed: int = 0,
        chat: bool | None = None,
    ) -> Self:
        """Train one on a model's own states: KL(final || lens), averaged over the tokens of a step.

        One forward gives the states of all Sites, and every translator takes its step from them. As in the authors'
        code: SGD with Nesterov momentum 0.9 and a rate of `lr` x (1 - 0.9) that falls to 0 in a line, weight decay
        1e-3, the gradient of all translators together clipped to length 1. The base model is not trained and gets no
        gradients.

        Args:
            model: the Model, best in eval mode.
            texts: see `Encoder.rows`; what the lens will be used on, or text like the model's training data.
            sites: states of the residual stream.
            steps: of the optimiser.
            lr: the rate at the first step; the authors' is 1 (their learning rates are scaled as above).
            step_tokens: the tokens of a step, of which the authors take 2^18; one text at least.
            batch_tokens: the most padded tokens in one forward; a step of more takes several.
            seed: of the order of the texts.
            chat: whether plain strings are user turns.

        Raises:
            CausalError: a setting is out of range, or the KL is no longer finite.
            InlayError: the texts do not fit; see its classes.
        """
        for name, value in (("steps", steps), ("step_tokens", step_tokens), ("batch_tokens", batch_tokens)):
            if value < 1:
                raise CausalError(f"{name}={value}: give at least 1")
        if not 0 < lr < float("inf"):
            raise CausalError(f"lr={lr}: give a positive number")
        rows = model.encoder.rows(texts, chat=chat)
        lens = cls(model, sites)
        optimizer = torch.optim.SGD(
            lens.parameters(), lr * (1 - MOMENTUM), momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY
        )
        falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
        draws = _draws(rows, step_tokens, seed)
        for step in range(steps):
            kl_S = lens.gradients(next(draws), batch_tokens)
            length = nn.utils.clip_grad_norm_(lens.parameters(), CLIP)
            if not bool(kl_S.isfinite().all() & length.isfinite().cpu()):
                said = ", ".join(f"{site} {kl:.3g}" for site, kl in zip(lens.sites, kl_S.tolist(), strict=True))
                raise CausalError(f"step {step}: the KL or its gradient is no longer finite ({said}); lower lr={lr}")
            optimizer.step()
            optimizer.zero_grad()
            falling.step()
        lens.facts = {
            "texts": len(rows),
            "steps": steps,
            "lr": lr,
            "step_tokens": step_tokens,
            "seed": seed,
            "kl": dict(zip(map(str, lens.sites), kl_S.tolist(), strict=True)),
        }
        return lens.requires_grad_(False)

    def gradients(self, rows: Sequence[Row], batch_tokens: int) -> Tensor:
        """Add to `.grad` the gradient of the mean KL over the tokens of some rows, for every Site; gives that KL, [S].

        Args:
            rows: rows of ids.
            batch_tokens: the most padded tokens in one forward.
        """
        total = sum(len(row.ids) for row in rows)
        kl_S = torch.zeros(len(self.sites))
        for batch in plan_batches(rows, batch_tokens):
            with torch.no_grad():
                out = self.model.forward([list(rows[i].ids) for i in batch], read=self.sites)
                real = out.mask.bool()
                final_NV = out.logits[real.to(out.logits.device)].float().log_softmax(-1)
            assert out.acts is not None
            for index, (site, translator) in enumerate(zip(self.sites, self.translators, strict=True)):
                states = out.acts[site]
                kl = _kl(final_NV, self, site, states[real.to(states.device)]) / total
                kl_S[index] += kl.detach().cpu()
                for parameter, gradient in zip(
                    translator.parameters(), torch.autograd.grad(kl, list(translator.parameters())), strict=True
                ):
                    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        return kl_S

    def save(self, folder: str | Path) -> Path:
        """Write it as a folder, `lens.json` and `lens.safetensors`; see `lens_folder.write`."""
        from inlay.causal import lens_folder

        return lens_folder.write(self, Path(folder).expanduser())

    @classmethod
    def load(cls, folder: str | Path, model: Model) -> Self:
        """What `save` wrote, for the same base model; see `lens_folder.read`."""
        from inlay.causal import lens_folder

        return lens_folder.read(cls, Path(folder).expanduser(), model)

    def extra_repr(self) -> str:
        """The model and the Sites."""
        return f"{self.model.name!r}, {self.sites[0]} ... {self.sites[-1]}" if self.sites else repr(self.model.name)


def _kl(final_NV: Tensor, lens: TunedLens, site: Site, states_NW: Tensor) -> Tensor:
    """KL(final || lens) at one Site, summed over positions."""
    with torch.enable_grad():
        found_NV = tail_logits(lens.model, lens.translate(site, states_NW)).float().log_softmax(-1)
        return (final_NV.exp() * (final_NV - found_NV)).sum()


def _draws(rows: Sequence[Row], step_tokens: int, seed: int) -> Iterator[list[Row]]:
    """The rows of each step, drawn without replacement until all had their turn, then anew."""
    random = torch.Generator().manual_seed(seed)
    taken: list[Row] = []
    while True:
        for index in torch.randperm(len(rows), generator=random).tolist():
            taken.append(rows[index])
            if sum(len(row.ids) for row in taken) >= step_tokens:
                yield taken
                taken = []
