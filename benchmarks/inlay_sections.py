"""What is measured of inlay, each beside plain HF and beside hooks written by hand."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from interleaved import AGAIN, PLAIN, Case, Plan, Section
from random_llama import ALL, ONE, adding, greedy, hooked, ids, inputs, llama, title, vectors
from torch import Tensor

import inlay

HOOK = "bare register_forward_hook"
BESIDE = {"d768": 1.05, "d64": None}  # the most that is aimed at, to the bare hook


def plans() -> Iterator[Plan]:
    """Every section, in order."""
    big, small = (functools.cache(functools.partial(_loaded, size)) for size in ("d768", "d64"))
    for layers, limit in ((ONE, 1.02), (ALL, 1.05)):
        yield title("forward", "d768", (4, 64), layers), _plan(_forward, big, (4, 64), layers, limit, 31)
    for rows in (1, 4):
        for layers, limit in ((ONE, 1.02), (ALL, 1.05)):
            work = _plan(_generate, big, (rows, 32), layers, limit, 15)
            yield title("generate 32 tokens", "d768", (rows, 32), layers), work
    yield title("forward, 64 vectors against one", "d768", (64, 8)), _plan(_bank_forward, big, 21)
    yield title("generate 8 tokens, 64 vectors against one", "d768", (64, 8)), _plan(_bank_generate, big, 15)
    yield title("read the last token of all residuals", "d768", (4, 64)), _plan(_read, big, (4, 64), 1.05, 31)
    yield title("interchange at 12 sites, one source", "d768", (4, 64)), _plan(_interchange, big, (4, 64), 21)
    yield title("resume above layer 8 of 12", "d768", (4, 64)), _plan(_resume, big, 31)
    for layers in (ONE, ALL):
        yield title("forward", "d64", (8, 64), layers), _plan(_forward, small, (8, 64), layers, None, 101)
    for layers in (ONE, ALL):
        work = _plan(_generate, small, (8, 64), layers, None, 21)
        yield title("generate 32 tokens", "d64", (8, 64), layers), work
    yield title("read the last token of all residuals", "d64", (8, 64)), _plan(_read, small, (8, 64), None, 101)
    yield title("interchange at 12 sites, one source", "d64", (8, 64)), _plan(_interchange, small, (8, 64), 51)


@dataclass(frozen=True)
class Loaded:
    """A model in both forms."""

    size: str
    hf: Any
    model: inlay.Model


def _loaded(size: str) -> Loaded:
    hf = llama(size)
    return Loaded(size, hf, inlay.load(hf))


def _plan(build: Callable[..., Section], loaded: Callable[[], Loaded], *arguments: Any) -> Callable[[str], Section]:
    return lambda title: build(title, loaded(), *arguments)


def _edit(layers: list[int], intervention: Any, tokens: Any = "all") -> inlay.Edit:
    site = "resid_post.*" if layers == ALL else f"resid_post.{layers[0]}"
    return inlay.Edit(site, intervention, tokens=tokens)


def _same(found: Tensor, wanted: Tensor, what: str) -> None:
    """A case that computes something else has no time worth reporting."""
    if not torch.equal(found, wanted):
        worst = (found.float() - wanted.float()).abs().max()
        raise AssertionError(f"{what}: differs from the hand-written hook by up to {worst:.3g}")


def _under(context: Callable[[], Any], call: Callable[[], Any]) -> Callable[[], Any]:
    """`call` inside a context that is made, entered and left each time."""

    def once() -> Any:
        with context():
            return call()

    return once


def _forward(
    title: str, on: Loaded, shape: tuple[int, int], layers: list[int], limit: float | None, rounds: int
) -> Section:
    hf, model, size = on.hf, on.model, on.size
    vector = vectors(size, 1)[0]
    batch = ids(size, *shape)
    arguments, rows = inputs(batch), batch.tolist()
    edit, hook = _edit(layers, inlay.Add(vector)), adding(vector)

    def plain() -> Tensor:
        return hf(**arguments).logits

    by_hook = _under(lambda: hooked(hf, layers, hook), plain)
    by_edit = _under(lambda: model.edited(edit), plain)

    def by_forward() -> Tensor:
        return model.forward(rows, edit=edit).logits

    _same(by_edit(), by_hook(), title)
    _same(by_forward(), by_hook(), title)
    return Section(
        title,
        (
            Case(PLAIN, plain),
            Case(AGAIN, plain),
            Case(HOOK, by_hook),
            Case("inlay, model.edited", by_edit, limit, HOOK, BESIDE[size]),
            Case("inlay, model.forward", by_forward, limit, HOOK, BESIDE[size]),
        ),
        rounds,
    )


def _generate(
    title: str, on: Loaded, shape: tuple[int, int], layers: list[int], limit: float | None, rounds: int
) -> Section:
    hf, model, size = on.hf, on.model, on.size
    vector = vectors(size, 1)[0]
    batch = ids(size, *shape)
    arguments, rows = greedy(batch), batch.tolist()
    options = {k: v for k, v in arguments.items() if k not in ("input_ids", "attention_mask")}
    edit, hook = _edit(layers, inlay.Add(vector)), adding(vector)

    def plain() -> Tensor:
        return hf.generate(**arguments)

    by_hook = _under(lambda: hooked(hf, layers, hook), plain)
    by_edit = _under(lambda: model.edited(edit), plain)

    def by_generate() -> Any:
        return model.generate(rows, edit=edit, **options)

    wanted = by_hook()
    _same(by_edit(), wanted, title)
    _same(torch.tensor(by_generate()), wanted[:, batch.shape[1] :], title)
    return Section(
        title,
        (
            Case(PLAIN, plain),
            Case(AGAIN, plain),
            Case(HOOK, by_hook),
            Case("inlay, model.edited", by_edit, limit, HOOK, BESIDE[size]),
            Case("inlay, model.generate", by_generate, limit, HOOK, BESIDE[size]),
        ),
        rounds,
    )


ONE_VECTOR = "inlay, one vector for all rows"


def _bank_cases(on: Loaded, plain: Callable[[], Tensor], title: str) -> tuple[Case, ...]:
    hf, model = on.hf, on.model
    table = vectors("d768", 64)
    bank = _edit(ONE, inlay.Bank([inlay.Add(v) for v in table]))
    one = _edit(ONE, inlay.Add(table[0]))
    rows = list(range(1, 65))
    by_hook = _under(lambda: hooked(hf, ONE, adding(table[:, None])), plain)
    with_bank = _under(lambda: model.edited(bank, rows=rows), plain)
    with_one = _under(lambda: model.edited(one), plain)
    _same(with_bank(), by_hook(), title)
    return (
        Case(PLAIN, plain),
        Case(AGAIN, plain),
        Case("bare register_forward_hook, 64 vectors", by_hook),
        Case(ONE_VECTOR, with_one),
        Case("inlay, Bank of 64, a vector for each row", with_bank, None, ONE_VECTOR),
    )


def _bank_forward(title: str, on: Loaded, rounds: int) -> Section:
    arguments = inputs(ids("d768", 64, 8))
    return Section(title, _bank_cases(on, lambda: on.hf(**arguments).logits, title), rounds)


def _bank_generate(title: str, on: Loaded, rounds: int) -> Section:
    arguments = greedy(ids("d768", 64, 8), 8)
    return Section(title, _bank_cases(on, lambda: on.hf.generate(**arguments), title), rounds)


def _read(title: str, on: Loaded, shape: tuple[int, int], limit: float | None, rounds: int) -> Section:
    hf, model, size = on.hf, on.model, on.size
    batch = ids(size, *shape)
    arguments, rows = inputs(batch), batch.tolist()

    def plain() -> Tensor:
        return hf(**arguments).logits

    def by_hook() -> list[Tensor]:
        kept: list[Tensor] = []
        with hooked(hf, ALL, lambda module, args, output: kept.append(output[:, -1].clone())):
            plain()
        return kept

    def by_forward() -> Any:
        return model.forward(rows, read="resid_post.*", tokens="last").acts

    def by_read() -> Any:
        return model.read(rows, "resid_post.*", tokens="last")

    for name in (by_forward, by_read):
        acts = name()
        _same(torch.stack([acts[f"resid_post.{layer}"] for layer in ALL]), torch.stack(by_hook()), title)
    return Section(
        title,
        (
            Case(PLAIN, plain),
            Case(AGAIN, plain),
            Case(HOOK, by_hook),
            Case("inlay, model.forward(read=)", by_forward, limit, HOOK, BESIDE[size]),
            Case("inlay, model.read (stops at the last site)", by_read, limit, HOOK, BESIDE[size]),
        ),
        rounds,
    )


def _interchange(title: str, on: Loaded, shape: tuple[int, int], rounds: int) -> Section:
    hf, model, size = on.hf, on.model, on.size
    batch = ids(size, 2 * shape[0], shape[1])
    base, source = batch.chunk(2)
    arguments, other = inputs(base), inputs(source)
    rows, others = base.tolist(), source.tolist()

    def twice() -> None:
        hf(**other)
        hf(**arguments)

    def by_hook() -> Tensor:
        kept: list[Tensor] = []
        with hooked(hf, ALL, lambda module, args, output: kept.append(output[:, -1].clone())):
            hf(**other)
        given = iter(kept)

        def swap(module: Any, args: Any, output: Tensor) -> Tensor:
            new = output.clone()
            new[:, -1] = next(given)
            return new

        with hooked(hf, ALL, swap):
            return hf(**arguments).logits

    def by_forward() -> Tensor:
        swap = inlay.Swap(inlay.Source(others))
        return model.forward(rows, edit=inlay.Edit("resid_post.*", swap, tokens="last")).logits

    _same(by_forward(), by_hook(), title)
    count = _forwards(hf, by_forward)
    if count != 2:
        raise AssertionError(f"{title}: {count} forwards ran, and 2 are enough")
    return Section(
        title,
        (
            Case(f"{PLAIN}, two forwards", twice),
            Case(f"{AGAIN}, two forwards", twice),
            Case(HOOK, by_hook),
            Case(f"inlay, Swap ({count} forwards ran)", by_forward, None, HOOK, BESIDE[size]),
        ),
        rounds,
    )


def _forwards(hf: Any, call: Callable[[], Any]) -> int:
    """How many forwards a call runs, counted at the embeddings."""
    seen: list[int] = []
    handle = hf.model.embed_tokens.register_forward_hook(lambda *_: seen.append(1))
    try:
        call()
    finally:
        handle.remove()
    return len(seen)


def _resume(title: str, on: Loaded, rounds: int) -> Section:
    hf, model = on.hf, on.model
    batch = ids("d768", 4, 64)
    arguments = inputs(batch)
    rows = batch.tolist()
    states = model.states(rows, "resid_post.8")

    def plain() -> Tensor:
        return hf(**arguments).logits

    def by_hand() -> Tensor:
        h, positions = states.hidden, arguments["position_ids"]
        rotary = hf.model.rotary_emb(h, position_ids=positions)
        for block in hf.model.layers[9:]:
            h = block(h, attention_mask=None, position_embeddings=rotary, position_ids=positions)
        return hf.lm_head(hf.model.norm(h))

    def resumed() -> Tensor:
        return model.resume(states).logits

    _same(resumed(), plain(), title)
    _same(resumed(), by_hand(), title)
    hand = "the three upper blocks by hand"
    return Section(
        title,
        (Case(PLAIN, plain), Case(AGAIN, plain), Case(hand, by_hand), Case("inlay, model.resume", resumed, None, hand)),
        rounds,
    )
