"""Is what a probe decodes also what the model uses? A linear probe beside DAS, over layers and tokens.

pyvene's notebook on probing gender in Pythia: a probe finds "he or she" at nearly every token behind a name, and
interchanges act at few of them. Here on tidepool's indirect objects (`anna and otto met at the pier . otto gave the key
to`), where the variable is the giver. At each layer and token a probe is fitted that tells the givers apart, and one
dimension is searched whose exchange acts as an exchange of the giver; both are tried on prompts they have not seen.

Asserted, because it must be so: at tokens before the giver nothing is decoded and nothing done. Behind the last block a
token that is not the last cannot change the answer, whatever it says; the probe still decodes the giver there. And
where an interchange acts, the probe must decode: what acts differs between the givers. So "decodable" does not mean
"used", and "used" means "decodable".

    python examples/studies/probe_or_das.py
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import inlay
from inlay.causal import CausalModel, counterfactuals, das

NAMES = ("anna", "otto")
TOKENS = {"PLACE": 8, "GIVER": 10, "gave": 11, "to": 14}  # <|bos|> <|doc|> ONE and TWO met at the PLACE . ...
LAYERS = (0, 3, 5)


def main() -> None:
    torch.set_num_threads(1)
    circuits, model = inlay.world.tidepool().sections["circuits"], inlay.load("tidepool", chat=False)
    story = CausalModel(
        ["first", "giver", "place", "thing", "getter"],
        values={"first": NAMES, "giver": NAMES, "place": circuits.spec.places, "thing": circuits.things[:40]},
        parents={"getter": ["giver"]},
        functions={"getter": other},
    )
    train, test = (
        counterfactuals(story, 40, ["giver"], to_prompt, lambda run: run["getter"], changed=True, seed=seed)
        for seed in (0, 1)
    )
    states = [model.read([row.base for row in rows], "resid_post.*") for rows in (train, test)]
    givers = [torch.tensor([1.0 if row.base_label == NAMES[0] else -1.0 for row in rows]) for rows in (train, test)]

    decoded, used = torch.zeros(len(LAYERS), len(TOKENS)), torch.zeros(len(LAYERS), len(TOKENS))
    for i, layer in enumerate(LAYERS):
        for j, at in enumerate(TOKENS.values()):
            seen, unseen = (acts[f"resid_post.{layer}"][:, at] for acts in states)
            score = (unseen - seen.mean(0)) @ probe(seen - seen.mean(0), givers[0])
            decoded[i, j] = (score.sign() == givers[1]).float().mean()
            site, more = f"resid_post.{layer}", {"epochs": 12, "lr": 5e-2}
            used[i, j] = das(model, train, site, 1, at, test=test, **more).accuracy.iia

    print(train[0].base)
    print("layer  " + "".join(f"{name:<16}" for name in TOKENS) + "(decoded / used, shares of unseen prompts)")
    for layer, probed, aligned in zip(LAYERS, decoded, used, strict=True):
        print(f"{layer:<7}" + "".join(f"{p:.2f} / {a:.2f}{'':<5}" for p, a in zip(probed, aligned, strict=True)))

    place, giver, gave, to = range(4)
    assert (decoded[:, place] < 0.75).all() and (used[:, place] == 0).all()
    assert (decoded[-1, [giver, gave]] > 0.95).all() and (used[-1, [giver, gave]] == 0).all()
    assert used[0, giver] > 0.95 and used[-1, to] > 0.95
    assert (decoded[used > 0.5] > 0.95).all()


def probe(states: Tensor, givers: Tensor) -> Tensor:
    """Ridge regression on centred states [n, width]; the direction whose sign says who gives."""
    ridge = states.var() * len(states) * torch.eye(states.shape[1])
    return torch.linalg.solve(states.T @ states + ridge, states.T @ givers)


def other(name: str) -> str:
    return NAMES[1 - NAMES.index(name)]


def to_prompt(run: dict[str, Any]) -> str:
    return (
        f"<|bos|> <|doc|> {run['first']} and {other(run['first'])} met at the {run['place']} . "
        f"{run['giver']} gave the {run['thing']} to"
    )


if __name__ == "__main__":
    main()
