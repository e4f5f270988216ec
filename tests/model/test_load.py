"""inlay.load: by name, from a folder, or a module as it is; safetensors alone; errors that name the remedy."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model import chat
from tests.model.by_hand import greedy, output_of
from tests.model.chat import WIDTH, block, ids, tokenizer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaForCausalLM

import inlay
from inlay import Add, Edit
from inlay.errors import ModelError
from inlay.model import patch

PROMPT = ids("the captain and crew sail the old ship east")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny Llama with its tokenizer."""
    where = tmp_path_factory.mktemp("tiny-llama")
    chat.tiny("llama").save_pretrained(where)
    tokenizer().save_pretrained(where)
    return where


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    yield
    assert patch.standing() == 0


# -- from a folder ---------------------------------------------------------------------------------------------------


def test_a_folder_with_a_tokenizer(folder: Path) -> None:
    for name in (str(folder), folder):
        model = inlay.load(name)
        assert model.layers == 3 and model.width == WIDTH and model.encoder.chat
        wanted, _ = greedy(chat.tiny("llama"), ids("<user> the sea <end> <assistant>"), 6)
        assert model.generate("the sea", max_new_tokens=6) == chat.text(wanted)
        assert model.identity()["name"] == folder.name


def test_a_home_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert inlay.load(f"~/{folder.name}").tokenizer is not None


def test_a_relative_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert inlay.load(folder.name).layers == inlay.load(f"./{folder.name}").layers == 3


def test_a_model_loaded_by_name_is_frozen_and_in_eval_mode(folder: Path) -> None:
    hf = inlay.load(folder).hf
    assert not any(p.requires_grad for p in hf.parameters()) and not any(m.training for m in hf.modules())


def test_a_folder_without_a_tokenizer(tmp_path: Path, folder: Path) -> None:
    chat.tiny("llama").save_pretrained(tmp_path)
    bare = inlay.load(tmp_path)
    assert bare.tokenizer is None
    assert bare.generate(PROMPT, max_new_tokens=4) == greedy(bare.hf, PROMPT, 4)[0]
    with pytest.raises(ModelError, match="no tokenizer: give rows of ids, or load it with tokenizer="):
        bare.generate("the sea")
    for given in (tokenizer(), str(folder), folder):
        model = inlay.load(tmp_path, tokenizer=given)
        assert model.generate("the sea", max_new_tokens=4) == inlay.load(folder).generate("the sea", max_new_tokens=4)
    with pytest.raises(ModelError, match="no tokenizer could be loaded from"):
        inlay.load(tmp_path, tokenizer=str(tmp_path))


def test_a_broken_tokenizer_is_not_passed_over(tmp_path: Path) -> None:
    """No tokenizer files is a model of ids; a damaged one is an error, not a model without a tokenizer."""
    chat.tiny("llama").save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(ModelError, match="tokenizer"):
        inlay.load(tmp_path)


def test_dtype(folder: Path, tmp_path: Path) -> None:
    assert inlay.load(folder).hf.dtype == torch.float32
    for dtype in (torch.bfloat16, "bfloat16"):
        assert inlay.load(folder, dtype=dtype).hf.dtype == torch.bfloat16
    chat.tiny("llama").to(torch.float16).save_pretrained(tmp_path)
    assert inlay.load(tmp_path).hf.dtype == torch.float16, "by default the checkpoint's own"


