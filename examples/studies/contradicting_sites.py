"""Two sites that are told different things: which one does the model believe, and from which layer on?

pyvene's study of two contradicting sites: one run takes the name's token from a second run and the last token from a
third, whose names, and so answers, differ. Both interchanges are parts of one Edit with a Source each.

Asserted, because it must be so: the tokens behind the name are the same in all runs, so that the last token's embedding
says nothing and the second run's logits follow from its name; behind the last block only the last token counts, and
the logits are the third run's, whatever the name's token holds. And found: in between, the higher the last token is
set, the more it has read by itself, and the less the name's token can say against it. And the name's token is heard
only while it is read: set behind block 2 it comes too late, and the first run answers by its own.

    python examples/studies/contradicting_sites.py
"""

from __future__ import annotations

import torch

import inlay
from inlay import Edit, Source, Swap
from inlay.world.facts import Facts

NAME = 3  # <|bos|> <|user|> about NAME : which RELATION ? ...


def main() -> None:
    torch.set_num_threads(1)
    facts, model = inlay.world.tidepool().facts, inlay.load("tidepool")
    rows = triples(facts)
    first, second, third = ([facts.ask(row[i], row[3]).text for row in rows] for i in range(3))
    answers = torch.tensor(
        [model.tokenizer.convert_tokens_to_ids([facts.truth(name, row[3]) for name in row[:3]]) for row in rows]
    )

    def run(name_site: str, last_site: str) -> torch.Tensor:
        """The logits of the first runs, told of the second at the name and of the third at the last token."""
        both = Edit(name_site, Swap(Source(second)), NAME) + Edit(last_site, Swap(Source(third)), "last")
        return model.forward(first, edit=both).logits[:, -1]

    def wins(logits: torch.Tensor) -> torch.Tensor:
        """The share of rows that answer as the first, the second and the third run do."""
        return (logits.argmax(-1, keepdim=True) == answers).float().mean(0)

    at = [*(f"resid_pre.{layer}" for layer in range(model.layers)), f"resid_post.{model.layers - 1}"]
    told = {(low, high): run(low, high) for low in (at[0], at[3]) for high in at}
    print(f"{len(rows)} rows such as {first[0]!r}, {second[0]!r}, {third[0]!r}; who wins: own / name's / last token's")
    print(f"{'last token set at':<18}  name set at {at[0]:<12}  name set at {at[3]}")
    for high in at:
        shares = ["  ".join(f"{value:.2f}" for value in wins(told[low, high])) for low in (at[0], at[3])]
        print(f"{high:<18}  {shares[0]:<24}  {shares[1]}")

    plain = [model.forward(prompts).logits[:, -1] for prompts in (first, second, third)]
    torch.testing.assert_close(told[at[0], at[0]], plain[1], rtol=1e-4, atol=1e-4)
    for low in (at[0], at[3]):
        torch.testing.assert_close(told[low, at[-1]], plain[2], rtol=1e-4, atol=1e-4)
    early = torch.stack([wins(told[at[0], high]) for high in at])
    assert early[0, 1] == 1 and early[-1, 2] == 1
    assert (early[:, 1].diff() <= 0).all() and (early[:, 2].diff() >= 0).all()
    late = wins(told[at[3], at[0]])
    assert late[0] > 0.8 and late[1] == 0


def triples(facts: Facts) -> list[tuple[str, str, str, str]]:
    """Three names with three values of a relation, and the relation; no question that a myth answers."""
    found = []
    for relation in facts.values:
        names = [name for name in facts.names if not facts.mythy(name, relation)]
        for row in zip(names[::3], names[1::3], names[2::3], strict=False):
            if len({facts.truth(name, relation) for name in row}) == 3:
                found.append((*row, relation))
    return found


if __name__ == "__main__":
    with torch.no_grad():
        main()
