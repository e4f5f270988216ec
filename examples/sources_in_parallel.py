"""Two sources in parallel: the name from one question and what is asked from another.

The base asks for the home of one name. Its token 3 takes the name from a question about another, and its token 6 takes
what is asked from a question about a third. Asserted: every answer is the job of the second name, which neither the
base nor either source asks for; with one of the two sources, it is the home of the second or the job of the first.

pyvene tutorial: pyvene_101, multi-source interchange intervention (parallel mode).
"""

from itertools import permutations

import inlay
from inlay import Edit, Source, Swap

world, model = inlay.world.tidepool(), inlay.load("tidepool")
facts = world.facts
names = ["amos", "elsa", "gail", "gus", "hugo", "lars"]  # the model has learnt their homes and jobs
triples = list(permutations(names, 3))
base = [facts.ask(first, "home").text for first, _, _ in triples]
name = Edit("embed", Swap(Source([facts.ask(second, "home").text for _, second, _ in triples])), tokens=3)
asked = Edit("embed", Swap(Source([facts.ask(third, "job").text for _, _, third in triples])), tokens=6)


def share(edit: Edit, which: int, relation: str) -> float:
    """The share of rows that are answered with a relation of the first or the second name."""
    logits = model.read(base, "logits", tokens="last", edit=edit)["logits"]
    said = model.tokenizer.convert_ids_to_tokens(logits.argmax(-1).tolist())
    return sum(word == facts.truth(row[which], relation) for word, row in zip(said, triples, strict=True)) / len(said)


print(f"both sources: {share(name + asked, 1, 'job'):.3f} of {len(triples)} rows answer with the second name's job")

assert share(name + asked, 1, "job") == 1.0
assert share(name, 1, "home") == 1.0 and share(asked, 0, "job") == 1.0
