"""One source for many Sites: it is run once, whatever takes from it.

All heads of all layers of one run take their values from one source run. Asserted: base and source need two forwards
in all, and one where they are rows of one batch (`worlds=True`); states that were read before need one; all three give
the same logits.

pyvene tutorial: pyvene_101, interventions that share a source.
"""

import torch

import inlay
from inlay import Edit, Source, Swap

world, model = inlay.world.tidepool(), inlay.load("tidepool")
elsa, gus = (world.facts.ask(name, "home").text for name in ("elsa", "gus"))
sites = [f"{name}.{layer}" for layer in range(model.layers) for name in ("attn_out", "mlp_out")]


def everywhere(source: Source) -> Edit:
    """Twelve parts that take the last token's state from one source."""
    first, *others = [Edit(site, Swap(source), tokens="last") for site in sites]
    return sum(others, first)


forwards = []
handle = model.hf.register_forward_pre_hook(lambda module, inputs: forwards.append(1))
logits, counts = [], []
stored = model.read(gus, sites, tokens="last")
with torch.no_grad():
    for edit, options in (
        (everywhere(Source(gus)), {}),
        (everywhere(Source(gus)), {"worlds": True}),
        (everywhere(Source(stored)), {}),
    ):
        forwards.clear()
        logits.append(model.forward(elsa, edit=edit, **options).logits[0, -1])
        counts.append(len(forwards))
    plain, source = (model.forward(prompt).logits[0, -1] for prompt in (elsa, gus))
handle.remove()
said = model.tokenizer.convert_ids_to_tokens([int(one.argmax()) for one in (plain, logits[0], source)])
print(f"{len(sites)} Sites: forwards {counts}; plain, edited, source say {said}")

assert counts == [2, 1, 1]
torch.testing.assert_close(logits[1], logits[0])
torch.testing.assert_close(logits[2], logits[0])
torch.testing.assert_close(logits[0], source)  # all that is added to the last token's stream is the source's
