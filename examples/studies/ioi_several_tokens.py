"""Who gave the key? DAS over two tokens at once, for a variable that is on its way from one to the other.

pyvene's notebook on IOI with DAS, on tidepool's own indirect objects (`anna and otto met at the pier . otto gave the
key to`). The variable is the giver; the answer is the one who is not. Runs differ in the order of the names, the place
and the thing. The giver's token carries the variable in block 0, the last token has it at the end, and in between it
is partly at each.

Asserted: what other tokens know of the giver is not used (`probe_or_das.py`), so that the whole states of these two
together change all answers, at every layer, and neither alone does in the blocks in between. The variable has two
values. Then one dimension of the two states side by side (`joint=True`, 1 of 256) must be enough, at every layer, for
prompts that the search did not see; a random one does nothing.

Not asserted, and worth a look: one dimension of the last token in block 2 changes what its whole state does not. An
interchange in a subspace may push a state where no prompt puts it, so that IIA alone does not show that the network has
its variable there (2311.17030); `full_swap`, which stands beside it, does.

    python examples/studies/ioi_several_tokens.py
"""

from __future__ import annotations

from typing import Any

import torch

import inlay
from inlay import Edit, Swap
from inlay.causal import CausalModel, GroupAccuracy, counterfactuals, das, interchange_accuracy

NAMES = ("anna", "otto")
GIVER, LAST = 10, 14  # <|bos|> <|doc|> ONE and TWO met at the PLACE . GIVER gave the THING to


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
        counterfactuals(story, 32, ["giver"], to_prompt, lambda run: run["getter"], changed=True, seed=seed)
        for seed in (0, 1)
    )

    def whole(layer: int, tokens: Any) -> float:
        """The share of answers that change with the whole states."""
        return interchange_accuracy(model, test, Edit(f"resid_post.{layer}", Swap(None), tokens)).iia

    def search(layer: int, tokens: Any, joint: bool) -> GroupAccuracy:
        """One dimension, found on other rows than it is tried on."""
        site, more = f"resid_post.{layer}", {"epochs": 20, "lr": 2e-2}
        return das(model, train, site, 1, tokens, test=test, joint=joint, **more).accuracy["giver"]

    print(train[0].base, "<-", train[0].sources[0])
    print(f"{'':<7}whole states{'':<10}one dimension, giver and last together")
    print("layer  both  giver  last{:6}IIA   random   no swap".format(""))
    singles = torch.zeros(4, 2)
    for layer in range(4):
        singles[layer] = torch.tensor([whole(layer, GIVER), whole(layer, LAST)])
        both = search(layer, [GIVER, LAST], joint=True)
        wholes = f"{both.full_swap:.2f}  {singles[layer, 0]:.2f}   {singles[layer, 1]:.2f}"
        print(f"{layer:<7}{wholes}      {both.iia:.2f}  {both.random:.2f}     {both.no_swap:.2f}")
        assert both.no_swap == 0 and both.full_swap == 1 and both.iia > 0.98 and both.random < 0.1
    alone = search(2, LAST, joint=False)
    print(f"the last token alone at layer 2: one dimension {alone.iia:.2f}, its whole state {alone.full_swap:.2f}")

    assert singles[0, 0] == 1 and singles[0, 1] < 0.1 and singles[3, 0] < 0.3 and singles[3, 1] > 0.5
    assert singles[1:].max() < 0.98


def other(name: str) -> str:
    return NAMES[1 - NAMES.index(name)]


def to_prompt(run: dict[str, Any]) -> str:
    return (
        f"<|bos|> <|doc|> {run['first']} and {other(run['first'])} met at the {run['place']} . "
        f"{run['giver']} gave the {run['thing']} to"
    )


if __name__ == "__main__":
    main()
