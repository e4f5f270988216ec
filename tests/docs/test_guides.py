"""Every Python block of a guide runs, and what the guides state in words and comments holds."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.docs.python_blocks import blocks, run
from tests.model.families import FAMILIES, build

import inlay
from inlay import Intervention, Site, Tokens
from inlay.model.sites import GLOBAL, LAYERED

GUIDES = sorted((Path(__file__).resolve().parents[2] / "docs" / "guides").glob("*.md"))
FORWARDS = 8  # what generation.md asks for in its last block


def sites(names: dict[str, Any]) -> None:
    assert list(names["acts"]) == ["resid_post.12", "z.5.h3", "module:model.layers.3.mlp.gate_proj:out"]


def tokens(names: dict[str, Any]) -> None:
    assert names["out"].touched == [len("Yes.") + len("In France.")]  # one token a byte


def edits(names: dict[str, Any]) -> None:
    model, direction, both = names["model"], names["direction"], names["both"]
    plain = model.forward("The sea", read="resid_post.3").acts["resid_post.3"]
    edited = model.forward("The sea", edit=both, read="resid_post.3").acts["resid_post.3"]
    torch.testing.assert_close(edited, 2 * plain + direction)
    texts = names["texts"]
    assert texts[0] == model.generate("Hello.", max_new_tokens=8)
    assert names["again"].parts[0].tokens == names["edit"].parts[0].tokens


def reading(names: dict[str, Any]) -> None:
    width = names["model"].width
    several = names["several"]
    assert several["resid_post.12"].shape == (3, 4, width)
    assert [len(row) for row in several.rows("resid_post.12")] == several.mask.sum(1).tolist()
    torch.testing.assert_close(names["after"]["resid_post.4"], 1.5 * names["found"]["resid_post.4"])
    assert names["acts"].stack().shape == (14, 3, width)


def generation(names: dict[str, Any]) -> None:
    assert names["run"].touched == [FORWARDS - 1]
    assert len(names["texts"]) == 2


def training_and_compile(names: dict[str, Any]) -> None:
    (vector,) = names["edit"].parameters()
    assert vector.abs().max() > 0
    assert len(names["texts"]) == 2


def custom_models(names: dict[str, Any]) -> None:
    assert names["out"].touched == [5, 5, 5, 2]


def world(names: dict[str, Any]) -> None:
    assert names["line"].truth["harm"] and names["line"].truth["refuse"]
    assert names["scores"]["concept"].mean > 1 and len(names["prompts"]) == 10


def directions(names: dict[str, Any]) -> None:
    first, second = names["harbor"].score([names["positives"][0], names["negatives"][0]])
    assert first > second and names["table"].shape == (18, 24) and len(names["again"]) == 18


def judges(names: dict[str, Any]) -> None:
    assert names["scores"]["fluency"].mean == 2.0


def bench(names: dict[str, Any]) -> None:
    found = names["result"]
    assert {"diff_mean", "probe", "random", "bow"} <= set(found.detection_summary["method"])
    assert {"unsteered", "prompt", "random"} <= set(found.steering_summary["method"])
    assert Path("run/report.html").stat().st_size > 100_000


def causal(names: dict[str, Any]) -> None:
    rank = names["seen"].rank.mean("prompt").values
    assert rank[0].round() == 61 and (rank[4:] == 1).all() and rank[3] > 1
    plain, tuned = (names[name].kl.mean(["prompt", "token"]).values for name in ("plain", "tuned"))
    assert (tuned[:-1] < plain[:-1]).all()
    parts, clean = names["parts"], names["direct"]["clean"].values
    torch.testing.assert_close(parts.sum(["layer", "component"]).values, clean, rtol=1e-4, atol=1e-4)
    stream = names["grid"].sel(component="resid_pre").mean("pair")
    assert stream.sel(layer=0, token=10) > 0.95 and (stream.sel(layer=[1, 2, 3, 4, 5], token=14) > 0.5).all()
    assert names["change"].argmin(...) == {"layer": 4, "head": 0} and names["change"].min().round(1) == -2.8
    (one,) = names["found"].accuracy.groups
    assert one.iia > 0.9 and one.full_swap < 0.4 and one.random < 0.05
    assert names["meal"] == names["world"].facts.truth("elsa", "meal")


def interventions(names: dict[str, Any]) -> None:
    model, base = names["model"], names["base"]
    before, after = names["before"], names["after"]
    assert before != after and names["patched"] == [after, before] and names["last"] == after
    assert names["losses"][-1] < 0.5 * names["losses"][0]
    assert names["shared"] is names["first"].raw
    assert names["hard"].basis().shape == (model.width, 8)
    plain = model.forward(base).logits
    assert torch.equal(names["untouched"], plain)
    assert torch.equal(names["rows"][2], plain[0]) and not torch.equal(names["rows"][0], names["rows"][1])
    assert not torch.equal(names["skipped"], plain) and len(names["texts"]) == 4
    assert names["components"].source is not None


def pyvene(names: dict[str, Any]) -> None:
    facts = inlay.world.tidepool().facts
    assert names["text"] == facts.truth("gus", "home") != facts.truth("elsa", "home")
    plain = names["model"].forward([names["base"]] * 3).logits
    assert [torch.equal(mine, other) for mine, other in zip(names["rows"], plain, strict=True)] == [False, False, True]
    assert names["losses"][-1] < 0.5 * names["losses"][0]


def training(names: dict[str, Any]) -> None:
    world, name = names["world"], "tools of the kitchen"
    assert names["found"].facts["concepts"][""]["steps"] == 48
    plain = names["model"].generate(names["prompt"], do_sample=False)
    steered = names["model"].generate(names["prompt"], edit=names["edit"], strength=6.0, do_sample=False)
    assert world.concept_score(name, plain) == 0 < world.concept_score(name, steered)
    assert len(names["texts"]) == 3 and len(names["one"].parts) == 1
    assert names["own"].log.losses()


def attribution(names: dict[str, Any]) -> None:
    texts, values = zip(*names["scores"].row(0), strict=True)
    assert texts[max(range(len(values)), key=values.__getitem__)] == "otto", "the one who gets the key"
    assert names["heads"]["z.0"].shape[-1] == 4 and names["neurons"].level == "unit"
    fired = names["fired"]
    assert fired.quantity == "projection" and float(fired.m_clean[0]) > float(fired.m_baseline[0])
    assert torch.equal(names["output"].logits, names["model"].forward(names["prompt"], chat=False).logits)


def trainers(names: dict[str, Any]) -> None:
    losses = [row["loss"] for row in names["trainer"].state.log_history if "loss" in row]
    assert len(losses) == 8 and losses[-1] < losses[0]
    (loaded,), (saved,) = names["loaded"].interventions, names["saved"].interventions
    assert torch.equal(names["again"].edit.interventions[0].vector, saved.vector)
    assert not torch.equal(loaded.vector, saved.vector), "the preferences moved it"
    assert all(parameter.grad is None for parameter in names["model"].hf.parameters())
    head = names["judge_again"].state_dict()["head.score.weight"]
    assert torch.equal(head, names["labelled"].state_dict()["head.score.weight"])


CHECKS: dict[str, Callable[[dict[str, Any]], None]] = {
    "sites": sites,
    "tokens": tokens,
    "edits": edits,
    "interventions": interventions,
    "reading": reading,
    "generation": generation,
    "training-and-compile": training_and_compile,
    "trainers": trainers,
    "training": training,
    "attribution": attribution,
    "custom-models": custom_models,
    "quickstart": lambda names: None,
    "world": world,
    "directions": directions,
    "judges": judges,
    "bench": bench,
    "causal": causal,
    "pyvene": pyvene,
}


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_a_guide_runs(page: Path, hub: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    CHECKS[page.stem](run(page, blocks(page)))


def test_every_guide_is_there() -> None:
    assert {page.stem for page in GUIDES} == set(CHECKS)


def table_rows(page: str, header: str) -> list[list[str]]:
    """The cells of a table's rows, by the start of its header."""
    lines = (GUIDES[0].parent / page).read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {header}"))
    rows = list(itertools.takewhile(lambda line: line.startswith("|"), lines[start + 2 :]))
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_the_table_of_sites_is_whole_and_in_order() -> None:
    named = [name for row in table_rows("sites.md", "Site |") for name in re.findall(r"`(\w+)`", row[0])]
    assert sorted(named) == sorted(LAYERED + GLOBAL)


