"""Skipping: some rows of a batch go without the intervention, as row 0 of a Bank.

Asserted: skipped rows are, to the bit, those of a run without an edit; the others are those of the edit; a row that
takes its own item of the Bank is as with that item alone.

pyvene tutorial: pyvene_101, intervention skipping in runtime.
"""

import torch

import inlay
from inlay import Bank, Edit, Source, Swap

world, model = inlay.world.tidepool(), inlay.load("tidepool")
questions = [world.facts.ask(name, "home").text for name in ("amos", "elsa", "gail", "hugo")]
source = Source(world.facts.ask("gus", "home").text)
swaps = [Swap(source, dims=slice(0, model.width)), Swap(source, dims=slice(0, 64))]
bank = Edit("resid_post.1", Bank(swaps), tokens="last")
rows = [1, 0, 0, 2]  # row 0 of a Bank is no edit


def answers(edit: Edit | None, rows: list[int] | None = None) -> torch.Tensor:
    """Logits [questions, vocabulary]."""
    return model.read(questions, "logits", tokens="last", edit=edit, rows=rows)["logits"]


plain, mixed = answers(None), answers(bank, rows)
whole, half = (answers(Edit("resid_post.1", swap, tokens="last")) for swap in swaps)
said = model.tokenizer.convert_ids_to_tokens(mixed.argmax(-1).tolist())
for question, row, word in zip(questions, rows, said, strict=True):
    print(f"{question}  row {row}: {word}")

assert mixed[1:3].equal(plain[1:3])
torch.testing.assert_close(mixed[0], whole[0])
torch.testing.assert_close(mixed[3], half[3])
assert said[0] == world.facts.truth("gus", "home") and said[1:3] == [
    world.facts.truth(name, "home") for name in ("elsa", "gail")
]
