"""Zero ablation: set what one attention layer writes to zero, and see which layer a task needs.

tidepool continues a list that is said twice by its induction heads, which lie in block 4 (`attention_weights.py` finds
them). Asserted: without block 4's attention most lists are continued wrongly; without that of block 1, all rightly.

pyvene tutorial: pyvene_101, set activations to zeros.
"""

import inlay
from inlay import Edit, Zero

world, model = inlay.world.tidepool(), inlay.load("tidepool", chat=False)
lines = list(world.lines("circuits", 40, "test", "induction"))
prompts = ["<|bos|> <|doc|> " + line.truth["question"] for line in lines]
answers = model.tokenizer.convert_tokens_to_ids([line.truth["answer"] for line in lines])


def right(edit: Edit | None = None) -> float:
    """The share of lists that are continued rightly."""
    logits = model.read(prompts, "logits", tokens="last", edit=edit)["logits"]
    return sum(have == want for have, want in zip(logits.argmax(-1).tolist(), answers, strict=True)) / len(lines)


plain, without_1, without_4 = right(), right(Edit("attn_out.1", Zero())), right(Edit("attn_out.4", Zero()))
print(f"continued rightly: {plain:.2f}; without attention 1: {without_1:.2f}; without attention 4: {without_4:.2f}")

assert plain == without_1 == 1.0
assert without_4 < 0.6
