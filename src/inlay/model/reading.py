"""Read Sites of many prompts: batches by length, stop at the last Site, in memory or streamed to disk with resume."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inlay.errors import FolderError, InputError, ResumeError, SiteError, TokensError
from inlay.model import shards as disk
from inlay.model.activations import Activations, merge
from inlay.model.at_site import gathered
from inlay.model.engine import Run
from inlay.model.fingerprint import fingerprint
from inlay.model.inputs import Row, pad, plan_batches
from inlay.model.passes import Stop, Tally, Want
from inlay.model.plan import place_of
from inlay.model.running import Cut, expanded, make_run, wanted
from inlay.model.sites import HEADED, Site
from inlay.model.tokens import Given, InstEnd, Range, Tokens
from inlay.model.two_stacks import refuse
from inlay.model.windows import Live

if TYPE_CHECKING:
    from inlay.model.model import Model, Output

Loss = Callable[["Output"], Tensor]


class _Eager:
    """Compiled models run uncompiled while any thread is inside: the stance is one for the whole process."""

    def __init__(self) -> None:
        self.lock, self.inside = threading.Lock(), 0
        self.stance: Any = None

    def __enter__(self) -> None:
        with self.lock:
            if not self.inside:
                self.stance = torch.compiler.set_stance("force_eager")
            self.inside += 1

    def __exit__(self, *error: Any) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside:
                self.stance.__exit__(*error)


_eager = _Eager()


@contextmanager
def until_stopped() -> Iterator[None]:
    """Run a forward that ends early once the last wanted Site was read; a compiled model runs uncompiled here."""
    with _eager, suppress(Stop):
        yield


def read(
    model: Model,
    prompts: Any,
    sites: str | Site | Sequence[str | Site],
    tokens: Any = "all",
    *,
    responses: Sequence[str] | None = None,
    edit: Any = None,
    rows: Sequence[int] | Tensor | None = None,
    strength: Any = None,
    before: bool = False,
    grads: bool | Loss = False,
    batch_tokens: int = 8192,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    out: str | Path | None = None,
    shard_rows: int = 4096,
    progress: bool = False,
    chat: bool | None = None,
) -> Activations:
    """Activations of prompts at Sites and tokens.

    Layers above the last wanted Site are not run. Rows come back in the order of the prompts.

    Args:
        model: the Model.
        prompts: see `Encoder.rows`.
        sites: one Site or several; `"resid_post.*"` is every layer.
        tokens: which tokens of every row.
        responses: one response text a prompt, marked as response.
        edit, rows, strength: as in `Model.edited`.
        before: read before the Edit acts at the same Site; by default after.
        grads: also the gradient of a loss at every Site. `True`: the summed next-token loss of each row, on its
            response where it has one; or a function of the `Output` that gives one number, summed over rows.
        batch_tokens: the most padded tokens in one forward (one row at least).
        device: where the activations go.
        dtype: their dtype; the model's own by default.
        out: a folder to stream shards to; the Activations then stay on disk and are opened Site by Site. A killed read
            goes on where it stopped when it is called again.
        shard_rows: rows per shard, as far as whole batches allow.
        progress: show a progress bar.
        chat: whether plain strings are user turns.

    Raises:
        ResumeError: `out` holds a read of other prompts, Sites, Edit or model.
        InlayError: prompts, Sites, Tokens or Edit do not fit; see their classes.
    """
    if responses is not None or grads is not False:
        refuse(model, "model.read with responses= or grads=")
    data = model.encoder.rows(prompts, responses, chat)
    wants = wanted(model, sites, tokens, before)
    if batch_tokens < 1 or shard_rows < 1:
        raise InputError(f"batch_tokens={batch_tokens} and shard_rows={shard_rows} must be at least 1")
    batches = plan_batches(data, batch_tokens)
    pooled: dict[int, Tensor] = {}
    whole: dict[int, tuple[Tensor, Tensor | None] | Live] = {}
    parts, tally = expanded(model, edit), Tally()
    _check_count(len(data), rows=rows, strength=strength)
    for spec in [wants[0].tokens, *(part.tokens for part in parts)]:
        _check_given(spec, data)

    def one(batch: list[int]) -> tuple[Tensor, Activations]:
        mine = [data[i] for i in batch]
        cut = Cut(batch, len(data), pooled, whole, max(len(row.ids) for row in mine), tally)
        acts = _read_batch(model, mine, wants, edit, grads, rows=rows, strength=strength, cut=cut)
        return torch.tensor(batch), _moved(acts, device, dtype)

    with _bar(progress, len(data)) as advance:
        if out is None:
            pieces = []
            for batch in batches:
                pieces.append(one(batch))
                advance(len(batch))
            tally.check(parts)
            return merge(pieces)
        config = fingerprint(model, data, wants, parts, rows, strength, grads, dtype, shard_rows, batch_tokens)
        facts = {"config": config, "sites": [str(want.site) for want in wants], "layers": model.layers}
        return _to_disk(Path(out), batches, one, facts, shard_rows, advance)


def _check_count(count: int, **per_row: Any) -> None:
    for name, value in per_row.items():
        if value is not None and torch.as_tensor(value).ndim and len(value) != count:
            raise InputError(f"{name} names {len(value)} rows for {count} prompts")


def _check_given(tokens: Tokens, data: Sequence[Row]) -> None:
    """Raise where positions given as a tensor are not those of the prompts."""
    longest = max(len(row.ids) for row in data)
    for clause in tokens.clauses:
        if not isinstance(clause, Given):
            continue
        rows, slots = clause.tensor.shape
        if rows not in (1, len(data)):
            raise TokensError(f"tokens={tokens}: {rows} rows for {len(data)} prompts")
        if clause.tensor.dtype == torch.bool and slots != longest:
            raise TokensError(f"tokens={tokens}: the mask covers {slots} slots, and the longest prompt has {longest}")


def _read_batch(
    model: Model, data: Sequence[Row], wants: list[Want], edit: Any, grads: bool | Loss, **per_row: Any
) -> Activations:
    batch = pad(data, model.pad_id, model.device)
    if grads is False:
        run = make_run(model, edit, wants, prompt_mask=batch.prompt, attended=batch.mask, stop=True, **per_row)
        args, kwargs = model.arguments(batch)
        with torch.no_grad(), run, until_stopped():
            model.hf(*args, **kwargs)
        found = collect(run)
        assert found is not None
        return found
    run = make_run(model, edit, wants, prompt_mask=batch.prompt, attended=batch.mask, grads=True, **per_row)
    with torch.enable_grad():
        output = model.run_batch(run, batch)
        loss = grads(output) if callable(grads) else _next_token_loss(output, batch.ids, batch.mask, batch.prompt)
        return with_gradients(run, loss)


def _next_token_loss(output: Output, ids: Tensor, mask: Tensor, prompt: Tensor | None) -> Tensor:
    real = mask.bool() if prompt is None else mask.bool() & ~prompt
    labels = ids.masked_fill(~real, -100)[:, 1:].flatten()
    return torch.nn.functional.cross_entropy(
        output.logits[:, :-1].flatten(0, 1).float(), labels, ignore_index=-100, reduction="sum"
    )


def with_gradients(run: Run, loss: Tensor) -> Activations:
    """What a run with `grads=True` read in its last forward, with the gradients of a number that the forward gave.

    Raises:
        SiteError: no gradient reaches a Site.
    """
    wholes = [taken[-1].whole for taken in run.taken]
    for want, whole in zip(run.wants, wholes, strict=True):
        if whole is None or not whole.requires_grad:
            raise SiteError(f"{want.site}: no gradient reaches this Site; read it without grads=")
    found = torch.autograd.grad(loss, [w for w in wholes if w is not None], allow_unused=True)
    acts = collect(run)
    assert acts is not None and run.last is not None
    gradients: dict[str, Tensor] = {}
    for index, (want, whole, gradient) in enumerate(zip(run.wants, wholes, found, strict=True)):
        assert whole is not None
        place = place_of(run, want.site)
        h = place.get(torch.zeros_like(whole) if gradient is None else gradient, run.last.frame.rows)
        picked = gathered(run, index, h, run.last)
        gradients[str(want.site)] = _shaped(run, want, picked, acts.mask)
    return Activations({n: t.detach() for n, t in acts.items()}, acts.mask, gradients, acts.layers)


def collect(run: Run) -> Activations | None:
    """The Sites that a run read in its last forward."""
    if not run.wants:
        return None
    mask: Tensor | None = None
    if len({run.sites.stack(want.site) for want in run.wants}) > 1 and not _single(run.wants[0].tokens):
        raise SiteError("Sites of an encoder and of its decoder have positions of their own: read them in two calls")
    first = run.taken[0][-1]
    if _single(run.wants[0].tokens) and first.real is not None:
        lacking = (~first.real.any(1)).nonzero().flatten()
        if len(lacking):
            row = int(lacking[0]) if run.numbers is None else run.numbers[int(lacking[0])]
            raise TokensError(f"tokens={str(run.wants[0].tokens)!r}: row {row} has no such position")
    if not _single(run.wants[0].tokens):
        mask = first.real
        if mask is None:
            mask = torch.ones(first.values.shape[:2], dtype=torch.bool, device=first.values.device)
    tensors = {
        str(w.site): _shaped(run, w, taken[-1].values, mask) for w, taken in zip(run.wants, run.taken, strict=True)
    }
    return Activations(tensors, mask, layers=run.sites.layers)


def _shaped(run: Run, want: Want, values: Tensor, mask: Tensor | None) -> Tensor:
    """[n, k, width] with zeros behind a row's own positions, or [n, width]; heads split."""
    values = values[:, 0] if mask is None else values.masked_fill(~mask.to(values.device)[..., None], 0)
    place = run.sites.place(want.site) if want.site.name != "module" else None
    if place is not None and want.site.name in HEADED and place.heads and len(want.site.heads) != 1:
        values = values.unflatten(-1, (place.heads, -1))
    return values


