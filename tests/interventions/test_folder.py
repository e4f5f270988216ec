"""An Edit as a folder: every kind back bit for bit, what the card says, and every way in which it can be damaged."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.interventions import tiny
from tests.interventions.tiny import EVEN, OTHER, WIDTH
from torch import Tensor, nn

import inlay
from inlay import (
    Ablate,
    Add,
    Bank,
    Clamp,
    Edit,
    Function,
    Intervention,
    Mean,
    Noise,
    Project,
    Replace,
    Scale,
    Source,
    Swap,
    Zero,
)
from inlay.errors import EditError, FolderError, InlayError

SITE = "resid_post.1"


def _v(seed: int) -> Tensor:
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))


def halved(h: Tensor) -> Tensor:
    return h / 2


class Blend(nn.Module):
    """A module with a buffer and a constructor argument that it tells."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self.target = nn.Parameter(_v(8))
        self.register_buffer("gain", torch.tensor(1.5))

    def config(self) -> dict[str, Any]:
        return {"share": self.share}

    def forward(self, h: Tensor) -> Tensor:
        return (1 - self.share) * h + self.share * self.gain * self.target.to(h)


KINDS: dict[str, Callable[[int], Intervention]] = {
    "add": lambda k: Add(_v(k)),
    "trainable add": lambda k: Add(nn.Parameter(_v(k))),
    "bf16 add": lambda k: Add(_v(k).bfloat16()),
    "float64 add": lambda k: Add(_v(k).double() + 1e-9),
    "clamp": lambda k: Clamp(_v(k), 0.1, 0.3),
    "clamp open": lambda k: Clamp(_v(k), 0.1, float("inf")),
    "ablate": lambda k: Ablate(_v(k)),
    "project": lambda k: Project(torch.stack([_v(k), _v(k + 1), _v(k + 2)], 1)),
    "project keep": lambda k: Project(torch.stack([_v(k), _v(k + 1)], 1), keep=True),
    "replace": lambda k: Replace(_v(k)),
    "replace dims": lambda k: Replace(_v(k), dims=[4, 2, 9]),
    "trainable replace": lambda k: Replace(nn.Parameter(_v(k))),
    "zero": lambda k: Zero(),
    "zero dims": lambda k: Zero(slice(3, 9)),
    "scale": lambda k: Scale(0.1 + k),
    "trainable scale": lambda k: Scale(nn.Parameter(torch.tensor(0.3))),
    "scale dims": lambda k: Scale(-1.0, dims=[0]),
    "noise": lambda k: Noise(0.1, seed=2**62 + k),
    "noise dims": lambda k: Noise(0.1, seed=-k, dims=[1, 2]),
    "mean": lambda k: Mean(_v(k)),
    "trainable mean": lambda k: Mean(nn.Parameter(_v(k)), dims=[5]),
    "mean of a source": lambda k: Mean(Source(OTHER, tokens="last2")),
    "swap": lambda k: Swap(Source(OTHER, tokens="last")),
    "swap dims": lambda k: Swap(Source(OTHER, tokens=1, site="resid_post.2"), dims=[7, 8]),
    "function": lambda k: Function(halved),
    "module": lambda k: Function(Blend(0.25)),
}
each = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


# -- round trips -------------------------------------------------------------------------------------------------------


@each
def test_every_kind_comes_back_bit_for_bit(make: Callable[[int], Intervention], tmp_path: Path) -> None:
    model = tiny.model()
    for k in range(4):
        edit = Edit(SITE, make(k), tokens="last", strength=0.75)
        again = Edit.from_pretrained(edit.save(tmp_path / str(k)), model)
        assert str(again) == str(edit)
        with torch.no_grad():
            want = model.forward(EVEN, edit=edit).logits
            assert torch.equal(model.forward(EVEN, edit=again).logits, want)
        before, after = edit.parts[0].intervention, again.parts[0].intervention
        assert type(after) is type(before)
        assert set(after.state()) == set(before.state())
        for name, tensor in before.state().items():
            assert after.state()[name].dtype == tensor.dtype, name
            assert torch.equal(after.state()[name], tensor), name
        assert {n: p.requires_grad for n, p in after.named_parameters()} == {
            n: p.requires_grad for n, p in before.named_parameters()
        }


