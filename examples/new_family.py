"""A new kind of model: say where its Sites are, and everything else works on it.

The layers of this network are not in an `nn.ModuleList`, and made of parts that inlay has no name for. Asserted:
without a map inlay says that it finds no blocks, and for a Site outside of the map what there is; with the map, a swap
in head 1 of a mixer gives what a hook gives, and changes nothing before its token.

pyvene tutorial: Add_New_Model_Type.
"""

import torch
from torch import Tensor, nn

import inlay
from inlay import Edit, Source, Swap
from inlay.errors import ModelError, SiteError


class Mixer(nn.Module):  # a gated causal mean over the tokens so far, then a projection
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate, self.combine = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        count = torch.arange(1, h.shape[1] + 1)[:, None]
        return self.combine(torch.sigmoid(self.gate(h)) * h.cumsum(1) / count)


class Stage(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mixer = Mixer(width)

    def forward(self, h: Tensor) -> Tensor:
        return h + torch.tanh(self.mixer(h))


class Network(nn.Module):
    def __init__(self, vocabulary: int = 40, width: int = 24) -> None:
        super().__init__()
        self.letters, self.answer = nn.Embedding(vocabulary, width), nn.Linear(width, vocabulary)
        self.stages = nn.ModuleDict({f"stage{i}": Stage(width) for i in range(3)})

    def forward(self, ids: Tensor) -> Tensor:
        h = self.letters(ids)
        for stage in self.stages.values():
            h = stage(h)
        return self.answer(h)


torch.manual_seed(0)
network = Network()
try:
    inlay.load(network)
    blocks = ""
except ModelError as error:
    blocks = str(error)
model = inlay.load(
    network,
    sites={
        "embed": "letters:out",
        "resid_pre": "stages.stage{layer}:in",
        "resid_post": "stages.stage{layer}:out",
        "z": ("stages.stage{layer}.mixer.combine:in", 4),  # 4 heads of 6
        "logits": "answer:out",
    },
)
print(model, {name: sorted(places, key=str) for name, places in model.sites().places.items()})

base, source = [[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]], [[2, 7, 1, 8, 2], [8, 1, 8, 2, 8]]
edit = Edit("z.1.h1", Swap(Source(source)), tokens=3)
with torch.no_grad():
    plain, edited = model.forward(base).logits, model.forward(base, edit=edit).logits
    taken = model.read(source, "z.1.h1", tokens=3)["z.1.h1"]  # [rows, 6]

    def by_hand(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        """Columns 6 to 11 at token 3."""
        new = inputs[0].clone()
        new[:, 3, 6:12] = taken
        return (new,)

    handle = network.stages["stage1"].mixer.combine.register_forward_pre_hook(by_hand)
    expected = network(torch.tensor(base))
    handle.remove()
try:
    model.read(base, "mlp_out.1")
    lacking = ""
except SiteError as error:
    lacking = str(error)
print(f"without a map: {blocks}\noutside of the map: {lacking}")

assert edited.equal(expected)
assert edited[:, :3].equal(plain[:, :3]) and not edited[:, 3:].equal(plain[:, 3:])
assert "sites=" in blocks and "mlp_out" in lacking
