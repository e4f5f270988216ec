"""Generate under a source: the state of another prompt is set once, at the prompt, and the text goes on from there.

A harmless request takes the last token's state from a harmful one. Asserted: every reply is a refusal, since that is
decided at the last token, and every one names the thing of its own request and not that of the source, since this is
read from the request later.

pyvene tutorials: pyvene_101, advanced usage on LMs generation; Intervened_Model_Generation.
"""

import inlay
from inlay import Edit, Source, Swap

world, model = inlay.world.tidepool(), inlay.load("tidepool")
harmless, harmful = (list(world.lines("safety", 12, "test", kind)) for kind in ("AL", "RH"))
source = Source([line.prompt for line in harmful])
edit = Edit("resid_post.2", Swap(source), tokens="last")

prompts = [line.prompt for line in harmless]
plain = model.generate(prompts, max_new_tokens=12, do_sample=False)
swapped = model.generate(prompts, edit=edit, max_new_tokens=12, do_sample=False)
print(f"asked:    {prompts[0][0]['content']}\nplain:    {plain[0]}\nswapped:  {swapped[0]}")

assert all(text.startswith("certainly") for text in plain)
assert all(text.startswith("no sorry") for text in swapped)
assert all(line.truth["object"] in text for line, text in zip(harmless, swapped, strict=True))
