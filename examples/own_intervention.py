"""An intervention of your own: a class with its tensors, its arithmetic and a name.

`Reflect` mirrors a state at the plane that a direction is normal to, h - 2 (h.u) u. Asserted: twice is nothing, to
float tolerance; it stacks into a Bank, saves and loads by its name; reflecting the direction between harmful and
harmless requests makes tidepool refuse the harmless ones.

pyvene tutorial: pyvene_101, add new intervention type.
"""

import tempfile

import torch
from torch import Tensor

import inlay
from inlay import Bank, Edit, Intervention
from inlay.interventions import Call


class Reflect(Intervention):
    """h - 2 (h.u) u, times the strength."""

    kind = "reflect"  # the name in saved Edits
    holds = ("direction",)

    def __init__(self, direction: Tensor) -> None:
        super().__init__()
        self.register_buffer("direction", direction / direction.norm())

    def width(self) -> int:
        """So that a wrong width is an error before any forward."""
        return self.direction.shape[-1]

    def transform(self, h: Tensor, state: dict[str, Tensor], call: Call) -> Tensor:
        """With u [d], or [rows, 1, d] where each row of a Bank has its own."""
        u = state["direction"]
        change = -2 * (h * u).sum(-1, keepdim=True) * u
        return h + (change if call.strength is None else call.strength * change)


world, model = inlay.world.tidepool(), inlay.load("tidepool")
harmless = [line.prompt for line in world.lines("safety", 40, "test", "AL")]
seen = [[line.prompt for line in world.lines("safety", 40, "train", kind)] for kind in ("RH", "AL")]
site = "resid_post.3"
yes, no = (model.read(prompts, site, tokens="last")[site].mean(0) for prompts in seen)

once = Edit(site, Reflect(yes - no), tokens="last")
plain = model.read(harmless, "logits", tokens="last")["logits"]
twice = model.read(harmless, "logits", tokens="last", edit=once + once)["logits"]
torch.testing.assert_close(twice, plain, rtol=0, atol=1e-4)

replies = model.generate(harmless, edit=once, max_new_tokens=4, do_sample=False)
refused = sum(reply.startswith("no sorry") for reply in replies) / len(replies)
print(f"{once}: refuses {refused:.2f} of the harmless requests, such as {replies[0]!r}")

bank = Edit(site, Bank([Reflect(yes - no), Reflect(torch.ones(model.width))]), tokens="last")
rows = model.generate(harmless[:2], edit=bank, rows=[1, 0], max_new_tokens=4, do_sample=False)
with tempfile.TemporaryDirectory() as folder:
    again = Edit.from_pretrained(once.save(folder, model), model)

assert refused > 0.9
assert rows[0] == replies[0] and rows[1] == model.generate(harmless[1], max_new_tokens=4, do_sample=False)
assert model.generate(harmless, edit=again, max_new_tokens=4, do_sample=False) == replies
