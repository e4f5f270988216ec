"""Site names: the words for tensors inside a forward pass, and nothing about where they lie."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from inlay.errors import SiteError

LAYERED = (
    "resid_pre",
    "resid_mid",
    "resid_post",
    "attn_in",
    "attn_out",
    "mlp_in",
    "mlp_out",
    "mlp_act",
    "q",
    "k",
    "v",
    "z",
    "q_rot",
    "k_rot",
    "pattern",
    "router",
)
GLOBAL = ("embed", "final_norm", "logits")
HEADED = ("q", "k", "v", "z", "q_rot", "k_rot", "pattern")

_NAMED = re.compile(r"(?P<name>[a-z_]+)(?:\.(?P<layer>-?\d+|\*))?(?:\.h(?P<heads>\d+|\[\s*\d+(?:\s*,\s*\d+)*\s*\]))?")
_RAW = re.compile(r"module:(?P<path>[^:]+):(?P<side>in|out)")


@dataclass(frozen=True)
class Site:
    """One named tensor of the forward pass.

    Written as text: `"resid_post.12"`, `"embed"`, a head `"z.5.h3"`, some heads `"z.5.h[6,10]"`, every layer
    `"resid_post.*"`, or a raw tensor of any submodule `"module:<path>:out"` / `"module:<path>:in"`.

    Attributes:
        name: one of `LAYERED` or `GLOBAL`, or `"module"`.
        layer: block index from 0, negative from the end; `None` for global and raw Sites.
        heads: head indices, empty for all of them.
        path: dotted module path of a raw Site.
        side: `"in"` or `"out"` of a raw Site.
        every: `True` for `"<name>.*"`.
    """

    name: str
    layer: int | None = None
    heads: tuple[int, ...] = ()
    path: str = ""
    side: str = ""
    every: bool = False

    @classmethod
    def parse(cls, text: str | Site) -> Site:
        """Read a Site from text.

        Raises:
            SiteError: the text is not a Site; the message lists the names.
        """
        if isinstance(text, Site):
            return text
        if not isinstance(text, str):
            raise SiteError(f"a Site is text such as 'resid_post.3', not {text!r}")
        if raw := _RAW.fullmatch(text):
            return cls("module", path=raw["path"], side=raw["side"])
        if text.startswith("module:"):
            raise SiteError(f"raw Site {text!r}: write 'module:<path>:out' or 'module:<path>:in'")
        found = _NAMED.fullmatch(text)
        if not found or found["name"] not in LAYERED + GLOBAL:
            known = ", ".join(LAYERED + GLOBAL)
            raise SiteError(f"no Site is called {text!r}. Names: {known}, or 'module:<path>:out'")
        name, layer, heads = found["name"], found["layer"], found["heads"]
        if name in GLOBAL and (layer or heads):
            raise SiteError(f"{text!r}: {name!r} has no layers or heads; write {name!r}")
        if name in LAYERED and layer is None:
            raise SiteError(f"{text!r} needs a layer: '{name}.0', or '{name}.*' for all of them")
        if heads and name not in HEADED:
            raise SiteError(f"{text!r}: {name!r} is not split into heads; these are: {', '.join(HEADED)}")
        picked = tuple(int(h) for h in re.findall(r"\d+", heads or ""))
        if len(set(picked)) < len(picked):
            raise SiteError(f"{text!r} names a head twice")
        return cls(
            name,
            layer=None if layer in (None, "*") else int(layer),
            heads=picked,
            every=layer == "*",
        )

    def at(self, layer: int) -> Site:
        """The same Site of another layer (of every layer, where `every` was set)."""
        return replace(self, layer=layer, every=False)

    def __str__(self) -> str:
        if self.name == "module":
            return f"module:{self.path}:{self.side}"
        layer = ".*" if self.every else "" if self.layer is None else f".{self.layer}"
        if not self.heads:
            return self.name + layer
        heads = str(self.heads[0]) if len(self.heads) == 1 else "[" + ",".join(map(str, self.heads)) + "]"
        return f"{self.name}{layer}.h{heads}"