@each
def test_a_second_save_writes_the_same_bytes(make: Callable[[int], Intervention], tmp_path: Path) -> None:
    edit = Edit(SITE, make(0), tokens="last")
    first = edit.save(tmp_path / "first")
    second = Edit.from_pretrained(first).save(tmp_path / "second")
    for name in ("edit.json", "edit.safetensors"):
        assert (second / name).read_bytes() == (first / name).read_bytes()


@each
def test_loaded_tensors_lie_on_the_cpu(make: Callable[[int], Intervention], tmp_path: Path) -> None:
    again = Edit.from_pretrained(Edit(SITE, make(0)).save(tmp_path / "edit"))
    assert all(t.device.type == "cpu" for t in again.parts[0].intervention.state().values())


def test_many_random_directions_come_back_bit_for_bit(tmp_path: Path) -> None:
    """Scaling to length 1 is not idempotent in floating point, so a stored direction must be taken as it is."""
    for seed in range(40):
        for make in (Ablate, lambda v: Clamp(v, 1.0)):
            edit = Edit(SITE, make(_v(seed)))
            again = Edit.from_pretrained(edit.save(tmp_path / "edit"))
            assert torch.equal(
                again.parts[0].intervention.state()["direction"], edit.parts[0].intervention.state()["direction"]
            )


def test_a_sum_of_parts_comes_back_in_order(tmp_path: Path) -> None:
    model = tiny.model()
    edit = (
        Edit("resid_post.*", Add(_v(0)), tokens="first2+last", strength=-0.5)
        + Edit("z.1.h[0,3]", Scale(2.0), tokens=[0, -1])
        + Edit("module:model.layers.2.mlp.down_proj:out", Add(_v(1)), tokens=slice(1, 3))
        + Edit("logits", Scale(0.5), tokens="last")
    )
    again = Edit.from_pretrained(edit.save(tmp_path / "edit"), model)
    assert [str(p) for p in again.parts] == [str(p) for p in edit.parts]
    assert [p.tokens.clauses for p in again.parts] == [p.tokens.clauses for p in edit.parts]
    assert torch.equal(model.forward(EVEN, edit=again).logits, model.forward(EVEN, edit=edit).logits)


@pytest.mark.parametrize(
    "text",
    ["plain", "it's", 'say "so"', "both ' and \"", "a+b", "f(x)", "two\nlines", "tab\t", "back\\slash", "snö", "')"],
)
def test_spans_of_any_text_come_back(text: str, tmp_path: Path) -> None:
    for occurrence in (0, -1):
        edit = Edit(SITE, Zero(), tokens=inlay.span(text, occurrence))
        again = Edit.from_pretrained(edit.save(tmp_path / "edit"))
        assert again.parts[0].tokens.clauses == edit.parts[0].tokens.clauses


def test_shared_interventions_stay_shared_and_are_stored_once(tmp_path: Path) -> None:
    shared = Add(nn.Parameter(_v(0)))
    edit = Edit("resid_post.0", shared, "last") + Edit(SITE, Scale(2.0)) + Edit("resid_post.2", shared, strength=2.0)
    folder = edit.save(tmp_path / "edit")
    assert set(load_file(folder / "edit.safetensors")) == {"part0.vector", "part1.factor"}
    again = Edit.from_pretrained(folder)
    assert again.parts[0].intervention is again.parts[2].intervention
    assert len(list(again.parameters())) == 1
    assert again.parts[2].strength == 2.0 and again.parts[0].strength is None


def test_a_shared_source_is_still_run_once(tmp_path: Path) -> None:
    source = Source(OTHER)
    edit = Edit("resid_post.0", Swap(source), "last") + Edit("mlp_out.1", Swap(source), "last")
    again = Edit.from_pretrained(edit.save(tmp_path / "edit"))
    model = tiny.model()
    with tiny.forwards(model.hf) as count:
        got = model.forward(EVEN, edit=again).logits
    assert torch.equal(got, model.forward(EVEN, edit=edit).logits)
    assert count == [2]


def test_a_source_of_text(tmp_path: Path) -> None:
    model = inlay.load(tiny.llama(), tokenizer=tiny.words())
    for prompts in (tiny.text(OTHER), tiny.text(OTHER)[0]):
        edit = Edit(SITE, Swap(Source(prompts, tokens="last")), tokens="last")
        again = Edit.from_pretrained(edit.save(tmp_path / "edit"), model)
        assert torch.equal(model.forward(EVEN, edit=again).logits, model.forward(EVEN, edit=edit).logits)


