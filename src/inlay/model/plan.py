"""From an Edit's parts and the wanted Sites to layers on modules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inlay.errors import SiteError
from inlay.model.call import LeafLike, PartLike
from inlay.model.following import Planned, RootLayer, follow
from inlay.model.layers import (
    ATTENTION_SIDES,
    AttentionLayer,
    KeepLayer,
    MidLayer,
    Read,
    RouterLayer,
    SiteLayer,
    Watch,
    Write,
)
from inlay.model.places import Place
from inlay.model.sites import Site

if TYPE_CHECKING:
    from inlay.model.engine import Run


def plan(run: Run) -> list[Planned]:
    """Everything that a run puts around its model's methods, in the order in which it is put there.

    Raises:
        SiteError: a Site does not exist, or a raw path leads nowhere.
        EditError: an intervention does not fit its Site.
    """
    planned: list[Planned] = follow(run)
    for place in _roots(run):
        planned.append((run.base.get_submodule(place.path), "forward", RootLayer(run, place)))
    at: dict[tuple[str, str], SiteLayer | RouterLayer | AttentionLayer] = {}

    def layer_at(place: Place) -> SiteLayer | RouterLayer | AttentionLayer:
        kind = "attention" if place.side in ATTENTION_SIDES else "router" if place.side == "linear" else "site"
        if (place.path, kind) not in at:
            module = run.base.get_submodule(place.path)
            made: SiteLayer | RouterLayer | AttentionLayer
            if kind == "attention":
                made = AttentionLayer(run, module)
            else:
                made = RouterLayer(run) if kind == "router" else SiteLayer(run)
            at[place.path, kind] = made
            planned.append((module, "forward", made))
        return at[place.path, kind]

    def add(place: Place, op: Any) -> None:
        layer = layer_at(place)
        if isinstance(layer, AttentionLayer):
            layer.ops[place.side].append(op)
        elif isinstance(layer, RouterLayer):
            layer.ops.append(op)
        else:
            side = layer.inputs if place.side == "in" else layer.outputs
            side.setdefault(place.key, []).append(op)
            if isinstance(op, Write) and "input" in run.parts[op.index].intervention.needs:
                layer.needs_input = True

    mids = _mids(run)
    for index, want in enumerate(run.wants):
        place = place_of(run, want.site)
        if want.before and want.site.name == "resid_mid" and want.site.layer in mids:
            mids[want.site.layer].reads.append(index)
        elif want.before or want.site.name == "resid_mid":  # which is written elsewhere, and may be mlp_in's place too
            add(place, Read(run, place, index))
    watched: set[LeafLike] = set()

    def watch(leaf: LeafLike) -> None:
        if leaf not in watched:
            watched.add(leaf)
            add(place_of(run, leaf.site), Watch(run, place_of(run, leaf.site), leaf))

    for index, part in enumerate(run.parts):
        place = place_of(run, part.site)
        if not part.joint:
            part.intervention.check(place.width, str(part.site))
        for leaf in _leaves(run, part):
            if _one_tensor(place, place_of(run, leaf.site)):  # its state before this part, and after those before it
                watch(leaf)
        if part.site.name != "resid_mid":
            add(place, Write(run, place, index))
    for leaf in run.leaves:
        watch(leaf)
    for index, want in enumerate(run.wants):
        if not want.before and want.site.name != "resid_mid":
            place = place_of(run, want.site)
            add(place, Read(run, place, index))
    for layer, mid in mids.items():
        assert layer is not None
        pre = run.sites.place(Site("resid_pre", layer))
        planned.append((run.base.get_submodule(pre.path), "forward", KeepLayer(run, pre, layer)))
        planned.append((run.base.get_submodule(mid.place.path), "forward", mid))
    return planned


def _leaves(run: Run, part: PartLike) -> tuple[LeafLike, ...]:
    """The conditions of a part.

    Raises:
        SiteError: one lies at no single Site, or on the `resid_mid` that the part itself writes.
    """
    leaves: tuple[LeafLike, ...] = () if part.when is None else part.when.leaves()
    for leaf in leaves:
        if "resid_mid" == leaf.site.name == part.site.name:
            raise SiteError(
                f"a condition at {leaf.site} cannot decide on an edit of {part.site}: no module gives that tensor "
                "before the edit; use attn_out or resid_pre"
            )
    return leaves


def _one_tensor(a: Place, b: Place) -> bool:
    return (a.path, a.side, a.key) == (b.path, b.side, b.key)


def _mids(run: Run) -> dict[int | None, MidLayer]:
    """A layer that writes to `resid_mid` for each block where the Edit does."""
    mids: dict[int | None, MidLayer] = {}
    for index, part in enumerate(run.parts):
        layer = part.site.layer
        if part.site.name == "resid_mid" and layer is not None:
            run.sites.place(part.site)
            place = run.sites.place(Site("attn_out", layer))
            mids.setdefault(layer, MidLayer(run, place, layer)).writes.append(index)
    return mids


def place_of(run: Run, site: Site) -> Place:
    """Where a Site of one layer lies in the run's model."""
    if site.name != "module":
        return run.sites.place(site)
    try:
        run.base.get_submodule(site.path)
    except AttributeError:
        raise SiteError(f"{site}: {type(run.base).__name__} has no module {site.path!r}") from None
    return Place(site.path, site.side, "first", width=0)


def _roots(run: Run) -> list[Place]:
    """Where gradients start: the first block's input, and the embeddings when those are wanted."""
    if not run.grads:
        return []
    names = ["embed"] * any(want.site.name == "embed" for want in run.wants) + ["resid_pre"]
    found = [run.sites.places.get(name, {}) for name in names]
    return [next(iter(places.values())) for places in found if places]
