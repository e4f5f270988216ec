"""Find the Sites of a model: name its parts, run two tokens through it, and keep what the run confirms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from inlay.errors import ModelError, SiteError
from inlay.model import architectures as names
from inlay.model.places import Place
from inlay.model.probe import Seen, gave, probe, took
from inlay.model.sitemap import SiteMap
from inlay.model.sites import GLOBAL, LAYERED


def discover(base: nn.Module, family: str, config: Any, example: Mapping[str, Any] | Tensor | None = None) -> SiteMap:
    """The Sites of `base`, confirmed on a run of two tokens in eval mode; modes are as before afterwards.

    Args:
        base: the causal language model itself (not an adapter around it).
        family: `config.model_type`, or the class name of a model without a config.
        config: its text config, or `None`.
        example: inputs for the run, for models that do not take `input_ids`.

    Raises:
        ModelError: no list of blocks was found.
    """
    _lists(base)  # before a run that could only fail
    seen = probe(base, example)
    path, blocks = _blocks(base, config, seen)
    decoder = path.rpartition(".")[0]
    found = SiteMap(family=family, layers=len(blocks), decoder=decoder, encoder=_stack(base, "get_encoder"))
    found.blocks = tuple(f"{path}.{i}" for i in range(len(blocks)))
    first = seen[found.blocks[0]]
    found.block_key, found.block_items = first.gave_key, first.gave_items
    heads = getattr(config, "num_attention_heads", 0) or 0
    entry = names.FAMILIES.get(family, names.Family())
    found.lacks.update(entry.lacks)
    for layer, block in enumerate(blocks):
        for name, place in _block_sites(found.blocks[layer], block, seen, entry, config, heads, found):
            found.places.setdefault(name, {})[layer] = replace(place, fragile=name in entry.overwrites)
    for name, place in _global_sites(base, decoder, seen):
        found.places[name] = {None: place}
    order = {name: i for i, name in enumerate(("embed", *LAYERED, "final_norm", "logits"))}
    found.places = dict(sorted(found.places.items(), key=lambda item: order[item[0]]))
    if entry.parallel(config):
        found.lacks.setdefault("resid_mid", "attention and MLP read the same stream")
    for name in (*LAYERED, *GLOBAL):
        if name not in found.places:
            found.lacks.setdefault(name, "no part of its blocks plays this role")
    return found


def _lists(base: nn.Module) -> list[tuple[str, nn.ModuleList]]:
    """Every list of modules that could be the blocks, with its path.

    Raises:
        ModelError: there is none.
    """
    lists = [(n, m) for n, m in base.named_modules() if isinstance(m, nn.ModuleList) and len(m)]
    if not lists:
        raise ModelError(
            f"{type(base).__name__} has no nn.ModuleList of blocks; give its map: "
            "inlay.load(model, sites={'resid_post': 'path.to.block.{layer}:out'})"
        )
    return lists


def _blocks(base: nn.Module, config: Any, seen: Mapping[str, Seen]) -> tuple[str, nn.ModuleList]:
    """The list of blocks, and its path: of those that the run called, the largest of the length that is wanted."""
    wanted, within = getattr(config, "num_hidden_layers", None), _stack(base, "get_decoder")
    if within:
        wanted = next((n for name in names.DECODER_LAYERS if (n := getattr(config, name, None))), None)
    called = [(n, m) for n, m in _lists(base) if f"{n}.0" in seen and n.startswith(f"{within}." if within else "")]
    exact = [(n, m) for n, m in called if len(m) == wanted] or called
    if not exact:
        raise ModelError(f"the two-token run called no block of {type(base).__name__}; give its map: sites={{...}}")
    return max(exact, key=lambda item: sum(p.numel() for p in item[1].parameters()))


def _stack(base: nn.Module, getter: str) -> str:
    """Path of an encoder-decoder model's encoder or decoder; "" for other models."""
    if not getattr(getattr(base, "config", None), "is_encoder_decoder", False):
        return ""
    stack = _called(base, getter)
    return next((path for path, module in base.named_modules() if module is stack), "")