def test_a_trained_edit_is_saved_as_it_stands(tmp_path: Path) -> None:
    edit = Edit(SITE, Add(nn.Parameter(_v(0))))
    with torch.no_grad():
        next(edit.parameters()).add_(1)
    again = Edit.from_pretrained(edit.save(tmp_path / "edit"))
    assert torch.equal(next(again.parameters()), _v(0) + 1)
    edit.to(torch.bfloat16).save(tmp_path / "half")
    assert next(Edit.from_pretrained(tmp_path / "half").parameters()).dtype == torch.bfloat16


# -- the card ----------------------------------------------------------------------------------------------------------


def test_the_card_says_what_it_is(tmp_path: Path) -> None:
    model = tiny.model()
    model.hf.config._commit_hash = "0123abc"
    edit = Edit("resid_post.1", Clamp(_v(0), 0.0, 1.0), "first2+last", strength=0.5)
    edit = edit + Edit("z.0.h1", Replace(nn.Parameter(torch.ones(8)), dims=[1, 2]))
    card = json.loads((edit.save(tmp_path / "edit", model) / "edit.json").read_text())
    assert card["inlay"] == inlay.__version__
    assert card["format"] == 1
    assert card["base"]["name"] == model.name and card["base"]["revision"] == "0123abc"
    assert (card["base"]["family"], card["base"]["layers"], card["base"]["width"]) == ("llama", 3, 32)
    first, second = card["parts"]
    assert (first["site"], first["tokens"], first["kind"], first["strength"]) == (
        "resid_post.1",
        "first2+last",
        "clamp",
        0.5,
    )
    assert first["shapes"] == {"direction": [32], "low": [], "high": []}
    assert (second["site"], second["tokens"], second["kind"], second["strength"]) == ("z.0.h1", "all", "replace", None)
    assert second["shapes"] == {"vector": [8], "dims": [2]}
    assert second["trainable"] == ["vector"] and first["trainable"] == []


def test_the_card_is_plain_json_without_nan(tmp_path: Path) -> None:
    edit = Edit(SITE, Clamp(_v(0), 0.0, float("inf")))
    text = (edit.save(tmp_path / "edit") / "edit.json").read_text()

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    json.loads(text, parse_constant=refuse)
    assert sorted(p.name for p in (tmp_path / "edit").iterdir()) == ["edit.json", "edit.safetensors"]


def test_the_base_is_kept_when_it_is_saved_again(tmp_path: Path) -> None:
    model = tiny.model()
    edit = Edit(SITE, Add(_v(0)))
    again = Edit.from_pretrained(edit.save(tmp_path / "a", model))
    cards = [json.loads((folder / "edit.json").read_text()) for folder in (tmp_path / "a", again.save(tmp_path / "b"))]
    assert cards[0]["base"] == cards[1]["base"]
    assert again.base["layers"] == 3


def test_without_a_model_no_base_is_recorded_and_any_may_load_it(tmp_path: Path) -> None:
    folder = Edit(SITE, Add(_v(0))).save(tmp_path / "edit")
    assert Edit.from_pretrained(folder, tiny.model()).base == {}
    assert Edit.from_pretrained(folder, inlay.load(tiny.gpt2())).base == {}


def test_another_base_model_is_refused_by_name(tmp_path: Path) -> None:
    folder = Edit(SITE, Add(_v(0))).save(tmp_path / "edit", tiny.model())
    for other in (tiny.model(num_hidden_layers=2), inlay.load(tiny.gpt2())):
        with pytest.raises(FolderError, match=r"made for 'LlamaForCausalLM' .*this model is '.*'.*leave model= out"):
            Edit.from_pretrained(folder, other)
    assert Edit.from_pretrained(folder).parts
    assert Edit.from_pretrained(folder, tiny.model(seed=5)).parts  # the same configuration


