"""Share an edit on the Hugging Face hub: push it to a repository, and load it by the repository's name.

Here the two calls of `huggingface_hub` are stubbed by a folder, so that the example runs without a network; without the
`patch` lines the same code talks to the hub. Asserted: the repository holds the two files, what is loaded from it by
name gives the same text as the edit that was pushed, and the call's options reached the hub.

pyvene tutorial: Load_Save_and_Share_Interventions.
"""

import shutil
import tempfile
from pathlib import Path
from unittest.mock import patch

import inlay
from inlay import Add, Edit

hub = Path(tempfile.mkdtemp())  # in place of huggingface.co
options = {}


class FolderApi:
    """`HfApi` with repositories that are folders."""

    def __init__(self, token: str | None = None) -> None:
        options["token"] = token

    def create_repo(self, repo_id: str, **more: object) -> None:
        """An empty repository."""
        options.update(more)
        (hub / repo_id).mkdir(parents=True)

    def upload_folder(self, repo_id: str, folder_path: str, **more: object) -> str:
        """Copy the files, and give the name of a commit."""
        shutil.copytree(folder_path, hub / repo_id, dirs_exist_ok=True)
        return "c0ffee"


def snapshot_download(repo_id: str, **more: object) -> str:
    """The repository's folder."""
    return str(hub / repo_id)


world, model = inlay.world.tidepool(), inlay.load("tidepool")
pairs = world.pairs("tools of the kitchen", n=48)
with_it, without = ([(pair[side].prompt, pair[side].reply) for pair in pairs] for side in (0, 1))
found = inlay.directions.diff_mean(model, with_it, without, "resid_post.2", tokens="response")
kitchen = Edit("resid_post.2", Add(0.5 * found.scale * found.vector), tokens="last+response")

with patch("huggingface_hub.HfApi", FolderApi), patch("huggingface_hub.snapshot_download", snapshot_download):
    commit = kitchen.push_to_hub("someone/kitchen", model, private=True, token="a token")
    loaded = Edit.from_pretrained("someone/kitchen", model)

prompt = world.prompts(1)[0]
texts = [model.generate(prompt, edit=edit, max_new_tokens=24, do_sample=False) for edit in (None, kitchen, loaded)]
files = sorted(file.name for file in (hub / "someone/kitchen").iterdir())
shutil.rmtree(hub)
print(f"commit {commit}: {files}\nplain:  {texts[0]}\nloaded: {texts[2]}")

assert files == ["edit.json", "edit.safetensors"]
assert texts[2] == texts[1] != texts[0]
assert options["token"] == "a token" and options["private"] is True