def child(module: nn.Module, *options: str) -> tuple[str, nn.Module] | None:
    """The first of the named submodules that exists, with its relative path."""
    for name in options:
        here: Any = module
        for step in name.split("."):
            here = getattr(here, step, None)
        if isinstance(here, nn.Module):
            return name, here
    return None


def _block_sites(
    path: str,
    block: nn.Module,
    seen: Mapping[str, Seen],
    entry: names.Family,
    config: Any,
    heads: int,
    found: SiteMap,
) -> Iterator[tuple[str, Place]]:
    pre, post = took(path, seen), gave(path, seen)
    if pre is None or post is None:
        raise ModelError(
            f"block {path} took or gave no hidden state in the probe run; give the model's map: sites={{...}}"
        )
    yield "resid_pre", pre
    yield "resid_post", post
    attention = next((c for n in names.ATTENTION if (c := child(block, n)) and took(f"{path}.{c[0]}", seen)), None)
    if attention:
        where = f"{path}.{attention[0]}"
        if place := took(where, seen):
            yield "attn_in", place
        yield from _attention_sites(where, attention[1], seen, entry, config, heads)
    mlp = next((c for n in names.MLP if (c := child(block, n)) and took(f"{path}.{c[0]}", seen)), None)
    yield from _mlp_sites(path, block, mlp, seen)
    yield from _residual_sites(path, block, attention, mlp, seen, entry, config, found)


