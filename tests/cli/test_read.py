from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.cli.random_folder import LAYERS, WIDTH
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import Result

import inlay

Command = Callable[..., Result]
PROMPTS = ["the sea", "a storm in the north", "calm"]


def by_hand(folder: Path, prompts: list[str], layer: int, input_of: str = "") -> torch.Tensor:
    """The last token's output of a block, or input of a part of it, one prompt at a time, by a hook."""
    hf = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    seen: list[torch.Tensor] = []
    block = hf.model.layers[layer]
    if input_of:
        block.get_submodule(input_of).register_forward_pre_hook(lambda module, args: seen.append(args[0][0, -1]))
    else:
        block.register_forward_hook(lambda module, args, output: seen.append(output[0, -1]))
    with torch.no_grad():
        for prompt in prompts:
            hf(**tokenizer(prompt, return_tensors="pt"))
    return torch.stack(seen)


def test_it_writes_what_a_hook_sees(inlay_command: Command, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "acts"
    given = [argument for prompt in PROMPTS for argument in ("--prompt", prompt)]
    result = inlay_command("read", folder, "--site", "resid_post.*", "--site", "z.1.h3", *given, "--out", out)
    assert result.exit_code == 0, result.output
    acts = inlay.Activations.load(out)
    assert list(acts) == [*(f"resid_post.{layer}" for layer in range(LAYERS)), "z.1.h3"]
    for layer in range(LAYERS):
        torch.testing.assert_close(acts[f"resid_post.{layer}"], by_hand(folder, PROMPTS, layer))
    each = WIDTH // 4
    whole = by_hand(folder, PROMPTS, 1, "self_attn.o_proj")
    torch.testing.assert_close(acts["z.1.h3"], whole[:, 3 * each : 4 * each])
    assert f"resid_post.0  [3, {WIDTH}]  float32" in result.stdout
    assert f"3 rows, 1 shard, {(out / 'shard-00000.safetensors').stat().st_size / 1000:.1f} kB" in result.stdout
    assert str(out) in result.stdout.splitlines()[-1]


def test_a_text_file_and_an_edit(inlay_command: Command, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(PROMPTS) + "\n")
    vector = torch.randn(WIDTH)
    model = inlay.load(folder)
    edit = inlay.Edit("resid_post.0", inlay.Add(vector), tokens="last").save(tmp_path / "edit", model)
    common = ("read", folder, "--site", "resid_post.0", "--prompts", file)
    assert inlay_command(*common, "--out", tmp_path / "plain").exit_code == 0
    result = inlay_command(*common, "--edit", edit, "--strength", "-2.5", "--out", tmp_path / "edited")
    assert result.exit_code == 0, result.output
    plain, edited = inlay.Activations.load(tmp_path / "plain"), inlay.Activations.load(tmp_path / "edited")
    torch.testing.assert_close(edited["resid_post.0"], plain["resid_post.0"] - 2.5 * vector)


def test_an_edit_of_every_layer_and_a_read_of_the_first(inlay_command: Command, folder: Path, tmp_path: Path) -> None:
    vector = torch.randn(WIDTH)
    edit = inlay.Edit("resid_post.*", inlay.Add(vector)).save(tmp_path / "edit", inlay.load(folder))
    out = tmp_path / "acts"
    result = inlay_command("read", folder, "--site", "resid_post.0", "--prompt", "calm", "--edit", edit, "--out", out)
    assert result.exit_code == 0, result.output
    torch.testing.assert_close(inlay.Activations.load(out)["resid_post.0"], by_hand(folder, ["calm"], 0) + vector)


def test_responses_of_a_jsonl_file(inlay_command: Command, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"prompt": "ab", "response": "cde"}\n{"prompt": "abcd", "response": "f"}\n')
    out = tmp_path / "acts"
    result = inlay_command("read", folder, "--site", "embed", "--tokens", "response", "--prompts", file, "--out", out)
    assert result.exit_code == 0, result.output
    acts = inlay.Activations.load(out)
    table = AutoModelForCausalLM.from_pretrained(folder).get_input_embeddings().weight
    ids = AutoTokenizer.from_pretrained(folder)
    assert acts.mask is not None
    assert acts.mask.tolist() == [[True, True, True], [True, False, False]]
    for row, text in zip(acts.rows("embed"), ("cde", "f"), strict=True):  # one token a byte
        assert torch.equal(row, table[ids(text)["input_ids"]])


def test_it_goes_on_where_it_stopped(inlay_command: Command, folder: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "many.txt", tmp_path / "acts"
    file.write_text("".join(f"{number}\n" for number in range(5000)))  # more rows than one shard holds
    common = ("read", folder, "--site", "resid_post.1", "--prompts", file, "--batch-tokens", 4096, "--out", out)
    assert "5000 rows, 2 shards" in inlay_command(*common).stdout
    first, second = out / "shard-00000.safetensors", out / "shard-00001.safetensors"
    kept, lost = first.stat().st_mtime_ns, second.read_bytes()
    second.unlink()
    assert inlay_command(*common).exit_code == 0
    assert first.stat().st_mtime_ns == kept
    assert second.read_bytes() == lost
    acts = inlay.Activations.load(out)
    chosen = [0, 77, 4999]
    torch.testing.assert_close(acts["resid_post.1"][chosen], by_hand(folder, [str(i) for i in chosen], 1))


def test_other_arguments_are_refused(
    inlay_command: Command, refused: Callable[..., str], folder: Path, tmp_path: Path
) -> None:
    common = ("read", folder, "--site", "resid_post.1", "--out", tmp_path / "acts")
    assert inlay_command(*common, "--prompt", "a").exit_code == 0
    assert "holds a read of other prompts" in refused(*common, "--prompt", "b")
    assert inlay_command(*common, "--prompt", "a").exit_code == 0


def test_chat_prompts(inlay_command: Command, chat_folder: Path, tmp_path: Path) -> None:
    common = ("read", chat_folder, "--site", "embed", "--tokens", "all", "--prompt", "hi")
    table = AutoModelForCausalLM.from_pretrained(chat_folder).get_input_embeddings().weight
    ids = AutoTokenizer.from_pretrained(chat_folder)
    for flags, text in (([], "<|user|>hi<|end|><|assistant|>"), (["--no-chat"], "hi")):
        out = tmp_path / f"acts{len(flags)}"
        assert inlay_command(*common, *flags, "--out", out).exit_code == 0
        acts = inlay.Activations.load(out)
        assert torch.equal(acts["embed"][0], table[ids(text)["input_ids"]])


def test_line_4711(refused: Callable[..., str], tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps("fine") + "\n")
    with file.open("a") as more:
        more.write('"fine"\n' * 4709 + "{broken\n" + '"fine"\n' * 10)
    said = refused("read", "no-model-is-loaded", "--site", "embed", "--prompts", file, "--out", tmp_path / "acts")
    assert f"{file}, line 4711 is not JSON" in said
    assert not (tmp_path / "acts").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--site", "resid_pots.1"], "no Site is called 'resid_pots.1'"),
        (["--site", "resid_post.7"], "layer 7 is out of range"),
        (["--site", "router.0"], "has no Site 'router'"),
        (["--site", "embed", "--tokens", "lats"], "'lats' is not understood"),
        (["--site", "embed", "--tokens", "inst_end"], "needs a tokenizer with a chat template"),
        (["--site", "embed", "--batch-tokens", "0"], "batch_tokens=0"),
        (["--site", "embed", "--rows", "1"], "rows= picks rows of a Bank"),
        (["--site", "embed", "--rows", "one"], "--rows 'one' is not a list of row numbers"),
        (["--site", "embed", "--chat"], "has no chat template"),
    ],
)
def test_bad_arguments(
    refused: Callable[..., str], folder: Path, tmp_path: Path, arguments: list[str], says: str
) -> None:
    said = refused("read", folder, "--prompt", "hi", "--out", tmp_path / "acts", *arguments)
    assert says in said


def test_a_prompt_longer_than_the_context(refused: Callable[..., str], folder: Path, tmp_path: Path) -> None:
    said = refused("read", folder, "--prompt", "x" * 513, "--site", "embed", "--out", tmp_path / "acts")
    assert "513 tokens, and the model's context holds 512" in said


def test_stories(inlay_command: Command, shared: Path, tmp_path: Path) -> None:
    name, out = shared / "data/models/stories260K", tmp_path / "acts"
    prompts = ["Once upon a time", "The dog ran to the park because"]
    given = [argument for prompt in prompts for argument in ("--prompt", prompt)]
    result = inlay_command("read", name, "--site", "resid_post.2", *given, "--out", out)
    assert result.exit_code == 0, result.output
    torch.testing.assert_close(inlay.Activations.load(out)["resid_post.2"], by_hand(name, prompts, 2))