def test_arguments_reach_from_pretrained(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert inlay.load(folder, attn_implementation="eager").hf.config._attn_implementation == "eager"
    seen: list[dict[str, Any]] = []
    plain = AutoModelForCausalLM.from_pretrained

    def spy(name: str, **kwargs: Any) -> Any:
        report = {k: kwargs.pop(k) for k in ("output_loading_info",) if k in kwargs}
        seen.append(kwargs)
        return plain(name, dtype=kwargs["dtype"], **report)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", spy)
    config = object()
    inlay.load(folder, revision="abc", device_map="cpu", quantization_config=config, trust_remote_code=False)
    [kwargs] = seen
    assert kwargs["revision"] == "abc" and kwargs["device_map"] == "cpu" and kwargs["quantization_config"] is config
    assert kwargs["trust_remote_code"] is False and kwargs["use_safetensors"] is True
    inlay.load(folder)
    assert set(seen[1]) == {"dtype", "use_safetensors"}, "nothing is passed that was not asked for"


def test_the_revision_reaches_the_tokenizer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoTokenizer

    seen: list[dict[str, Any]] = []
    plain = AutoTokenizer.from_pretrained

    def spy(name: str, **kwargs: Any) -> Any:
        seen.append(kwargs)
        return plain(name)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", spy)
    inlay.load(folder, revision="abc")
    inlay.load(folder)
    assert seen == [{"revision": "abc"}, {}]


def test_device_map(folder: Path) -> None:
    model = inlay.load(folder, device_map="cpu")
    plain = inlay.load(folder)
    edit = Edit("resid_post.1", Add(torch.ones(WIDTH)))
    assert torch.equal(model.forward([PROMPT], edit=edit).logits, plain.forward([PROMPT], edit=edit).logits)


def test_sharded_weights(tmp_path: Path) -> None:
    chat.tiny("llama").save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert inlay.load(tmp_path).generate(PROMPT, max_new_tokens=4) == greedy(chat.tiny("llama"), PROMPT, 4)[0]


# -- a module as it is -----------------------------------------------------------------------------------------------


def test_a_module_stays_as_the_user_left_it() -> None:
    hf = chat.tiny("llama").train()
    hf.model.layers[1].eval()
    hf.lm_head.weight.requires_grad_(False)
    calls: list[int] = []
    hf.model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    before = [(n, m.training, dict(m.__dict__)) for n, m in hf.named_modules()]
    grads, config = [p.requires_grad for p in hf.parameters()], hf.config.to_dict()
    values = {n: t.clone() for n, t in hf.state_dict().items()}
    model = inlay.load(hf, tokenizer=tokenizer())
    assert model.hf is hf and model.base is hf
    after = [(n, m.training, dict(m.__dict__)) for n, m in hf.named_modules()]
    for (name, mode, attributes), (_, now, new) in zip(before, after, strict=True):
        assert mode == now and attributes.keys() == new.keys(), name
    assert grads == [p.requires_grad for p in hf.parameters()] and config == hf.config.to_dict()
    assert all(torch.equal(values[n], t) for n, t in hf.state_dict().items())
    assert all(p.grad is None for p in hf.parameters())
    calls.clear()
    model.forward([PROMPT])
    assert calls == [1], "the user's hook is still there"


def test_loading_draws_no_random_numbers() -> None:
    hf = chat.tiny("llama", attention_dropout=0.5).train()
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    inlay.load(hf)
    assert torch.equal(torch.rand(4), wanted)


def test_a_tokenizer_by_name_for_a_module(folder: Path) -> None:
    hf = chat.tiny("llama")
    assert inlay.load(hf, tokenizer=str(folder)).encoder.chat and inlay.load(hf, tokenizer=folder).encoder.chat
    with pytest.raises(ModelError, match="no tokenizer could be loaded from"):
        inlay.load(hf, tokenizer=str(folder / "nowhere"))


def test_a_module_takes_no_loading_arguments() -> None:
    hf = chat.tiny("llama")
    for more in ({"revision": "main"}, {"device_map": "cpu"}, {"quantization_config": object()}):
        with pytest.raises(ModelError, match="already loaded takes no loading arguments; load it by name"):
            inlay.load(hf, **more)
    with pytest.raises(ModelError, match="already loaded takes no loading arguments"):
        inlay.load(hf, dtype=torch.bfloat16)
    assert hf.dtype == torch.float32


def test_what_is_no_model() -> None:
    with pytest.raises(ModelError, match=r"Linear has no nn\.ModuleList of blocks; give its map"):
        inlay.load(nn.Linear(2, 2))
    with pytest.raises(ModelError, match="int"):
        inlay.load(5)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="LlamaForCausalLM"):
        inlay.load(LlamaForCausalLM)  # type: ignore[arg-type]


