"""Which head talks to which? Path patching finds the circuit that a network was written with.

pyvene's notebook that replicates IOI by path patching, on two attention layers whose weights are written down here.
Head 0.0 notes at every word which word stood before it. Head 1.0 looks for the place where the word that it stands at
was noted, and says what stands there (induction). Head 0.1 copies every word to where no one reads, and head 1.1 says
the first word, at a tenth of the strength. `a b c d , a b` goes on with c; the source run `a c b d , a b` with d.

Asserted, because it is written so: to the logits only the heads of layer 1 talk. Head 1.0 has the whole of the effect;
head 1.1 has none, since the first word is the same in both runs, and head 0.1 none although what it writes differs.
Head 0.0, patched alone, turns the answer over entirely, and all of that goes through the **keys** of head 1.0: through
its queries, its values, the other head, or straight to the logits there is nothing.

    python examples/studies/ioi_paths.py [figure.png]
"""

from __future__ import annotations

import sys
from itertools import permutations

import torch
from torch import Tensor, nn

import inlay
from inlay.causal import logit_difference, normalised, path_grid, path_patch

WORDS, PLACES = 8, 7  # the last word is the comma; a prompt has as many positions as there are places
TOKEN, PLACE, BEFORE, SAID, NOWHERE = 0, WORDS, WORDS + PLACES, 2 * WORDS + PLACES, 3 * WORDS + PLACES
WIDTH = 4 * WORDS + PLACES


class Block(nn.Module):
    """Attention alone, with two heads of as many dimensions as there are words."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, 2 * WORDS, bias=False) for _ in range(3))
        self.o = nn.Linear(2 * WORDS, WIDTH, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = (m(h).unflatten(-1, (2, WORDS)).transpose(1, 2) for m in (self.q, self.k, self.v))
        z = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=50.0)  # nearly hard
        return h + self.o(z.transpose(1, 2).flatten(2))

    def write(self, head: int, asks: Tensor, has: Tensor, takes: int, puts: int, size: float = 1.0) -> None:
        """A head: what its queries and keys read, [WORDS, WIDTH], and where its value is taken from and put."""
        mine = slice(head * WORDS, (head + 1) * WORDS)
        self.q.weight[mine], self.k.weight[mine] = asks, has
        self.v.weight[mine, takes : takes + WORDS] = torch.eye(WORDS)
        self.o.weight[puts : puts + WORDS, mine] = size * torch.eye(WORDS)


class Induction(nn.Module):
    """Two blocks, one-hot embeddings of word and place, and logits that are the slot `SAID`."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(WORDS, WIDTH), nn.Embedding(PLACES, WIDTH)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
        with torch.no_grad():
            self.wte.weight[:, TOKEN : TOKEN + WORDS] = torch.eye(WORDS)
            self.wpe.weight[:, PLACE : PLACE + PLACES] = torch.eye(PLACES)
            self.head.weight[:, SAID : SAID + WORDS] = torch.eye(WORDS)
            place, token, before = slots(PLACE, PLACES), slots(TOKEN, WORDS), slots(BEFORE, WORDS)
            anywhere, start = place.sum(0).expand(WORDS, -1), place[:1].expand(WORDS, -1)
            first, second = self.blocks
            first.write(0, asks=place.roll(-1, 0), has=place, takes=TOKEN, puts=BEFORE)
            first.write(1, asks=place, has=place, takes=TOKEN, puts=NOWHERE)
            second.write(0, asks=token, has=before, takes=TOKEN, puts=SAID)
            second.write(1, asks=anywhere, has=start, takes=TOKEN, puts=SAID, size=0.1)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        for block in self.blocks:
            h = block(h)
        return self.head(h)


def slots(start: int, size: int) -> Tensor:
    """Reads `size` slots into the first dimensions of a head, [WORDS, WIDTH]."""
    found = torch.zeros(WORDS, WIDTH)
    found[:size, start : start + size] = torch.eye(size)
    return found


def main() -> None:
    model = inlay.load(
        Induction(),
        sites={
            "embed": "wte:out",
            "resid_pre": "blocks.{layer}:in",
            "resid_post": "blocks.{layer}:out",
            **{name: (f"blocks.{{layer}}.{name}:out", 2) for name in "qkv"},
            "z": ("blocks.{layer}.o:in", 2),
            "logits": "head:out",
        },
    )
    words = list(permutations(range(WORDS - 1), 4))[::40]
    base = [[a, b, c, d, WORDS - 1, a, b] for a, b, c, d in words]
    source = [[a, c, b, d, WORDS - 1, a, b] for a, b, c, d in words]
    answers, others = [c for _, _, c, _ in words], [d for _, _, _, d in words]
    metric = normalised(logit_difference(answers, others))  # 1: c is said, 0: d is

    def through(sender: str, receiver: str) -> float:
        return float(path_patch(model, base, source, sender, receiver, metric=metric).mean())

    whole = path_grid(model, base, source, metric=metric, freeze=()).mean("pair")
    direct = path_grid(model, base, source, metric=metric).mean("pair")
    paths = {f"{name}.1.h{head}": through("z.0.h0", f"{name}.1.h{head}") for name in "qkv" for head in (0, 1)}

    print(f"{len(words)} prompts; 1: the base's answer, 0: the source's")
    print("head   patched   its path to the logits")
    for layer, head in ((0, 0), (0, 1), (1, 0), (1, 1)):
        at = {"layer": layer, "head": head}
        print(f"{layer}.{head}    {float(whole.sel(at)):7.3f}   {float(direct.sel(at)):7.3f}")
    print("head 0.0 through " + ", ".join(f"{name}: {value:.3f}" for name, value in paths.items()))
    if len(sys.argv) > 1:
        direct.plot(title="paths to the logits").savefig(sys.argv[1], dpi=150)

    assert abs(whole.values - [[0, 1], [0, 1]]).max() < 1e-3 and abs(direct.values - [[1, 1], [0, 1]]).max() < 1e-3
    assert all(abs(value - (name != "k.1.h0")) < 1e-3 for name, value in paths.items())


if __name__ == "__main__":
    main()
