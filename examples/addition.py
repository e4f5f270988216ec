"""Addition and subtraction of activations: make a question about a home one about a job.

At the last token behind block 1, to the state of `about gus : which home ?` is added that of `about elsa : which job ?`
and subtracted that of `about elsa : which home ?`. What elsa is, cancels; what is asked, changes. Asserted over pairs
of names: most questions are answered with the job of their own name, and hardly one where the state is swapped whole.

pyvene tutorials: pyvene_101, addition intervention; Add_Activations_to_Streams.
"""

from itertools import permutations

import inlay
from inlay import Add, Edit, Source, Swap

world, model = inlay.world.tidepool(), inlay.load("tidepool")
facts = world.facts
names = ["amos", "elsa", "gail", "gus", "hugo", "lars"]  # the model has learnt their homes and jobs
pairs = list(permutations(names, 2))
questions = [facts.ask(mine, "home").text for mine, _ in pairs]
job, home = (Source([facts.ask(other, what).text for _, other in pairs]) for what in ("job", "home"))


def right(edit: Edit) -> float:
    """The share of questions that are answered with the job of the name in the question."""
    logits = model.read(questions, "logits", tokens="last", edit=edit)["logits"]
    said = model.tokenizer.convert_ids_to_tokens(logits.argmax(-1).tolist())
    return sum(word == facts.truth(mine, "job") for word, (mine, _) in zip(said, pairs, strict=True)) / len(pairs)


site = "resid_post.1"
plus, minus = Edit(site, Add(job), tokens="last"), Edit(site, Add(home), tokens="last", strength=-1.0)
added, swapped = right(plus + minus), right(Edit(site, Swap(job), tokens="last"))
print(f"answered with the job of its own name: {added:.2f} by + and -, {swapped:.2f} by a swap")

assert added > 0.5 > 0.2 > swapped
