from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.cli.random_folder import WIDTH, save_random_folder
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from typer.testing import Result

import inlay

Command = Callable[..., Result]
LENGTH = 24


def by_hand(folder: Path, prompt: str, add: torch.Tensor | None = None, layer: int = 1, **kwargs: Any) -> str:
    """The new text that transformers generates, with a vector added to a block's output by a hook."""
    hf = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if add is not None:
        hf.model.layers[layer].register_forward_hook(lambda module, args, output: output + add)
    ids = tokenizer(prompt, return_tensors="pt")
    found = hf.generate(**ids, **{"max_new_tokens": LENGTH, "do_sample": False, **kwargs})
    return str(tokenizer.decode(found[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))


@pytest.fixture
def vector() -> torch.Tensor:
    return 4.0 * torch.randn(WIDTH, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def edit(folder: Path, vector: torch.Tensor, tmp_path: Path) -> Path:
    return inlay.Edit("resid_post.1", inlay.Add(vector)).save(tmp_path / "edit", inlay.load(folder))


def said(result: Result) -> str:
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith("\n")
    return result.stdout[:-1]


def test_plain(inlay_command: Command, folder: Path) -> None:
    result = inlay_command("generate", folder, "--prompt", "the sea", "--max-new-tokens", LENGTH)
    assert said(result) == by_hand(folder, "the sea")


def test_64_new_tokens_by_default(inlay_command: Command, folder: Path) -> None:
    result = inlay_command("generate", folder, "--prompt", "the sea")
    assert said(result) == by_hand(folder, "the sea", max_new_tokens=64)


@pytest.mark.parametrize("stream", [(), ("--stream",)])
def test_with_an_edit(
    inlay_command: Command, folder: Path, edit: Path, vector: torch.Tensor, stream: tuple[str, ...]
) -> None:
    common = ("generate", folder, "--prompt", "the sea", "--max-new-tokens", LENGTH, "--edit", edit, *stream)
    plain = by_hand(folder, "the sea")
    assert said(inlay_command(*common)) == by_hand(folder, "the sea", vector) != plain
    assert said(inlay_command(*common, "--strength", "-0.5")) == by_hand(folder, "the sea", -0.5 * vector) != plain
    assert said(inlay_command(*common, "--strength", "0")) == plain


def test_edits_add_up(inlay_command: Command, folder: Path, edit: Path, vector: torch.Tensor, tmp_path: Path) -> None:
    other = vector.flip(0)
    second = inlay.Edit("resid_post.1", inlay.Add(other), strength=0.5).save(tmp_path / "second", inlay.load(folder))
    common = ("generate", folder, "--prompt", "the sea", "--max-new-tokens", LENGTH, "--edit", edit, "--edit", second)
    assert said(inlay_command(*common)) == by_hand(folder, "the sea", vector + 0.5 * other)


def test_a_bank(inlay_command: Command, folder: Path, vector: torch.Tensor, tmp_path: Path) -> None:
    bank = inlay.Bank([inlay.Add(vector), inlay.Add(-vector)])
    edit = inlay.Edit("resid_post.1", bank).save(tmp_path / "bank", inlay.load(folder))
    common = ("generate", folder, "--prompt", "the sea", "--max-new-tokens", LENGTH, "--edit", edit)
    assert said(inlay_command(*common, "--rows", "2")) == by_hand(folder, "the sea", -vector)


def test_several_prompts_print_one_after_another(inlay_command: Command, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("the sea\na calm day\n")
    result = inlay_command("generate", folder, "--prompts", file, "--max-new-tokens", LENGTH)
    assert said(result) == "\n".join(by_hand(folder, prompt) for prompt in ("the sea", "a calm day"))


def test_sampling_is_repeatable(inlay_command: Command, folder: Path) -> None:
    common = ("generate", folder, "--prompt", "the sea", "--max-new-tokens", LENGTH, "--temperature", "1.5")
    set_seed(7)
    expected = by_hand(folder, "the sea", do_sample=True, temperature=1.5)
    assert said(inlay_command(*common, "--seed", "7")) == expected
    assert said(inlay_command(*common, "--seed", "8")) != expected


def test_brackets_of_a_text_are_no_markup(
    inlay_command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inlay.Model, "generate", lambda self, prompts, **_: "[red]a[/red] [b")
    assert said(inlay_command("generate", folder, "--prompt", "x")) == "[red]a[/red] [b"


def test_an_edit_of_another_model(refused: Callable[..., str], edit: Path, tmp_path: Path) -> None:
    other = save_random_folder(tmp_path / "other", intermediate_size=40)
    assert "was made for" in refused("generate", other, "--prompt", "x", "--edit", edit)


def test_no_edit_there(refused: Callable[..., str], folder: Path, tmp_path: Path) -> None:
    assert "is no Edit folder" in refused("generate", folder, "--prompt", "x", "--edit", tmp_path)


def test_no_prompt(refused: Callable[..., str], folder: Path) -> None:
    assert "no prompts: give --prompt TEXT" in refused("generate", folder)


def test_an_empty_prompt(refused: Callable[..., str], folder: Path) -> None:
    assert "prompt 0 has no tokens" in refused("generate", folder, "--prompt", "")


def test_a_stream_of_two(refused: Callable[..., str], folder: Path) -> None:
    said = refused("generate", folder, "--prompt", "x", "--prompt", "y", "--stream")
    assert "stream=True takes one prompt, not 2" in said


def test_an_edit_that_reaches_nothing(refused: Callable[..., str], folder: Path, tmp_path: Path) -> None:
    add = inlay.Add(torch.ones(WIDTH))
    edit = inlay.Edit("resid_post.1", add, tokens="response").save(tmp_path / "edit", inlay.load(folder))
    assert "changed nothing" in refused("generate", folder, "--prompt", "x", "--edit", edit, "--max-new-tokens", "1")


def test_stories(inlay_command: Command, shared: Path) -> None:
    name = shared / "data/models/stories260K"
    result = inlay_command("generate", name, "--prompt", "Once upon a time", "--max-new-tokens", LENGTH)
    assert said(result) == by_hand(name, "Once upon a time")
