"""Run the layers below a Site once, keep the result, and run only the layers above it again and again.

The model's own forward runs, with the blocks below the Site skipped: masks, positional embeddings, final norm,
soft-caps and loss are the family's own, and so are edits, reads and gradients above the Site.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from inlay.errors import EditError, SiteError
from inlay.model import patch
from inlay.model.inputs import Batch, pad
from inlay.model.passes import Want
from inlay.model.places import Place
from inlay.model.reading import until_stopped
from inlay.model.running import expanded, make_run, wanted
from inlay.model.sites import Site
from inlay.model.tokens import Tokens

if TYPE_CHECKING:
    from inlay.model.engine import Run
    from inlay.model.model import Model, Output


@dataclass(frozen=True)
class States:
    """The residual stream of a batch at one Site.

    Attributes:
        site: `resid_pre` or `resid_post` of one layer.
        hidden: [rows, tokens, width], right-padded.
        batch: the ids, mask and prompt mask that the states belong to.
    """

    site: Site
    hidden: Tensor
    batch: Batch

    def __len__(self) -> int:
        return len(self.hidden)

    def pick(self, rows: Sequence[int] | Tensor) -> States:
        """The states of some rows, in that order: a minibatch."""
        index = torch.as_tensor(rows, device=self.hidden.device)
        b, there = self.batch, torch.as_tensor(rows, device=self.batch.ids.device)
        cut = Batch(b.ids[there], b.mask[there], None if b.prompt is None else b.prompt[there], b.positions[there])
        return replace(self, hidden=self.hidden[index], batch=cut)


def states(
    model: Model,
    prompts: Any,
    site: str | Site,
    *,
    responses: Sequence[str] | None = None,
    edit: Any = None,
    rows: Any = None,
    strength: Any = None,
    chat: bool | None = None,
) -> States:
    """Run up to a Site, without gradients, and keep its states.

    Args:
        model: the Model.
        prompts, responses, chat: see `Encoder.rows`.
        site: `"resid_pre.l"` or `"resid_post.l"`.
        edit, rows, strength: an Edit below or at the Site, as in `Model.edited`.

    Raises:
        SiteError: another kind of Site, or more than one.
    """
    where = _one(model, site)
    batch = pad(model.encoder.rows(prompts, responses, chat), model.pad_id, model.device)
    wants = [Want(where, Tokens.parse("all"))]
    run = make_run(
        model,
        edit,
        wants,
        rows=rows,
        strength=strength,
        prompt_mask=batch.prompt,
        attended=batch.mask,
        stop=True,
        whole=True,
    )
    args, kwargs = model.arguments(batch)
    with torch.no_grad(), run, until_stopped():
        model.hf(*args, **kwargs)
    whole = run.taken[0][0].whole
    assert whole is not None
    return States(where, whole, batch)


def resume(
    model: Model,
    states: States,
    *,
    edit: Any = None,
    rows: Any = None,
    strength: Any = None,
    keys: Any = None,
    read: Any = None,
    tokens: Any = "all",
    before: bool = False,
    loss: bool = False,
    **kwargs: Any,
) -> Output:
    """A forward that starts at stored states; equal to the whole forward, with the blocks below not run.

    Args:
        model: the Model that the states were taken from.
        states: what `states` gave, or some of its rows.
        edit: an Edit at or above the Site; one below it changes nothing and raises.
        rows, strength, keys, read, tokens, before, loss, **kwargs: as in `Model.forward`.

    Raises:
        EditError: a part of the Edit lies below the states.
    """
    batch = states.batch
    wants = wanted(model, read, tokens, before)
    _fits(model, states)
    for site in (want.site for want in wants):
        if _below(model, site, _cut(states.site)):
            raise SiteError(f"{site} lies below {states.site}, where the states were taken, and does not run")
    for part in expanded(model, edit):
        if _below(model, part.site, _cut(states.site)):
            raise EditError(
                f"the Edit's part at {part.site} lies below {states.site}, where the states were taken, so that its "
                "module did not run: pass it to model.states(...)"
            )
    run = make_run(
        model,
        edit,
        wants,
        rows=rows,
        strength=strength,
        keys=keys,
        prompt_mask=batch.prompt,
        attended=batch.mask,
        start_at=(states.site, states.hidden),
    )
    if loss:
        real = batch.mask.bool() if batch.prompt is None else batch.mask.bool() & ~batch.prompt
        kwargs["labels"] = batch.ids.masked_fill(~real, -100)
    return model.run_batch(run, batch, **kwargs)


def _one(model: Model, site: str | Site) -> Site:
    found = model.sites().expand(site)
    if len(found) != 1 or found[0].name not in ("resid_pre", "resid_post"):
        raise SiteError(
            f"{site}: a forward resumes at one 'resid_pre.l' or 'resid_post.l', where the whole state is one tensor"
        )
    return found[0]


def _cut(site: Site) -> int:
    """How many blocks lie below a Site."""
    assert site.layer is not None
    return site.layer + (site.name == "resid_post")


def _below(model: Model, site: Site, cut: int) -> bool:
    """Whether a Site lies in what a forward from `cut` does not run; the very state it starts from does not."""
    if site.name == "module":
        skipped = [f"{path}." for path in model.sites().blocks[:cut]]
        return any(f"{site.path}.".startswith(path) for path in skipped)
    if site.name == "embed":
        return True
    if site.layer is None or site.layer >= cut:
        return False
    return not (site.name == "resid_post" and site.layer == cut - 1)


def _fits(model: Model, states: States) -> None:
    _one(model, states.site)
    if states.hidden.shape[-1] != model.width:
        raise SiteError(f"the states have width {states.hidden.shape[-1]}, and this model has width {model.width}")


class Skip(patch.Layer):
    """Stands in for a block that is not run: hands its input on, or gives the stored states."""

    def __init__(self, run: Run, place: Place, hidden: Tensor | None) -> None:
        super().__init__(run.here)
        self.place, self.hidden, self.sites = place, hidden, run.sites

    def around(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The block's output form, without running it."""
        key = self.place.key
        h = args[key] if isinstance(key, int) else kwargs[str(key)]
        if self.hidden is not None:
            h = self.hidden.to(h.device)
        if self.sites.block_key is None:
            return h
        items: list[Any] = [None] * self.sites.block_items
        items[self.sites.block_key] = h
        return tuple(items)


class Enter(patch.Layer):
    """Gives the first block stored states in place of the embeddings."""

    def __init__(self, run: Run, place: Place, hidden: Tensor) -> None:
        super().__init__(run.here)
        self.place, self.hidden = place, hidden

    def before(self, args: patch.Args, kwargs: patch.Kwargs) -> tuple[patch.Args, patch.Kwargs]:
        """Replace the hidden state."""
        key = self.place.key
        if isinstance(key, int):
            return (*args[:key], self.hidden.to(args[key].device), *args[key + 1 :]), kwargs
        return args, {**kwargs, str(key): self.hidden.to(kwargs[str(key)].device)}


def skipping(run: Run, site: Site, hidden: Tensor) -> list[tuple[nn.Module, str, patch.Layer]]:
    """The layers that make a forward start at `hidden`."""
    cut = _cut(site)
    places = run.sites.places["resid_pre"]
    blocks = [run.base.get_submodule(path) for path in run.sites.blocks]
    if cut == 0:
        return [(blocks[0], "forward", Enter(run, places[0], hidden))]
    return [(blocks[i], "forward", Skip(run, places[i], hidden if i == cut - 1 else None)) for i in range(cut)]