def _attention_sites(
    path: str, module: nn.Module, seen: Mapping[str, Seen], entry: names.Family, config: Any, heads: int
) -> Iterator[tuple[str, Place]]:
    out = child(module, *names.BEFORE_OUT) or child(module, *names.OUT)
    z = took(f"{path}.{out[0]}", seen) if out else None
    if z:
        heads = heads if heads and z.width % heads == 0 else 0
        z = replace(z, heads=heads)
        yield "z", z
    size = z.width // heads if z and heads else 0
    for trio in names.SEPARATE:
        parts = [gave(f"{path}.{name}", seen) for name in trio]
        if all(parts):
            for name, place in zip("qkv", parts, strict=True):
                assert place
                yield (
                    name,
                    replace(place, heads=place.width // size if size and place.width % size == 0 else 0),
                )
    fused = child(module, *names.FUSED)
    if fused and heads and (whole := gave(f"{path}.{fused[0]}", seen)):
        fused_parts = entry.fused(config, whole.width, heads)
        if _first_value_is(z, fused_parts[2], whole, seen):
            for name, one in zip("qkv", fused_parts, strict=True):
                width = one.heads * (size or whole.width // (3 * heads))
                yield name, replace(whole, columns=(one.columns,), heads=one.heads, width=width)
    if inside := seen[path].inside:
        for name, side in (("q_rot", "query"), ("k_rot", "key")):
            _, count, _, each = inside[side]
            yield name, Place(path, side, headed=True, heads=count, width=count * each)
        yield "pattern", Place(path, "pattern", headed=True, heads=inside["pattern"][1], width=-1)
    elif entry.dropout and (dropout := child(module, entry.dropout)):
        yield "pattern", Place(f"{path}.{dropout[0]}", "out", headed=True, heads=heads, width=-1)


def _first_value_is(z: Place | None, value: names.Fused, whole: Place, seen: Mapping[str, Seen]) -> bool:
    """Whether a first token, which attends to itself alone, has its own value in z: so the layout is the right one."""
    mixed, fused = seen[z.path].took if z else None, seen[whole.path].gave
    if mixed is None or fused is None or not z or not z.heads or z.heads % value.heads:
        return z is None
    first = value.columns.get(fused[..., :1, :]).unflatten(-1, (value.heads, -1))
    expected = first.repeat_interleave(z.heads // value.heads, -2).flatten(-2)
    return expected.shape == mixed[..., :1, :].shape and _same(expected, mixed[..., :1, :])


def _mlp_sites(
    path: str, block: nn.Module, mlp: tuple[str, nn.Module] | None, seen: Mapping[str, Seen]
) -> Iterator[tuple[str, Place]]:
    where, module = (f"{path}.{mlp[0]}", mlp[1]) if mlp else (path, block)
    entrance = where if mlp else next((f"{path}.{n}" for n in names.UP if child(block, n)), "")
    if place := took(entrance, seen):
        yield "mlp_in", place
    router = child(module, *names.ROUTER) if mlp else None
    if router and (place := gave(f"{where}.{router[0]}", seen)):
        inside = seen[f"{where}.{router[0]}"].gave_items > 0
        yield "router", replace(place, side="linear", key=None) if inside else place
    down = child(module, *names.BEFORE_DOWN) or child(module, *names.DOWN)
    if down and not router and (place := took(f"{where}.{down[0]}", seen)):
        yield "mlp_act", place


def _residual_sites(
    path: str,
    block: nn.Module,
    attention: tuple[str, nn.Module] | None,
    mlp: tuple[str, nn.Module] | None,
    seen: Mapping[str, Seen],
    entry: names.Family,
    config: Any,
    found: SiteMap,
) -> Iterator[tuple[str, Place]]:
    """`attn_out`, `mlp_out` and `resid_mid`: the candidates for which resid_pre + attn_out + mlp_out = resid_post."""
    scale = float(getattr(block, "residual_multiplier", 1.0))
    attn_at = _candidates(path, block, attention, names.POST_ATTENTION, names.OUT, seen)
    mlp_at = _candidates(path, block, mlp, names.POST_MLP, names.DOWN, seen)
    before, after = seen[path].took, seen[path].gave
    assert before is not None and after is not None
    for a in attn_at:
        for m in mlp_at:
            pair = gave(a, seen, scale=scale), gave(m, seen, scale=scale)
            if not pair[0] or not pair[1]:
                continue
            parts = [scale * _like(before, seen[p].gave) for p in (a, m)]
            if any(p.shape != before.shape for p in parts):
                continue
            size = before.abs() + parts[0].abs() + parts[1].abs()
            if not _same(before + parts[0] + parts[1], after, size):
                continue
            yield "attn_out", pair[0]
            yield "mlp_out", pair[1]
            if not entry.parallel(config):
                yield from _mid(path, block, mlp, before + parts[0], seen)
            return
    if attention and mlp:
        why = "no pair of outputs adds up to the block's step"
        found.lacks.update(attn_out=why, mlp_out=why, resid_mid=why)


def _candidates(
    path: str,
    block: nn.Module,
    part: tuple[str, nn.Module] | None,
    norms: Sequence[str],
    last: Sequence[str],
    seen: Mapping[str, Seen],
) -> list[str]:
    """Paths whose output may be the part's contribution: the norm behind it, the part, its last projection."""
    if part is None:
        return [f"{path}.{found[0]}"] if (found := child(block, *last)) else []
    options = [f"{path}.{part[0]}"]
    if found := child(part[1], *last):
        options.append(f"{path}.{part[0]}.{found[0]}")
    if norm := child(block, *norms):
        behind, gave_ = seen.get(f"{path}.{norm[0]}", Seen()), seen[options[0]].gave
        if behind.took is not None and gave_ is not None and torch.equal(behind.took, gave_):
            options.insert(0, f"{path}.{norm[0]}")
    return options


def _mid(
    path: str, block: nn.Module, mlp: tuple[str, nn.Module] | None, middle: Tensor, seen: Mapping[str, Seen]
) -> Iterator[tuple[str, Place]]:
    options = [n for n in names.BEFORE_MLP if child(block, n)] + ([mlp[0]] if mlp else [])
    for name in options:
        place = took(f"{path}.{name}", seen)
        if place and _same(_like(middle, seen[f"{path}.{name}"].took), middle):
            yield "resid_mid", place
            return


def _like(model: Tensor, other: Tensor | None) -> Tensor:
    assert other is not None
    other = other.to(model.device)
    return other.unflatten(0, (model.shape[0], -1)) if other.ndim == 2 and model.ndim == 3 else other


def _same(a: Tensor, b: Tensor, size: Tensor | None = None) -> bool:
    """Whether two tensors are equal but for rounding, given what was summed up to them (their own size by default)."""
    if a.shape != b.shape:
        return False
    eps = torch.finfo(torch.promote_types(a.dtype, b.dtype)).eps if a.dtype == b.dtype else torch.finfo(a.dtype).eps
    size = torch.maximum(a.abs(), b.abs()) if size is None else size
    return bool(
        ((a.double() - b.double()).abs() <= 8 * eps * size.double().clamp(min=float(size.abs().max()) * 1e-3)).all()
    )


def _called(base: nn.Module, method: str) -> Any:
    found: Any = getattr(base, method, None)
    return found() if callable(found) else None


def _global_sites(base: nn.Module, decoder: str, seen: Mapping[str, Seen]) -> Iterator[tuple[str, Place]]:
    path_of = {id(m): n for n, m in base.named_modules()}
    embed = _called(base, "get_input_embeddings")
    if embed is not None and (place := gave(path_of.get(id(embed), ""), seen)):
        yield "embed", place
    parent = base.get_submodule(decoder) if decoder else base
    norm = child(parent, *names.FINAL_NORM)
    prefix = f"{decoder}." if decoder else ""
    if norm and (place := gave(prefix + norm[0], seen)):
        yield "final_norm", place
    head = _called(base, "get_output_embeddings")
    where = path_of.get(id(head), "") if head is not None else (child(base, *names.HEAD) or ("", None))[0]
    if where and (place := gave(where, seen)):
        yield "logits", place


def given_map(base: nn.Module, given: Mapping[str, Any], example: Mapping[str, Any] | Tensor | None) -> SiteMap:
    """A map written by the user: Site name to `"path.{layer}.sub:out"`, or `("...:in", heads)` for Sites with heads.

    Raises:
        SiteError: a name is not a Site's, or a path leads to no module that the probe run called.
    """
    if not given:
        raise SiteError("sites={} is empty: name at least one Site, such as {'resid_post': 'blocks.{layer}:out'}")
    seen = probe(base, example)
    found = SiteMap(family=type(base).__name__)
    for name, spec in given.items():
        if name not in LAYERED + GLOBAL:
            raise SiteError(f"sites={{{name!r}: ...}}: no Site is called so. Names: {', '.join(LAYERED + GLOBAL)}")
        text, heads = spec if isinstance(spec, tuple) else (spec, 0)
        template, _, side = str(text).rpartition(":")
        bare = template.replace("{layer}", "")
        if side not in ("in", "out") or ("{layer}" in template) != (name in LAYERED) or "{" in bare:
            raise SiteError(
                f"sites={{{name!r}: {text!r}}}: write 'path.{{layer}}.sub:in' or ':out'; {{layer}} for layered Sites"
            )
        read = took if side == "in" else gave
        layers: list[int | None] = [None] if name in GLOBAL else list(range(len(seen)))
        for layer in layers:
            place = read(template.replace("{layer}", str(layer)), seen, heads=heads)
            if place is None:
                break
            if heads and place.width % heads:
                raise SiteError(f"sites={{{name!r}: ...}}: width {place.width} does not split into {heads} heads")
            found.places.setdefault(name, {})[layer] = place
        if name not in found.places:
            first = template.replace("{layer}", "0")
            raise SiteError(f"sites={{{name!r}: {text!r}}}: the probe run called no module at {first!r}")
    found.layers = max((len(p) for n, p in found.places.items() if n in LAYERED), default=0)
    block: dict[int | None, Place] = next(
        (found.places[n] for n in ("resid_post", "resid_pre") if n in found.places), {}
    )
    found.blocks = tuple(p.path for p in block.values())
    if found.blocks:
        one = seen[found.blocks[0]]
        found.block_key, found.block_items = one.gave_key, one.gave_items
    for name in (*LAYERED, *GLOBAL):
        if name not in found.places:
            found.lacks[name] = "the given map has none"
    return found
