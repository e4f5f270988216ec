"""What a streamed read is of: a hash of its model, prompts, Sites, Edit and options, the same in any process."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from types import CodeType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inlay.errors import EditError
from inlay.model.inputs import Row
from inlay.model.passes import Want
from inlay.model.tokens import Given, Tokens

if TYPE_CHECKING:
    from inlay.model.model import Model


def fingerprint(model: Model, data: Sequence[Row], wants: list[Want], parts: Sequence[Any], *rest: Any) -> str:
    """SHA-256, in hex, of everything that decides what a read gives.

    Args:
        model: its identity and a sample of every parameter in memory count.
        data: the rows.
        wants: the Sites and tokens.
        parts: the Edit, with the values of its sources.
        *rest: further options.
    """
    said = hashlib.sha256()

    def say(value: Any) -> None:
        said.update(said_of(value))

    say(json.dumps([model.identity(), [(r.ids, r.prompt) for r in data]], sort_keys=True))
    say(weights(model))
    for want in wants:
        say((str(want.site), want.before))
        say(want.tokens)
    for part in parts:
        say((str(part.site), part.strength, part.intervention.kind, part.joint))
        say(part.tokens)
        say(_configured(part.intervention))
        for module in part.intervention.modules():
            say(getattr(module, "f", None))
        for source in part.intervention.sources():
            for values, real in source.activations(model, [part.intervention.asks(model, part.site, part.tokens)]):
                say(values)
                say(real)
        for name, tensor in sorted(part.intervention.state().items()):
            say(name)
            say(tensor)
        say(repr(part.when))
        for leaf in part.when.leaves() if part.when is not None else ():
            say(leaf.tokens)
            say(getattr(leaf.scorer, "f", None))
            for tensor in leaf.state_dict().values():
                say(tensor)
    for one in rest:
        say(one)
    return said.hexdigest()


def _configured(intervention: Any) -> str:
    """What an intervention says of itself, but for its Sources; that of a lambda is its `f`."""
    try:
        return json.dumps(intervention.config(), sort_keys=True, default=lambda _: None)
    except EditError:
        return ""


def weights(model: Model) -> str:
    """SHA-256, in hex, of what a model computes with, wherever it lies.

    That is a sample of every weight in its number format, the chat template, and the defaults of generation: other
    weights of the same shape are another model.
    """
    found = hashlib.sha256()
    for parameter in model.base.parameters():
        found.update(said_of((str(parameter.dtype), tuple(parameter.shape))))
        for flat in (plain.flatten() for plain in _plain(parameter.detach())):
            if not flat.is_meta:  # offloaded
                found.update(said_of(flat[:: max(1, len(flat) // 16)].float()))
    defaults: Any = getattr(model.base, "generation_config", None)
    chosen = None if defaults is None else {k: v for k, v in defaults.to_diff_dict().items() if "version" not in k}
    template = getattr(model.tokenizer, "chat_template", None)
    found.update(json.dumps([template, chosen], sort_keys=True, default=str).encode())
    return found.hexdigest()


def _plain(tensor: Tensor) -> Iterator[Tensor]:
    """A tensor, or of one of another class (quantised, sharded) the plain ones that it is made of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        inner = getattr(tensor, name)
        if isinstance(inner, Tensor):  # of a DTensor also its mesh is named
            yield from _plain(inner)


def said_of(value: Any) -> bytes:
    """Bytes that are the same for the same value, also in another process.

    Of a function its name and code count, of an object without a `repr` of its own its class, the code of its
    `__call__` and its attributes.
    """
    if isinstance(value, Tensor):
        value = value.detach().cpu().contiguous()
        raw: bytes = value.reshape(-1).view(torch.uint8).numpy().tobytes()
        return repr((value.dtype, value.shape)).encode() + raw
    if isinstance(value, Tokens):
        return b"".join(said_of(c.tensor if isinstance(c, Given) else repr(c)) for c in value.clauses)
    if isinstance(value, torch.nn.Module):
        return f"{type(value).__module__}:{type(value).__qualname__}".encode()
    code = getattr(value, "__code__", None)
    if code is not None:
        return f"{value.__module__}:{value.__qualname__} {_lines(code)}".encode()
    kind: Any = type(value)
    if kind.__repr__ == object.__repr__:
        inside = [said_of(name) + said_of(one) for name, one in sorted(vars(value).items())]
        return said_of(kind.__qualname__) + said_of(vars(kind).get("__call__")) + b"".join(inside)
    return repr(value).encode()


def _lines(code: CodeType) -> str:
    consts = [_lines(const) if isinstance(const, CodeType) else repr(const) for const in code.co_consts]
    return f"{code.co_code!r} {code.co_names} {consts}"
