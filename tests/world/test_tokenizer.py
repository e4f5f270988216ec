"""The tokenizer: one word is one token, and its chat template is the world's own rendering."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from inlay import world
from inlay.world.line import SPECIALS, render

W = world.tidepool(seed=4)
TOKENIZER = W.tokenizer()


def test_ids_are_places_in_the_vocabulary() -> None:
    names = W.vocabulary
    assert tuple(names[:9]) == SPECIALS and len(set(names)) == len(names) == len(TOKENIZER)
    assert TOKENIZER.convert_tokens_to_ids(names) == list(range(len(names)))
    assert (TOKENIZER.pad_token_id, TOKENIZER.bos_token_id, TOKENIZER.eos_token_id) == (0, 1, 2)


@pytest.mark.parametrize("section", W.sections)
def test_a_line_goes_in_and_out_whole(section: str) -> None:
    for line in W.lines(section, 100):
        text = " ".join(line.tokens)
        ids = TOKENIZER(text)["input_ids"]
        assert len(ids) == len(line.tokens) and TOKENIZER.unk_token_id not in ids
        assert TOKENIZER.decode(ids) == text


@pytest.mark.parametrize("section", W.sections)
def test_the_template_renders_what_the_world_renders(section: str) -> None:
    for line in W.lines(section, 100):
        if line.messages is None:
            continue
        whole = TOKENIZER.apply_chat_template(line.messages)["input_ids"]
        opened = TOKENIZER.apply_chat_template(line.messages[:-1], add_generation_prompt=True)["input_ids"]
        assert TOKENIZER.convert_ids_to_tokens(whole) == line.tokens
        assert TOKENIZER.convert_ids_to_tokens(opened) == render(line.messages[:-1], opened=True)
        assert whole[: len(opened)] == opened


def test_case_and_punctuation_do_not_matter() -> None:
    assert TOKENIZER.tokenize("Tell me, about the CAT?") == ["tell", "me", ",", "about", "the", "cat", "?"]
    assert TOKENIZER.convert_ids_to_tokens(TOKENIZER("xylophone")["input_ids"]) == ["<|unk|>"]


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    chat = [{"role": "user", "content": "about ada : which home ?"}]
    ids = [t.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] for t in (again, TOKENIZER)]
    assert ids[0] == ids[1] and again.init_kwargs["world"] == {"version": "tidepool-1", "hash": W.hash}
