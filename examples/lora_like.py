"""A LoRA-like edit: h + x A B on a module's output, with x the module's input, trained to change one answer.

Asserted: after a few steps the edit makes the model say another home of gus, and leaves the answers about other names
as they were; A B written into the module's own weight gives the same logits without any edit.

pyvene tutorials: pyvene_101, interventions as adaptors; Intervention_Training.
"""

import copy

import torch
from torch import Tensor, nn

import inlay
from inlay import Edit

torch.manual_seed(0)
world, model = inlay.world.tidepool(), inlay.load("tidepool")
facts = world.facts


class LowRankUpdate(nn.Module):
    """h + x A B, with A random and B zero at the start."""

    def __init__(self, inner: int, width: int, rank: int = 1) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(inner, rank) / inner**0.5)
        self.up = nn.Parameter(torch.zeros(rank, width))

    def forward(self, h: Tensor, input: Tensor) -> Tensor:
        """`input` is that of the module whose output h is."""
        return h + input @ self.down @ self.up


projection = model.hf.model.layers[1].mlp.down_proj
update = LowRankUpdate(projection.in_features, projection.out_features)
edit = Edit("module:model.layers.1.mlp.down_proj:out", update)

wanted, others = "hilltop", ["amos", "elsa", "gail", "hugo", "lars"]
asked = [facts.ask(name, "home").text for name in ["gus", *others]]
answers = [wanted, *(facts.truth(name, "home") for name in others)]
optimizer = torch.optim.Adam(edit.parameters(), lr=0.02)
for step in range(40):
    loss = model.forward(asked, responses=answers, edit=edit, loss=True).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if step % 10 == 9:
        print(f"step {step + 1}: loss {loss:.4f}")

merged = copy.deepcopy(model.hf)
with torch.no_grad():
    merged.model.layers[1].mlp.down_proj.weight += (update.down @ update.up).T
    edited = model.forward(asked, edit=edit).logits
    by_weights = inlay.load(merged, tokenizer=model.tokenizer).forward(asked).logits
plain, said = (
    model.tokenizer.convert_ids_to_tokens(
        model.read(asked, "logits", tokens="last", edit=change)["logits"].argmax(-1).tolist()
    )
    for change in (None, edit)
)
print(
    f"{asked[0]!r}: {plain[0]!r} without the edit, {said[0]!r} with it; the others as before: {said[1:] == plain[1:]}"
)

assert plain[0] == facts.truth("gus", "home") and said == answers
torch.testing.assert_close(by_weights, edited, rtol=0, atol=1e-3)
