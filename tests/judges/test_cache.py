"""The file of answers: what a killed run leaves is used, what is broken is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from inlay.errors import JudgeError
from inlay.judges.cache import Cache


def line(key: str, answer: str = "Rating: [[1]]") -> bytes:
    return json.dumps({"key": key, "answer": answer}).encode() + b"\n"


def test_what_was_added_is_there_in_another_process(tmp_path: Path) -> None:
    odd = 'two\nlines, "quotes", 鱼 and \ud800'
    with Cache(tmp_path / "c") as cache:
        cache.add("a", odd)
        assert (tmp_path / "c").read_bytes() == line("a", odd), "on disk before the block ends"
        assert cache.get("a") == odd and cache.get("b") is None
    with Cache(tmp_path / "c") as cache:
        assert cache.get("a") == odd


@pytest.mark.parametrize("cut", range(1, len(line("b"))))
def test_a_torn_last_line_is_cut_off_at_any_byte(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "c"
    path.write_bytes(line("a") + line("b")[:cut])
    with Cache(path) as cache:
        assert cache.get("a") and cache.get("b") is None
        cache.add("c", "x")
    assert path.read_bytes() == line("a") + line("c", "x")


@pytest.mark.parametrize("bad", [b"no json\n", b"[]\n", b'{"key": "a"}\n', b"\n", b"\xff\xfe\n", b"3\n"])
def test_a_broken_line_is_named_and_nothing_is_lost(bad: bytes, tmp_path: Path) -> None:
    path = tmp_path / "c"
    path.write_bytes(line("a") + bad + line("b"))
    with pytest.raises(JudgeError, match="holds a line that is no answer of a judge"), Cache(path):
        pass
    assert path.read_bytes() == line("a") + bad + line("b")


def test_it_sees_what_another_one_added_and_a_file_that_was_put_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "c"
    one, two = Cache(path), Cache(path)
    with one:
        one.add("a", "first")
    with two:
        assert two.get("a") == "first"
        two.add("b", "second")
    with one:
        assert one.get("b") == "second"
    assert path.read_bytes() == line("a", "first") + line("b", "second")
    path.write_bytes(line("c", "third"))
    with one:
        assert one.get("c") == "third"


IN_USE = "another judge or process uses the cache .*c: wait for it, or give another path"


def test_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "c"
    one, two = Cache(path), Cache(path)
    with one:
        with pytest.raises(JudgeError, match=IN_USE), two:
            pass
        one.add("a", "x")
        with pytest.raises(JudgeError, match=IN_USE), two:
            pass
        with Cache(tmp_path / "d"):  # another file is free
            pass
    with two:
        two.add("b", "y")
    assert path.read_bytes() == line("a", "x") + line("b", "y"), "who was refused has closed nothing of the other's"


_HOLD = """
import sys
from inlay.judges.cache import Cache
with Cache(sys.argv[1]) as cache:
    cache.add("a", "x")
    print("open", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("killed", [False, True], ids=["ends", "killed"])
def test_another_process_is_refused_while_one_runs(killed: bool, tmp_path: Path) -> None:
    path = tmp_path / "c"
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout and process.stdout.readline() == b"open\n"
        with pytest.raises(JudgeError, match=IN_USE), Cache(path):
            pass
        if killed:
            process.kill()
    with Cache(path) as cache:
        assert cache.get("a") == "x"


def test_the_file_is_free_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "c"
    path.write_bytes(b"no json\n")
    broken, other = Cache(path), Cache(path)
    with pytest.raises(JudgeError, match="holds a line"), broken:
        pass
    path.write_bytes(line("a"))
    with pytest.raises(ValueError, match="inside"), other:
        raise ValueError("inside")
    with broken, pytest.raises(JudgeError, match=IN_USE), other:
        pass
    path.unlink()
    path.mkdir()
    with pytest.raises(JudgeError, match="cannot be used"), broken:
        pass
    path.rmdir()
    with other:
        assert path.read_bytes() == b""


def test_without_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cache = Cache(None)
    with cache:
        cache.add("a", "x")
    with cache:
        assert cache.get("a") == "x"
    assert not os.listdir(tmp_path)


def test_a_path_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "c"):
        with pytest.raises(JudgeError, match=r"cannot be used: .*; give another path"), Cache(path):
            pass


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line is on disk in part; nothing is written behind it, and the next run cuts it off."""
    path = tmp_path / "c"
    path.write_bytes(line("a"))

    def full(_: int) -> None:
        os.truncate(path, path.stat().st_size - 5)
        raise OSError(28, "No space left on device")

    with Cache(path) as cache:
        with monkeypatch.context() as patched:
            patched.setattr("os.fsync", full)
            with pytest.raises(JudgeError, match=r"cannot be written: .*No space left.*; free some space"):
                cache.add("b", "x")
        cache.add("c", "y")
    assert path.read_bytes() == line("a") + line("b", "x")[:-5]
    with Cache(path) as cache:
        assert cache.get("a") and path.read_bytes() == line("a")