def test_the_base_is_the_same_after_use_and_in_another_dtype(tmp_path: Path) -> None:
    model = tiny.model()
    folder = Edit(SITE, Add(_v(0))).save(tmp_path / "edit", model)
    with model.edited(Edit("pattern.0", Scale(1.0))):
        model.hf(torch.tensor([[1, 2]]))
    model.hf.config.pad_token_id, model.hf.config.problem_type = 7, "regression"  # as trainers write them
    assert Edit.from_pretrained(folder, model).parts
    assert Edit.from_pretrained(folder, tiny.model(dtype=torch.bfloat16)).parts


# -- what cannot be saved ----------------------------------------------------------------------------------------------


def _nothing_written(folder: Path) -> bool:
    return not folder.exists() or not list(folder.iterdir())


def test_tokens_of_one_batch_are_refused(tmp_path: Path) -> None:
    for tokens in (torch.ones(4, 4, dtype=torch.bool), torch.tensor([[0], [1]])):
        edit = Edit("resid_post.0", Add(_v(0))) + Edit(SITE, Add(_v(0)), tokens=tokens)
        with pytest.raises(EditError, match=r"part 1: tokens=.* belongs to one batch and cannot be saved"):
            edit.save(tmp_path / "edit")
    assert _nothing_written(tmp_path / "edit")


def test_what_lives_in_memory_alone_is_refused(tmp_path: Path) -> None:
    class Mine(Intervention):
        def transform(self, h: Tensor, state: Any, call: Any) -> Tensor:
            return h

    for intervention, telling in (
        (lambda h: h, "cannot be saved"),
        (Swap(Source([[1, 2]], tokens=torch.tensor([[0]]))), "belongs to one batch"),
        (Mine(), "Mine has no `kind` of its own"),
    ):
        with pytest.raises(EditError, match=telling):
            Edit(SITE, intervention).save(tmp_path / "edit")
        assert _nothing_written(tmp_path / "edit")


