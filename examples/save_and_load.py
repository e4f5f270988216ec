"""Save and load: an Edit is a folder of a JSON file and a safetensors file.

Asserted: the loaded edit gives the same logits, to the bit, and shares what was shared; a trainable vector comes back
trainable; another base model is refused; what cannot be loaded again is refused when it is saved.

pyvene tutorials: pyvene_101, saving and loading; Load_Save_and_Share_Interventions.
"""

import json
import tempfile
from pathlib import Path

import torch

import inlay
from inlay import Add, Edit, Source, Swap, Zero
from inlay.errors import EditError, FolderError

world, model = inlay.world.tidepool(), inlay.load("tidepool")
elsa, gus = (world.facts.ask(name, "home").text for name in ("elsa", "gus"))
torch.manual_seed(0)
vector = Add(torch.nn.Parameter(torch.randn(model.width)))
edit = (
    Edit("resid_post.1", vector, tokens="last", strength=2.0)
    + Edit("resid_post.3", vector, tokens="all")  # the same vector again
    + Edit("embed", Swap(Source(gus)), tokens=3)
    + Edit("z.4.h[0,1]", Zero(dims=[0, 5]), tokens="first4+last")
)

with tempfile.TemporaryDirectory() as temporary:
    folder = edit.save(Path(temporary) / "edit", model)
    files = {file.name: file.stat().st_size for file in folder.iterdir()}
    again = Edit.from_pretrained(folder, model)
    stored = json.loads((folder / "edit.json").read_text())
    try:
        Edit.from_pretrained(folder, inlay.load("tidepool-guard"))
        refused = ""
    except FolderError as error:
        refused = str(error)
    try:
        Edit("resid_post.1", lambda h: 2 * h).save(Path(temporary) / "lambda")
        unsaved = ""
    except EditError as error:
        unsaved = str(error)
print(f"{files}, made for {stored['base']['name']!r} with inlay {stored['inlay']}")
print(f"another base: {refused}\na lambda: {unsaved}")

with torch.no_grad():
    assert model.forward(elsa, edit=again).logits.equal(model.forward(elsa, edit=edit).logits)
assert again.parts[0].intervention is again.parts[1].intervention
assert [parameter.requires_grad for parameter in again.parameters()] == [True]
assert "tidepool-guard" in refused and "lambda" in unsaved
