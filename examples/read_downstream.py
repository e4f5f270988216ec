"""Read below and above an edit: what it changes further up, and what stays as it was.

The name in a question is swapped at its own token behind block 0, and all layers are read at the last token and at the
one before the name. Asserted: the token before the name stays as it was, to the bit; the last token is as it was behind
block 0, which the edit does not reach, and from block 1 on it is nearer to the other question's than to its own;
`before=True` reads at the edit's own place what the edit found.

pyvene tutorial: pyvene_101, activation collection at downstream of an intervention.
"""

import inlay
from inlay import Edit, Source, Swap

world, model = inlay.world.tidepool(), inlay.load("tidepool")
elsa, gus = (world.facts.ask(name, "home").text for name in ("elsa", "gus"))
edit = Edit("resid_post.0", Swap(Source(gus)), tokens=3)  # 3 is the name

plain = model.read(elsa, "resid_post.*", tokens=[2, -1])
edited = model.read(elsa, "resid_post.*", tokens=[2, -1], edit=edit)
other = model.read(gus, "resid_post.*", tokens=[2, -1])
for layer, site in enumerate(plain):
    before, after, there = (acts[site][0, 1] for acts in (plain, edited, other))
    share = 1 - float((there - after).norm() / (there - before).norm())
    print(f"{site}: the last token has gone {share:.0%} of the way to the other question's")
    assert edited[site][0, 0].equal(plain[site][0, 0])
    assert after.equal(before) if layer == 0 else share > 0.5

found = model.read(elsa, "resid_post.0", tokens=3, edit=edit, before=True)["resid_post.0"]
left = model.read(elsa, "resid_post.0", tokens=3, edit=edit)["resid_post.0"]
assert found.equal(model.read(elsa, "resid_post.0", tokens=3)["resid_post.0"])
assert left.equal(model.read(gus, "resid_post.0", tokens=3)["resid_post.0"])
