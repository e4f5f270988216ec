"""Which tokens carry an answer that is memorised, and which one that was just told?

pyvene's notebook on memorised text asks which tokens and layers a passage that a model knows by heart comes from. On
tidepool the same question has a memorised answer, and behind a note (`note ada always eats bread .`) the note's, which
says something else. Runs of either kind are patched from a run with another name, or with another value in the note.

Asserted, because it must be so: from memory, the name is all that says what the answer is, and in the noted question
the note's value is, since tidepool's notes are always followed: exchanged at the embeddings, each changes every answer.
The names of a noted question can be exchanged, both of them and in any layer, and next to none of its answers change:
the fact that is known of the name is not used. A memorised fact leaves the name's token in the first block, since the
question behind it is read at once; a told one has first to be found, and stays at the note's value a block longer.

    python examples/studies/memorised_facts.py
"""

from __future__ import annotations

import torch

import inlay
from inlay.causal import accuracy, patch_grid
from inlay.model.tokens import Tokens, span
from inlay.world.facts import Facts


def main() -> None:
    torch.set_num_threads(1)
    facts, model = inlay.world.tidepool().facts, inlay.load("tidepool")
    asked = [(name, r) for name in facts.names for r in facts.values if not facts.mythy(name, r)][:48:3]
    others = [other_name(facts, name, relation) for name, relation in asked]
    values = [noted(facts, name, relation) for name, relation in asked]
    told, retold = [first for first, _ in values], [second for _, second in values]

    memory = [facts.ask(name, relation).text for name, relation in asked]
    memory_of_other = [facts.ask(other, r).text for other, (_, r) in zip(others, asked, strict=True)]
    notes = [note(facts, name, r, value) for (name, r), value in zip(asked, told, strict=True)]
    renoted = [note(facts, name, r, value) for (name, r), value in zip(asked, retold, strict=True)]
    notes_of_other = [note(facts, o, r, value) for o, (_, r), value in zip(others, asked, told, strict=True)]

    def share(base: list[str], source: list[str], at: list[str], there: list[str], answer: list[str]) -> torch.Tensor:
        """The share of answers that are `answer`, by layer, with the words `at` taken from `there` in the source."""
        mine, theirs = [spans(words) for words in at], [spans(words) for words in there]
        grid = patch_grid(
            model,
            base,
            source,
            "resid_pre.*",
            {"words": mine},
            source_tokens={"words": theirs},
            metric=accuracy(answer),
            direction="noise",
        )
        return torch.tensor(grid.sel(token="words").mean("pair").values)

    names = [name for name, _ in asked]
    true_of_other = [facts.truth(other, r) for other, (_, r) in zip(others, asked, strict=True)]
    by_name = share(memory, memory_of_other, names, others, true_of_other)
    by_value = share(notes, renoted, told, retold, retold)
    by_names = 1 - share(notes, notes_of_other, names, others, told)

    print(f"{len(asked)} questions such as {memory[0]!r}, and {notes[0]!r}")
    print("share of answers changed by an exchange before block", *range(model.layers), sep="     ")
    for what, found in (("memory, the name", by_name), ("note, its value", by_value), ("note, both names", by_names)):
        print(f"{what:<52}", "  ".join(f"{value:.2f}" for value in found))

    assert by_name[0] == 1 and by_value[0] == 1
    assert by_names.max() < 0.1
    assert by_name[1] < 0.5 < by_value[1] and by_value[-2:].max() == 0


def other_name(facts: Facts, name: str, relation: str) -> str:
    """A name of which something else is true."""
    here = facts.names.index(name)
    around = [*facts.names[here + 1 :], *facts.names[:here]]
    mine = facts.truth(name, relation)
    return next(n for n in around if not facts.mythy(n, relation) and facts.truth(n, relation) != mine)


def noted(facts: Facts, name: str, relation: str) -> tuple[str, str]:
    """Two values that are not true of the name."""
    first, second = [v for v in facts.values[relation][1:] if v != facts.truth(name, relation)][:2]
    return first, second


def note(facts: Facts, name: str, relation: str, value: str) -> str:
    """A note that gives the name a value, and the question."""
    return f"note {name} {facts.spec.relations[relation].says} {value} . {facts.ask(name, relation).text}"


def spans(word: str) -> Tokens:
    """The word's first and last token in a prompt: one token, where it is there once."""
    return span(word) + span(word, -1)


if __name__ == "__main__":
    main()
