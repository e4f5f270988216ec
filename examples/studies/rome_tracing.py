"""Which states carry a memorised fact? Causal tracing (ROME) of tidepool's facts.

pyvene's notebook on causal tracing ("The Space Needle is in downtown", section 2.1 of 2202.05262): noise on the
embeddings of the subject destroys the answer, and then one clean state at a time is restored. Here the subject is the
phrase `about NAME`, so that it has a last token and one before it.

Asserted, because it must be so: tokens before the subject have no noise to take away (0); behind the last block, the
last token's state is all that the answer depends on, so that restoring it gives back the total effect; `about` cannot
know whose name follows. And found, as by ROME in GPT-2 XL: the early effect is at the **subject's last token**, where
the first MLPs alone bring back much of the answer, and moves from there to the prompt's last token. Other than there,
the name's state is complete behind block 0: with all later MLPs at the name held as they are in the corrupted run, its
effect stays.

    python examples/studies/rome_tracing.py [figure.png]
"""

from __future__ import annotations

import sys

import torch

import inlay
from inlay.causal import causal_trace

PROMPTS, DRAWS = 6, 4
ABOUT, NAME = 2, 3


def main() -> None:
    torch.set_num_threads(1)
    facts, model = inlay.world.tidepool().facts, inlay.load("tidepool")
    asked = [(name, r) for name in facts.names for r in facts.values if not facts.mythy(name, r)][: 4 * PROMPTS : 4]
    prompts = [facts.ask(name, relation).text for name, relation in asked]
    subjects, answers = [f"about {name}" for name, _ in asked], [facts.truth(name, r) for name, r in asked]

    grid = causal_trace(model, prompts, subjects, answers, draws=DRAWS, window=2)
    effect = grid.mean("prompt")
    cut = causal_trace(
        model, prompts, subjects, answers, {"name": NAME}, kinds=["resid_post"], draws=DRAWS, severed="mlp_out"
    )
    total, severed = grid.attrs["total_effect"], cut.mean("prompt").sel(token="name").values

    print(f"{PROMPTS} questions such as {prompts[0]!r}: P(answer) {grid.attrs['clean']:.3f}, with noise on the subject")
    print(f"{grid.attrs['corrupted']:.3f}; of that difference, {total:.3f}, one clean state brings back")
    print(f"{'':<12}layer  about   name   rest     last")
    for kind in effect.component.values:
        for layer in range(model.layers):
            row = effect.sel(component=kind, layer=layer).values
            about, name, rest, last = row[ABOUT], row[NAME], row[NAME + 1 : -1].max(), row[-1]
            print(f"{kind:<12}{layer:>5}  {about:5.2f}  {name:5.2f}  {rest:5.2f} {last:7.2f}")
    print("the stream at the name with the MLPs severed:", " ".join(f"{value:.2f}" for value in severed))
    if len(sys.argv) > 1:
        text = ("token", [*grid["text"].values[0][:NAME], "NAME", *grid["text"].values[0][NAME + 1 :]])
        effect.assign_coords(text=text).plot(title="indirect effect").savefig(sys.argv[1], dpi=150)

    assert grid.attrs["clean"] > 0.9 and grid.attrs["corrupted"] < 0.3
    assert abs(grid.values[:, :, :ABOUT]).max() < 1e-5
    behind = grid.sel(component="resid_post", layer=model.layers - 1)
    assert abs(behind.values[-1] - grid["total_effect"].values).max() < 1e-5
    assert abs(effect.values[:, :, ABOUT]).max() < 0.02
    early, mlp = effect.sel(component="resid_post", token=NAME), effect.sel(component="mlp_out", token=NAME)
    assert early.values.argmax() == 0 and early.values[0] > 0.3 * total and mlp.values.max() > 0.3 * total
    assert abs(severed - early.values).max() < 0.15


if __name__ == "__main__":
    main()