def test_what_a_family_lacks() -> None:
    """The page, the table of families written by hand, and what loading finds agree."""
    said = {
        (family, frozenset(re.findall(r"`(\w+)`", lacks)))
        for families, lacks, _ in table_rows("sites.md", "family")
        for family in re.findall(r"`(\w+)`", families)
    }
    by_hand, found = set(), set()
    for name, family in FAMILIES.items():
        hf = build(name)
        every = frozenset(LAYERED + GLOBAL)
        by_hand.add((hf.config.model_type, every - frozenset(family.places)))
        found.add((hf.config.model_type, every - frozenset(inlay.load(hf).sites().places)))
    assert said == by_hand == found


def test_the_readme_counts_sites_and_families() -> None:
    readme = (GUIDES[0].parents[2] / "README.md").read_text()
    assert f"{len(LAYERED + GLOBAL)} named tensors" in readme
    assert f"{len({build(name).config.model_type for name in FAMILIES})} families" in readme


def test_the_tables_of_interventions_are_whole() -> None:
    tables = [("interventions.md", each) for each in ("intervention", "interchange", "trained")]
    plain, sourced, trained, some = (
        {name for row in table_rows(*table) for name in re.findall(r"`(\w+)\(", row[0])}
        for table in (*tables, ("edits.md", "intervention"))
    )
    ours = {kind.__name__ for kind in Intervention.kinds.values() if kind.__module__.startswith("inlay.")}
    assert plain | sourced | trained == ours - {"Bank"}
    assert some <= ours


def test_every_spelling_of_tokens_parses() -> None:
    for row in table_rows("tokens.md", "written"):
        for code in re.findall(r"`([^`]+)`", row[0]):
            Tokens.parse(eval(code, {"span": inlay.span}))


def test_every_spelling_of_sites_parses() -> None:
    for row in table_rows("sites.md", "written"):
        for code in re.findall(r"`([^`]+)`", row[0]):
            assert str(Site.parse(eval(code))) == eval(code)


def test_the_table_of_methods_is_whole() -> None:
    named = [name for row in table_rows("directions.md", "method") for name in re.findall(r"`(\w+)`", row[0])]
    assert named == list(inlay.directions.METHODS)
