"""Which heads decide who gets the key? A learned mask over all heads, held against path patching.

pyvene's notebook on IOI with masks, with a mask of heads in place of dimensions. In `anna and otto met at the pier .
otto gave the key to`, heads of the last token are taken from a source run in which anna is the giver. One weight for
each head, sigmoid(theta / T), is trained so that the answer turns over while few heads are taken, and T falls until the
weights are 0 or 1.

Asserted on prompts that the training did not have: with the kept heads alone nearly every answer turns over, and with
all the others few do, so that the kept ones are enough and needed; they are a third of the heads at most. Path
patching knows nothing of the mask and changes one head at a time. The two heads to which it gives the greatest effect
straight along the residual stream to the logits must be among those kept.

    python examples/studies/ioi_heads.py [figure.png]
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

import inlay
from inlay import Edit, Mask, Source, Swap
from inlay.causal import logit_difference, path_grid

STEPS, HOT, COLD = 40, 1.0, 0.05
GIVER = 10  # <|bos|> <|doc|> ONE and TWO met at the PLACE . GIVER gave the THING to


class HeadMask(Mask):
    """A mask with one weight for each head of a Site, which holds for all of the head's dimensions."""

    def __init__(self, heads: int, size: int) -> None:
        super().__init__(None, heads, temperature=HOT)
        self.size = size

    def width(self) -> int:
        return super().width() * self.size

    def weights(self, state: dict[str, Tensor]) -> Tensor:
        return super().weights(state).repeat_interleave(self.size, -1)


def main() -> None:
    torch.set_num_threads(1)
    model = inlay.load("tidepool", chat=False)
    place = model.sites().places["z"][0]
    masks = [HeadMask(place.heads, place.width // place.heads) for _ in range(model.layers)]
    base, source, answers, others = prompts("train", 32)
    ids = torch.tensor(model.tokenizer.convert_tokens_to_ids(answers))
    taken = Source(model.read(source, "z.*", tokens="last"))
    edit = together([mask.with_source(taken) for mask in masks])
    optimiser = torch.optim.Adam(edit.parameters(), lr=0.15)
    for step in range(STEPS):
        for mask in masks:
            inlay.set_temperature(mask, HOT + (COLD - HOT) * step / (STEPS - 1))
        logits = model.forward(base, edit=edit).logits[:, -1]
        share = torch.stack([mask.share() for mask in masks]).mean()
        optimiser.zero_grad()
        (torch.nn.functional.cross_entropy(logits, ids) + 4.0 * share).backward()
        optimiser.step()

    base, source, answers, others = prompts("test", 32)
    ids = torch.tensor(model.tokenizer.convert_tokens_to_ids(answers))
    taken = Source(model.read(source, "z.*", tokens="last"))

    def turned(dims: list[Tensor]) -> float:
        """The share of answers that turn over with some dimensions of each layer's heads taken from the source."""
        edit = together([Swap(taken, some) if some.any() else None for some in dims])
        with torch.no_grad():
            return float((model.forward(base, edit=edit).logits[:, -1].argmax(-1) == ids).float().mean())

    kept, every = [mask.kept() for mask in masks], [torch.ones(place.width, dtype=torch.bool)] * model.layers
    shares = {"all": turned(every), "kept": turned(kept), "others": turned([~some for some in kept])}
    heads = torch.stack([some.view(place.heads, -1)[:, 0] for some in kept])
    metric, alone = logit_difference(others, answers), ("z", "mlp_out")
    grid = path_grid(model, base, source, metric=metric, tokens="last", freeze=alone)
    effect = (grid["clean"] - grid).mean("pair")

    print(f"{base[0]!r}")
    print("answers that turn over, by the heads taken:", ", ".join(f"{name} {v:.2f}" for name, v in shares.items()))
    print("what each head does on its path to the logits, in nats; * is kept by the mask")
    for layer, row in enumerate(effect.values):
        shown = (f"{value:5.2f}{'*' if mine else ' '}" for value, mine in zip(row, heads[layer], strict=True))
        print(f"  block {layer}  " + "  ".join(shown))
    if len(sys.argv) > 1:
        effect.plot(title="paths to the logits").savefig(sys.argv[1], dpi=150)

    strongest = torch.tensor(effect.values).flatten().topk(2).indices
    assert shares["all"] > 0.95 and shares["kept"] > 0.9 and shares["others"] < 0.2
    assert heads.sum() <= heads.numel() / 3 and heads.flatten()[strongest].all()


def together(interventions: list[inlay.Intervention | None]) -> Edit:
    """One Edit of an intervention for each layer's heads, at the last token."""
    parts = [Edit(f"z.{layer}", one, "last") for layer, one in enumerate(interventions) if one is not None]
    return sum(parts[1:], parts[0])


def prompts(split: str, n: int) -> tuple[list[str], list[str], list[str], list[str]]:
    """Base prompts, the same with the other giver, the answers to the latter and to the former."""
    lines = list(inlay.world.tidepool().lines("circuits", n, split, "transfer"))
    questions = [f"<|bos|> <|doc|> {line.truth['question']}".split() for line in lines]
    givers, getters = [line.truth["foil"] for line in lines], [line.truth["answer"] for line in lines]
    turned = [[*ws[:GIVER], getter, *ws[GIVER + 1 :]] for ws, getter in zip(questions, getters, strict=True)]
    return [" ".join(words) for words in questions], [" ".join(words) for words in turned], givers, getters


if __name__ == "__main__":
    main()
