"""Source: another run whose activations an intervention takes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from inlay.errors import EditError, SiteError
from inlay.model.activations import Activations
from inlay.model.sites import Site
from inlay.model.tokens import Tokens


class Source:
    """A run to take activations from; it is run lazily, once per call for all Sites that ask for it.

    Args:
        prompts: prompts as `model.forward` takes them, a stored tensor [rows, k, width], or the `Activations` of an
            earlier read.
        tokens: which tokens of the source; those of the Edit that uses it by default.
        site: which Site of the source; that of the Edit that uses it by default.
        edit: an Edit under which the source itself runs (serial interchange).
        grad: whether gradients flow through the source run; it is run without them by default.
    """

    def __init__(
        self,
        prompts: Any,
        *,
        tokens: Any = None,
        site: str | Site | None = None,
        edit: Any = None,
        grad: bool = False,
    ) -> None:
        self.prompts, self.edit, self.grad = prompts, edit, grad
        self.tokens = None if tokens is None else Tokens.parse(tokens)
        self.site = None if site is None else Site.parse(site)
        if isinstance(prompts, Tensor) and prompts.is_floating_point() and prompts.ndim != 3:
            raise EditError(
                f"a stored Source is [rows, k, width], not {list(prompts.shape)}; a constant vector is Replace(v)"
            )
        if edit is not None and self.stored:
            raise EditError("a Source of stored activations is not run again, so no Edit can act on it")

    @property
    def stored(self) -> bool:
        """Whether the activations are at hand and no model is run."""
        return isinstance(self.prompts, Activations) or (
            isinstance(self.prompts, Tensor) and self.prompts.is_floating_point()
        )

    def asks(self, model: Any, site: Site, tokens: Tokens) -> tuple[Site, Tokens]:
        """What it reads for an Edit at this Site and these tokens.

        Raises:
            SiteError: its own Site is not one, or stands for several layers.
        """
        if self.site is None:
            return site, self.tokens or tokens
        found = model.sites().expand(self.site)
        if len(found) != 1:
            raise SiteError(f"Source(site={str(self.site)!r}) names {len(found)} layers: name one")
        return found[0], self.tokens or tokens

    def pick(self, model: Any, rows: Sequence[int], total: int, part: Callable[[Any], Any]) -> Source:
        """The source of some of `total` base rows: its own rows, where it has one for each.

        `part` cuts a part of the Edit that the source itself runs under in the same way.
        """
        every: Any = self.prompts
        if not self.stored:
            every = [list(row.ids) for row in model.encoder.rows(self.prompts)]
        acts = isinstance(every, Activations)
        if total == 1 or len(next(iter(every.values())) if acts else every) != total:
            return self
        mine = every.pick(rows) if acts else every[list(rows)] if self.stored else [every[row] for row in rows]
        edit = self.edit if self.edit is None else type(self.edit).of(tuple(part(one) for one in self.edit.parts))
        tokens = self.tokens.pick(rows, total) if self.tokens else None
        return Source(mine, tokens=tokens, site=self.site, edit=edit, grad=self.grad)

    def activations(self, model: Any, wanted: Sequence[tuple[Site, Tokens]]) -> list[tuple[Tensor, Tensor | None]]:
        """Values [rows, k, width] and which are real, bool [rows, k], for every (Site, Tokens), from one forward.

        Raises:
            EditError: stored activations do not hold a Site that is asked for.
        """
        if isinstance(self.prompts, Activations):
            return [self._stored(self.prompts, site) for site, _ in wanted]
        if self.stored:
            return [(self.prompts, None)] * len(wanted)
        with torch.set_grad_enabled(self.grad and torch.is_grad_enabled()):
            return list(model.take(self.prompts, wanted, edit=self.edit))

    def _stored(self, acts: Activations, site: Site) -> tuple[Tensor, Tensor | None]:
        if str(site) not in acts:
            raise EditError(f"the Source's activations hold {', '.join(acts)}, not {site}")
        values = acts[str(site)]
        if acts.mask is None:
            values = values[:, None]
        return values.flatten(2) if values.ndim > 3 else values, acts.mask

    def describe(self, state: dict[str, Tensor], prefix: str) -> dict[str, Any]:
        """Itself as JSON values, but for its Edit; its tensors are put into `state`, their names after `prefix`.

        Raises:
            EditError: its prompts or its tokens live only in memory.
        """
        if self.tokens is not None and not self.tokens.storable:
            raise EditError(f"Source(tokens={self.tokens}) belongs to one batch and cannot be saved")
        said = {"tokens": self.tokens and str(self.tokens), "site": self.site and str(self.site), "grad": self.grad}
        what = self.prompts
        if isinstance(what, Tensor):
            state[f"{prefix}.tensor"] = what
            return said | {"prompts": None, "read": None}
        if isinstance(what, Activations):
            state |= {f"{prefix}.{name}": tensor for name, tensor in what.items()}
            state |= {} if what.mask is None else {f"{prefix}.mask": what.mask}
            return said | {"prompts": None, "read": {"sites": list(what), "layers": what.layers}}
        texts = [what] if isinstance(what, str) else what
        try:
            return said | {"prompts": json.loads(json.dumps(texts)), "read": None}
        except TypeError as error:
            raise EditError(f"a Source of {what!r:.60} cannot be saved: {error}") from error

    @classmethod
    def described(cls, said: Mapping[str, Any], state: Mapping[str, Tensor], prefix: str, edit: Any = None) -> Source:
        """The Source that `describe` told of, with its Edit.

        Raises:
            KeyError, InlayError: the description or a tensor is not complete.
        """
        prompts = said["prompts"]
        if said["read"] is not None:
            sites, mask = said["read"]["sites"], state.get(f"{prefix}.mask")
            tensors = {name: state[f"{prefix}.{name}"] for name in sites}
            prompts = Activations(tensors, mask, layers=said["read"]["layers"])
        elif prompts is None:
            prompts = state[f"{prefix}.tensor"]
        return cls(prompts, edit=edit, **{name: said[name] for name in ("tokens", "site", "grad")})

    def __repr__(self) -> str:
        what = "stored activations" if self.stored else f"{self.prompts!r:.60}"
        return f"Source({what}" + (f", tokens={str(self.tokens)!r}" if self.tokens else "") + ")"
