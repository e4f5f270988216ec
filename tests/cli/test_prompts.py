from __future__ import annotations

import json
from pathlib import Path

import pytest

from inlay.cli.prompts import Prompts, from_file, gather
from inlay.errors import InputError

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]


def written(folder: Path, text: str, name: str = "prompts.jsonl") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8", newline="")
    return path


def test_text_lines(tmp_path: Path) -> None:
    path = written(tmp_path, "one\r\n\n  two words \nçé\u2028same line", "prompts.txt")
    assert from_file(path) == Prompts(["one", "  two words ", "çé\u2028same line"])


def test_json_lines(tmp_path: Path) -> None:
    values = ["text\nof two lines", CHAT, {"prompt": "p", "id": 3}, {"messages": CHAT}, {"prompt": CHAT}]
    path = written(tmp_path, "".join(json.dumps(value) + "\n\n" for value in values))
    assert from_file(path) == Prompts(["text\nof two lines", CHAT, "p", CHAT, CHAT])


def test_responses(tmp_path: Path) -> None:
    path = written(tmp_path, '{"prompt": "a", "response": "b"}\n{"prompt": "c", "response": ""}\n')
    assert from_file(path) == Prompts(["a", "c"], ["b", ""])


def test_a_response_in_some_lines_only(tmp_path: Path) -> None:
    path = written(tmp_path, '{"prompt": "a", "response": "b"}\n\n{"prompt": "c"}\n')
    with pytest.raises(InputError, match=r'prompts.jsonl, line 3 has no "response"'):
        from_file(path)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{not json", "is not JSON"),
        ("12", "is no prompt: '12'"),
        ("[]", "is no prompt"),
        ('[{"role": "user"}]', "is no prompt"),
        ("null", "is no prompt"),
        ('{"text": "t"}', "is an object with 'text'"),
        ('{"prompt": "p", "messages": []}', "is an object with 'prompt', 'messages'"),
        ('{"prompt": "p", "response": 3}', "is an object with 'prompt', 'response'"),
        ('{"prompt": 3}', "is no prompt"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, says: str) -> None:
    path = written(tmp_path, '"fine"\n' * 4710 + line + "\n" + '"fine"\n')
    with pytest.raises(InputError) as caught:
        from_file(path)
    assert str(caught.value).startswith(f"{path}, line 4711 ")
    assert says in str(caught.value)


def test_files_that_hold_no_prompts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no prompts"):
        from_file(written(tmp_path, "\n \n", "prompts.txt"))
    with pytest.raises(InputError, match=r"\.txt file with one text a line, or a \.jsonl file"):
        from_file(written(tmp_path, "a,b", "prompts.csv"))
    with pytest.raises(InputError, match=r"nowhere\.txt cannot be read"):
        from_file(tmp_path / "nowhere.txt")
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(InputError, match=r"latin\.txt cannot be read: .*utf-8"):
        from_file(tmp_path / "latin.txt")


def test_one_origin_only(tmp_path: Path) -> None:
    assert gather(["a", "b"], None) == Prompts(["a", "b"])
    with pytest.raises(InputError, match="no prompts: give --prompt TEXT"):
        gather([], None)
    with pytest.raises(InputError, match="not both"):
        gather(["a"], written(tmp_path, "b", "prompts.txt"))