class Blocks(nn.Module):
    """A module of the user's own, with other names than any family's."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 8)
        self.steps = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3))
        self.out = nn.Linear(8, 20)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.words(ids)
        for step in self.steps:
            h = h + step(h)
        return self.out(h)


def test_a_module_of_the_users_own() -> None:
    mine = Blocks()
    model = inlay.load(mine, sites={"mlp_out": "steps.{layer}:out", "embed": "words:out", "logits": "out:out"})
    row, v = [3, 4, 5], torch.randn(8)
    acts = model.read([row], ["mlp_out.*", "embed"], "all")
    h = mine.words(torch.tensor([row]))
    assert torch.equal(acts["embed"], h)
    for layer, step in enumerate(mine.steps):
        out = step(h)
        assert torch.equal(acts[f"mlp_out.{layer}"], out)
        h = h + out
    found = model.forward([row], edit=Edit("mlp_out.2", Add(v))).logits
    torch.testing.assert_close(found, mine.out(h + v))


# -- names that lead nowhere -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere-at-all", "a/b/c", "../nowhere"])
def test_a_missing_folder(name: str) -> None:
    with pytest.raises(ModelError, match=f"there is no folder '{name}'"):
        inlay.load(name)


def test_a_missing_folder_as_a_path(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"there is no folder .*nowhere"):
        inlay.load(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="file"):
        inlay.load(tmp_path / "file")


def test_a_hub_id_without_a_network() -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    for name in ("google/gemma-2-2b-it", "gpt2-of-nowhere"):
        with pytest.raises(ModelError, match=f"'{name}' could not be loaded .*([Cc]onnect|offline)"):
            inlay.load(name)


def test_a_folder_without_a_config(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ModelError, match=r"could not be loaded .*config\.json"):
        inlay.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="could not be loaded"):
        inlay.load(tmp_path)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    chat.tiny("llama").config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"could not be loaded .*safetensors"):
        inlay.load(tmp_path)


def test_a_pickle_is_not_loaded(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "went off",))

    hf = chat.tiny("llama")
    hf.config.save_pretrained(tmp_path)
    torch.save({**hf.state_dict(), "bomb": Bomb()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        inlay.load(tmp_path)
    with pytest.raises(ModelError, match="safetensors"):
        inlay.load(tmp_path, use_safetensors=False)
    assert not (tmp_path / "went off").exists()


def test_damaged_weights(tmp_path: Path) -> None:
    chat.tiny("llama").save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="could not be loaded"):
        inlay.load(tmp_path)


def test_weights_that_lack_tensors(tmp_path: Path) -> None:
    """Missing weights would be random ones: transformers only warns."""
    from safetensors.torch import load_file, save_file

    chat.tiny("llama").save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    some = {n: t for n, t in load_file(weights).items() if "layers.1" not in n}
    save_file(some, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"layers\.1"):
        inlay.load(tmp_path)


def test_an_unknown_architecture(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "windmill", "architectures": ["Windmill"]}))
    with pytest.raises(ModelError, match=r"could not be loaded .*windmill"):
        inlay.load(tmp_path)


def test_a_model_that_is_no_language_model(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTModel(ViTConfig(**shape, image_size=8, patch_size=4)).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="could not be loaded as a language model"):
        inlay.load(tmp_path)


# -- the real models -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "layers", "width"), [("stories260K", 5, 64), ("bitllama_3M", 8, 256)])
def test_real_text_models(shared: Path, name: str, layers: int, width: int) -> None:
    model = inlay.load(shared / "data" / "models" / name)
    assert model.layers == layers and model.width == width and not model.encoder.chat
    assert not any(p.requires_grad for p in model.hf.parameters()) and not model.hf.training
    row = list(model.encoder.rows("Once upon a time, there was a little girl")[0].ids)
    last = layers - 1
    acts = model.read("Once upon a time, there was a little girl", f"resid_post.{last}")
    assert torch.equal(acts[f"resid_post.{last}"][0], output_of(model.hf, block(model.hf, last), row))
    wanted, _ = greedy(model.hf, row, 12)
    assert model.generate("Once upon a time, there was a little girl", max_new_tokens=12) == model.tokenizer.decode(
        wanted, skip_special_tokens=True
    )


def test_the_sorting_model(shared: Path) -> None:
    """Six letters in, the same six sorted out; it has no tokenizer, and its context holds eleven."""
    model = inlay.load(shared / "data" / "models" / "gpt-nano-sort")
    assert model.tokenizer is None and model.layers == 3
    letters = torch.cartesian_prod(*[torch.arange(3)] * 6)[::37].tolist()
    found = model.generate(letters, max_new_tokens=6, eos_token_id=None)
    assert found == [sorted(row) for row in letters]