def _single(tokens: Tokens) -> bool:
    """Whether every row gives exactly one position."""
    if len(tokens.clauses) != 1:
        return False
    clause = tokens.clauses[0]
    if isinstance(clause, InstEnd):
        return True
    if isinstance(clause, Given):
        return clause.tensor.dtype != torch.bool and clause.tensor.shape[1] == 1
    if not isinstance(clause, Range) or clause.phase == "all":
        return False
    return clause.exact or (clause.phase == "prompt" and (clause.start, clause.stop) in ((0, 1), (-1, None)))


def _moved(acts: Activations, device: Any, dtype: torch.dtype | None) -> Activations:
    def move(tensors: Any) -> dict[str, Tensor]:
        return {name: t.to(device=device, dtype=dtype or t.dtype) for name, t in tensors.items()}

    mask = None if acts.mask is None else acts.mask.to(device)
    gradients = None if acts.gradients is None else move(acts.gradients)
    return Activations(move(acts), mask, gradients, acts.layers)


def _to_disk(
    folder: Path,
    batches: list[list[int]],
    one: Callable[[list[int]], tuple[Tensor, Activations]],
    facts: dict[str, Any],
    shard_rows: int,
    advance: Callable[[int], None],
) -> Activations:
    disk.make_folder(folder)
    shards = _group(batches, shard_rows)
    manifest = disk.read_manifest(folder)
    if manifest is None and any(folder.glob("shard-*.safetensors")):
        raise FolderError(f"{folder} holds shards and no manifest.json: give another folder, or delete this one")
    if manifest is not None and manifest.get("config") != facts["config"]:
        raise ResumeError(
            f"{folder} holds a read of other prompts, Sites, Edit or model; give another folder, or delete this one"
        )
    facts = {**facts, "shards": len(shards), "rows": sum(map(len, batches))}
    disk.write_manifest(folder, {**facts, "complete": False})
    for index, shard in enumerate(shards):
        if disk.path_of(folder, index).exists():
            advance(sum(map(len, shard)))
            continue
        pieces = []
        for batch in shard:
            pieces.append(one(batch))
            advance(len(batch))
        rows = torch.cat([numbers for numbers, _ in pieces])
        whole = merge(pieces)
        disk.write(folder, index, rows.sort().values, whole, whole.mask, whole.gradients)
    disk.write_manifest(folder, {**facts, "complete": True})
    return Activations.load(folder)


def _group(batches: list[list[int]], shard_rows: int) -> list[list[list[int]]]:
    shards: list[list[list[int]]] = []
    for batch in batches:
        if shards and sum(map(len, shards[-1])) + len(batch) <= shard_rows:
            shards[-1].append(batch)
        else:
            shards.append([batch])
    return shards


@contextmanager
def _bar(show: bool, total: int) -> Iterator[Callable[[int], None]]:
    if not show:
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("reading", total=total)
        yield lambda done: bar.advance(task, done)