def test_a_failed_save_keeps_the_edit_that_was_there(tmp_path: Path) -> None:
    folder = Edit(SITE, Add(_v(0))).save(tmp_path / "edit")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(EditError, match="cannot be saved"):
        (Edit(SITE, Add(_v(1))) + Edit(SITE, lambda h: h)).save(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


# -- the disk ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _disk_of(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: writes then fail as they do on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _big(seed: int) -> Edit:
    torch.manual_seed(seed)
    return Edit("mlp_act.0", Project(torch.randn(1024, 32)))


def test_a_full_disk_is_a_folder_error_and_leaves_no_half_file(tmp_path: Path) -> None:
    with _disk_of(20_000), pytest.raises(FolderError, match="could not be written to"):
        _big(0).save(tmp_path / "edit")
    assert _nothing_written(tmp_path / "edit")


@pytest.mark.parametrize("size", [20_000, 10], ids=["tensors", "everything"])
def test_a_full_disk_keeps_the_edit_that_was_there(size: int, tmp_path: Path) -> None:
    folder = _big(0).save(tmp_path / "edit")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with _disk_of(size), pytest.raises(FolderError, match="could not be written to"):
        _big(1).save(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_where_the_description_does_not_fit_the_old_edit_stays_whole(tmp_path: Path) -> None:
    """New tensors under an old description would be an edit that nobody made."""
    folder = Edit(SITE, Add(_v(0))).save(tmp_path / "edit")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    many = Edit(SITE, Add(_v(1)))
    for _ in range(60):
        many = many + Edit("resid_post.0", many.parts[0].intervention)  # little to store, much to say
    with _disk_of(2_000), pytest.raises(FolderError, match="could not be written to"):
        many.save(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


@pytest.mark.parametrize("nth", [1, 2, 3, 4])
def test_a_save_that_is_killed_leaves_the_old_edit_or_the_new_one_or_an_error(
    nth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Edit(SITE, Add(_v(0))).save(tmp_path / "edit")
    calls = [0]
    rename = os.replace

    def killed(*args: Any, **kwargs: Any) -> None:
        calls[0] += 1
        if calls[0] == nth:
            raise KeyboardInterrupt
        rename(*args, **kwargs)

    monkeypatch.setattr(os, "replace", killed)
    with contextlib.suppress(KeyboardInterrupt):
        (Edit(SITE, Add(_v(1)), strength=-1.0)).save(folder)
    monkeypatch.undo()
    try:
        again = Edit.from_pretrained(folder)
    except FolderError:
        return
    vector, strength = again.parts[0].intervention.state()["vector"], again.parts[0].strength
    old = torch.equal(vector, _v(0)) and strength is None
    new = torch.equal(vector, _v(1)) and strength == -1.0
    assert old or new, "tensors of one edit under the description of the other"


def test_saving_over_an_edit_replaces_it(tmp_path: Path) -> None:
    folder = (Edit(SITE, Add(_v(0))) + Edit("resid_post.0", Scale(2.0))).save(tmp_path / "edit")
    Edit("resid_post.2", Replace(_v(1), dims=[1])).save(folder)
    again = Edit.from_pretrained(folder)
    assert str(again) == "Edit(Replace at resid_post.2, tokens='all')"
    assert torch.equal(again.parts[0].intervention.state()["vector"], _v(1))
    assert sorted(p.name for p in folder.iterdir()) == ["edit.json", "edit.safetensors"]


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b" / "edit"
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    Edit(SITE, Add(_v(0))).save(folder)
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "edit").write_text("a file")
    with pytest.raises(FolderError, match="could not be written to"):
        Edit(SITE, Add(_v(0))).save(tmp_path / "edit")
    assert (tmp_path / "edit").read_text() == "a file"


# -- damage ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    edit = Edit(SITE, Add(nn.Parameter(_v(0))), "last") + Edit("resid_post.0", Project(torch.randn(WIDTH, 2)))
    return edit.save(tmp_path / "edit", tiny.model())


def _changed(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    card = json.loads((folder / "edit.json").read_text())
    change(card)
    (folder / "edit.json").write_text(json.dumps(card))


def test_missing_files(saved: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FolderError, match=r"is no Edit folder: it has no edit\.json"):
        Edit.from_pretrained(empty)
    (saved / "edit.safetensors").unlink()
    with pytest.raises(FolderError, match=r"edit\.safetensors cannot be read"):
        Edit.from_pretrained(saved)
    for name in (str(tmp_path / "nowhere"), "./nowhere", "~/nowhere-at-all"):
        with pytest.raises(FolderError, match="nowhere"):
            Edit.from_pretrained(name)


def test_a_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    Edit(SITE, Add(_v(0))).save("~/edit")
    assert (tmp_path / "edit" / "edit.json").exists()
    assert Edit.from_pretrained("~/edit").parts


@pytest.mark.parametrize("keep", [0, 4, 100, -5])
def test_truncated_tensors(saved: Path, keep: int) -> None:
    path = saved / "edit.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(FolderError, match=r"edit\.safetensors cannot be read"):
        Edit.from_pretrained(saved)


@pytest.mark.parametrize("text", ["", "{", "\xff\xfe", "[1, 2]", "null", "3", '"text"'])
def test_a_description_that_is_none(saved: Path, text: str) -> None:
    (saved / "edit.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(FolderError, match=r"edit\.json (cannot be read|has format None)"):
        Edit.from_pretrained(saved)


@pytest.mark.parametrize("stored", [0, 2, "1", None])
def test_another_format(saved: Path, stored: Any) -> None:
    _changed(saved, lambda card: card.update(format=stored))
    with pytest.raises(FolderError, match=rf"has format {stored!r}; this inlay .* reads format 1"):
        Edit.from_pretrained(saved)


def test_an_unknown_kind_names_those_that_are_known(saved: Path) -> None:
    _changed(saved, lambda card: card["parts"][1].update(kind="orthogonalise"))
    with pytest.raises(
        FolderError, match=r"part 1 is of kind 'orthogonalise'; import the module .*ablate, add, .*bank, basis_swap"
    ):
        Edit.from_pretrained(saved)


DAMAGE: dict[str, Callable[[dict[str, Any]], object]] = {
    "no base": lambda card: card.pop("base"),
    "base a text": lambda card: card.update(base="llama"),
    "no parts": lambda card: card.pop("parts"),
    "parts empty": lambda card: card.update(parts=[]),
    "part a text": lambda card: card.update(parts=["add"]),
    "no ties": lambda card: card["parts"][0].pop("tied"),
    "ties a number": lambda card: card["parts"][0].update(tied=3),
    "part a number": lambda card: card.update(parts=[3]),
    "no site": lambda card: card["parts"][0].pop("site"),
    "a site that is none": lambda card: card["parts"][0].update(site="residual.1"),
    "site a number": lambda card: card["parts"][0].update(site=3),
    "no tokens": lambda card: card["parts"][0].pop("tokens"),
    "tokens that are none": lambda card: card["parts"][0].update(tokens="lots"),
    "no strength": lambda card: card["parts"][0].pop("strength"),
    "strength a text": lambda card: card["parts"][0].update(strength="much"),
    "strength not finite": lambda card: card["parts"][0].update(strength=float("nan")),
    "no kind": lambda card: card["parts"][0].pop("kind"),
    "kind a list": lambda card: card["parts"][0].update(kind=["add"]),
    "no config": lambda card: card["parts"][0].pop("config"),
    "config a list": lambda card: card["parts"][0].update(config=[1]),
    "config of another kind": lambda card: card["parts"][0].update(config={"keep": True}),
    "no shapes": lambda card: card["parts"][0].pop("shapes"),
    "shapes a list": lambda card: card["parts"][0].update(shapes=[32]),
    "shapes empty": lambda card: card["parts"][0].update(shapes={}),
    "no trainable": lambda card: card["parts"][0].pop("trainable"),
    "same as a later part": lambda card: card["parts"][0].update(same_as=1),
    "same as itself": lambda card: card["parts"][0].update(same_as=0),
    "same as the last": lambda card: card["parts"][1].update(same_as=-1),
    "same as a text": lambda card: card["parts"][1].update(same_as="first"),
    "another kind": lambda card: card["parts"][0].update(kind="clamp"),
}


@pytest.mark.parametrize("change", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_description_is_a_folder_error(saved: Path, change: Callable[[dict[str, Any]], object]) -> None:
    _changed(saved, change)
    with pytest.raises(FolderError):
        Edit.from_pretrained(saved, tiny.model())


def test_a_tensor_of_another_shape_or_missing_or_not_finite(saved: Path) -> None:
    tensors = load_file(saved / "edit.safetensors")
    for change, telling in (
        ({"part0.vector": torch.randn(7)}, r"part 0: the tensor 'vector' should be \[32\] and is of shape \[7\]"),
        ({"part0.vector": None}, r"part 0: the tensor 'vector' should be \[32\] and is missing; the folder is damaged"),
        ({"part0.vector": torch.full((32,), float("nan"))}, "NaN"),
        ({"part1.basis": torch.full((32, 2), float("inf"))}, "NaN"),
    ):
        now = {name: t for name, t in {**tensors, **change}.items() if t is not None}
        save_file(now, saved / "edit.safetensors")
        with pytest.raises(FolderError, match=telling):
            Edit.from_pretrained(saved)


def test_nothing_is_unpickled(saved: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (marker,))

    payload = pickle.dumps(Bomb())
    pickle.loads(payload)
    assert marker.exists()  # it would go off
    marker.unlink()
    for name in ("edit.bin", "pytorch_model.bin", "edit.pt", "edit.pkl", "edit.pickle"):
        (saved / name).write_bytes(payload)
    assert len(Edit.from_pretrained(saved).parts) == 2
    assert not marker.exists()
    (saved / "edit.safetensors").write_bytes(payload)
    with pytest.raises(FolderError, match=r"edit\.safetensors cannot be read"):
        Edit.from_pretrained(saved)
    assert not marker.exists()


def test_a_function_is_imported_by_name_and_not_run_when_it_is_loaded(tmp_path: Path) -> None:
    """A folder names code that must already be installed; it cannot bring any."""
    folder = Edit(SITE, halved).save(tmp_path / "edit")
    (tmp_path / "evil_inlay_test.py").write_text("raise SystemExit('ran')")
    _changed(folder, lambda card: card["parts"][0]["config"].update({"import": "evil_inlay_test:f"}))
    with pytest.raises(FolderError, match="cannot be imported here"):
        Edit.from_pretrained(folder)


# -- the hub -----------------------------------------------------------------------------------------------------------


class Hub:
    """In place of the hub: repositories are folders."""

    def __init__(self, home: Path) -> None:
        self.home, self.calls = home, []  # type: ignore[var-annotated]

    def api(self, token: str | None = None) -> Any:
        hub = self

        class Api:
            def create_repo(self, repo_id: str, **kwargs: Any) -> None:
                hub.calls.append(("create", repo_id, token, kwargs))
                (hub.home / repo_id).mkdir(parents=True, exist_ok=True)

            def upload_folder(self, *, repo_id: str, folder_path: str, **kwargs: Any) -> str:
                hub.calls.append(("upload", repo_id, token, kwargs))
                shutil.copytree(folder_path, hub.home / repo_id, dirs_exist_ok=True)
                return "the commit"

        return Api()

    def download(self, repo_id: str, allow_patterns: list[str], **kwargs: Any) -> str:
        self.calls.append(("download", repo_id, allow_patterns, kwargs))
        if not (self.home / repo_id).exists():
            raise OSError("404 Client Error: Repository Not Found")
        return str(self.home / repo_id)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub(tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.HfApi", made.api)
    monkeypatch.setattr("huggingface_hub.snapshot_download", made.download)
    return made


def test_pushed_and_loaded_from_the_hub(hub: Hub) -> None:
    model = tiny.model()
    edit = Edit(SITE, Add(_v(0)), "last")
    assert edit.push_to_hub("someone/steers", model, private=True, token="secret") == "the commit"
    (create, upload) = hub.calls
    assert create[:3] == ("create", "someone/steers", "secret")
    assert create[3]["private"] is True and create[3]["exist_ok"] is True
    assert upload[:3] == ("upload", "someone/steers", "secret")
    assert sorted(p.name for p in (hub.home / "someone/steers").iterdir()) == ["edit.json", "edit.safetensors"]
    again = Edit.from_pretrained("someone/steers", model, revision="v1", token="secret")
    assert torch.equal(model.forward(EVEN, edit=again).logits, model.forward(EVEN, edit=edit).logits)
    download = hub.calls[-1]
    assert download[:2] == ("download", "someone/steers")
    assert download[3] == {"revision": "v1", "token": "secret"}
    assert sorted(download[2]) == ["edit.json", "edit.safetensors"]


def test_a_repository_that_is_not_there(hub: Hub) -> None:
    with pytest.raises(FolderError, match="'someone/else' is no folder here, and the hub did not give it: 404"):
        Edit.from_pretrained("someone/else")
    assert hub.calls[-1][1] == "someone/else"


def test_a_repository_that_is_no_edit(hub: Hub) -> None:
    (hub.home / "someone/model").mkdir(parents=True)
    with pytest.raises(FolderError, match=r"is no Edit folder: it has no edit\.json"):
        Edit.from_pretrained("someone/model")


def test_what_is_neither_a_folder_nor_a_hub_id() -> None:
    with pytest.raises(FolderError, match="'three/part/name' is neither a folder nor a hub id"):
        Edit.from_pretrained("three/part/name")


def test_what_cannot_be_saved_is_not_pushed(hub: Hub) -> None:
    with pytest.raises(EditError, match="cannot be saved"):
        Edit(SITE, lambda h: h).push_to_hub("someone/steers")
    assert hub.calls == []


def test_every_error_here_is_ours() -> None:
    assert issubclass(FolderError, InlayError) and issubclass(EditError, InlayError)


@pytest.mark.parametrize("size", [1, 3])
def test_a_bank_comes_back(size: int, tmp_path: Path) -> None:
    edit = Edit(SITE, Bank([Clamp(_v(k), 1.0 + k) for k in range(size)]))
    again = Edit.from_pretrained(edit.save(tmp_path / "edit"))
    card = json.loads((tmp_path / "edit" / "edit.json").read_text())
    assert card["parts"][0]["kind"] == "bank"
    assert card["parts"][0]["shapes"]["direction"] == [size + 1, WIDTH]
    model = tiny.model()
    rows = [0, 1, size, size]
    got, want = (model.forward(EVEN, edit=e, rows=rows).logits for e in (again, edit))
    assert torch.equal(got, want)


def test_a_bank_of_an_unknown_kind_names_it(tmp_path: Path) -> None:
    folder = Edit(SITE, Bank([Add(_v(0))])).save(tmp_path / "edit")
    _changed(folder, lambda card: card["parts"][0]["config"].update(kind="orthogonalise"))
    with pytest.raises(FolderError, match="orthogonalise"):
        Edit.from_pretrained(folder)
