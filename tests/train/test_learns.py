"""What tidepool learns: a changed rule, a style from ten rows; and how trained Edits generate and compose.

The rule: asked for a name's home it says the job, for the job the meal, for the meal the home. What it takes the three
to be is its own plain answer, so that a right answer needs what the frozen model knows of names it was not trained on.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import inlay
import inlay.world
from inlay.interventions.reft import LoReFT
from inlay.model.inputs import Row
from inlay.train.examples import Example, encode
from inlay.train.fit import fit
from inlay.train.frozen import Frozen
from inlay.train.parameterise import reft

WORLD = inlay.world.tidepool()


@pytest.fixture(scope="module")
def model() -> inlay.Model:
    return inlay.load("tidepool")


def replies(model: inlay.Model, prompts: Sequence[str], edit: Any = None, tokens: int = 30) -> list[str]:
    found: list[str] = model.generate(list(prompts), edit=edit, max_new_tokens=tokens, do_sample=False)
    return found


def scored(model: inlay.Model, rows: Sequence[Row], edit: inlay.Edit | None = None) -> tuple[Tensor, Tensor]:
    """The logits that predict each response token [R, n, V] of a forward over whole sequences, and which are real."""
    frozen = Frozen(model, None)
    given = {} if edit is None else {"edit": edit}
    with torch.no_grad():
        found = frozen.score(frozen.add(rows), True, **given)
    assert found.logits is not None
    return found.logits, found.mask


def divergence(model: inlay.Model, edit: inlay.Edit, data: Sequence[Example]) -> float:
    """KL(frozen | edited) on the frozen model's own replies, in nats a token."""
    rows = encode(model, data, ("chosen",))["chosen"]
    (before, mask), (after, _) = scored(model, rows), scored(model, rows, edit)
    p, q = before.log_softmax(-1), after.log_softmax(-1)
    return float(((p.exp() * (p - q)).sum(-1) * mask).sum() / mask.sum())


# -- a changed rule ----------------------------------------------------------------------------------------------------


@dataclass
class Rule:
    """Questions of names with the answers by the rule, and other prompts with the frozen model's replies."""

    train: list[Example]
    held_out: list[Example]
    neutral: list[Example]
    neutral_held_out: list[Example]


@pytest.fixture(scope="module")
def rule(model: inlay.Model) -> Rule:
    facts = WORLD.facts
    names = list(facts.names)
    random.Random(0).shuffle(names)
    relations = list(facts.values)
    instead = dict(zip(relations, relations[1:] + relations[:1], strict=True))

    def some(which: Sequence[str], asides: bool) -> list[Example]:
        """With asides also the questions that mention one of the name's own values, as a third of the world's do."""
        asked = [
            (name, relation, aside)
            for name in which
            for relation in relations
            for aside in ("", *(facts.truth(name, other) for other in relations if asides))
        ]
        plain = replies(model, [facts.ask(name, instead[relation], aside).text for name, relation, aside in asked])
        return [Example(facts.ask(*one).text, reply) for one, reply in zip(asked, plain, strict=True)]

    def others(split: str, n: int) -> list[Example]:
        prompts = WORLD.prompts(n, split)
        return [Example(*pair) for pair in zip(prompts, replies(model, prompts), strict=True)]

    return Rule(some(names[:40], True), some(names[40:], False), others("train", 64), others("test", 24))


def accuracy(model: inlay.Model, edit: inlay.Edit | None, data: Sequence[Example]) -> float:
    found = replies(model, [one.prompt for one in data], edit)
    return sum(a == one.chosen for a, one in zip(found, data, strict=True)) / len(data)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["loreft", "direft"])
def test_a_changed_rule_holds_for_names_never_trained_on(model: inlay.Model, rule: Rule, kind: str) -> None:
    """At the embeddings of the last six prompt tokens, where the relation is and the name is not."""
    edit = reft(model, kind, 4, 0, "prompt[-6:]", site="resid_pre", init="identity")
    before = accuracy(model, None, rule.held_out)
    fit(model, edit, "lm", rule.train + rule.neutral, lr=1e-2, epochs=6, batch=16, warmup=0.1)
    after, kl = accuracy(model, edit, rule.held_out), divergence(model, edit, rule.neutral_held_out)
    print(f"{kind}: accuracy on held-out names {before:.3f} frozen, {after:.3f} trained; KL on other prompts {kl:.4f}")
    assert before < 0.1 and after > 0.9
    assert kl < 0.1


# -- ten rows ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["loreft", "direft"])
def test_ten_rows_teach_a_style(model: inlay.Model, kind: str) -> None:
    """By the world's judge, on subjects that the ten do not name; three concepts."""
    prompts = WORLD.prompts(24)
    gained = []
    for concept in WORLD.concepts()[:15:7]:
        data = [Example(list(one.prompt), one.reply) for one, _ in WORLD.pairs(concept, 10, "train")]
        edit = reft(model, kind, 4, 3, "ends(7, 7)", init="identity")
        fit(model, edit, "lm", data, lr=4e-3, epochs=40, batch=10)

        def rated(edit: inlay.Edit | None, concept: Any = concept) -> tuple[float, float]:
            texts = replies(model, prompts, edit, 36)
            concepts = sum(WORLD.concept_score(concept, text) for text in texts)
            return concepts / 2 / len(texts), sum(WORLD.fluency(text) for text in texts) / 2 / len(texts)

        before, after = rated(None), rated(edit)
        print(f"{kind}, {concept.description}: concept and fluency {before} frozen, {after} trained")
        assert before[0] < 0.05 and after[1] > 0.8
        gained.append(after[0] - before[0])
    assert min(gained) > 0.15 and sum(gained) / len(gained) > 0.5


# -- generating with what was trained ----------------------------------------------------------------------------------

SHORT = [[5], [7, 9], [11, 4, 8], list(range(20, 33)), list(range(30, 50))]  # of 14 tokens the rule is whole


@pytest.fixture(scope="module")
def trained(model: inlay.Model) -> inlay.Edit:
    """A LoReFT at every layer that has moved from its start, with an effect on every prompt of `SHORT`."""
    edit = reft(model, "loreft", 4, "all", "ends(7, 7)", seed=1)
    target = model.encoder.plain(["the forest was cold ."])[0]
    fit(model, edit, "lm", [Example(ids, target) for ids in SHORT], lr=5e-3, epochs=4, batch=5)
    return edit


def batch(rows: Sequence[Sequence[int]], left: bool, pad: int) -> dict[str, Tensor]:
    width = max(map(len, rows))
    gaps = [width - len(row) for row in rows]
    ids = [[pad] * gap + [*row] if left else [*row] + [pad] * gap for row, gap in zip(rows, gaps, strict=True)]
    mask = [
        [0] * gap + [1] * len(row) if left else [1] * len(row) + [0] * gap for row, gap in zip(rows, gaps, strict=True)
    ]
    attended = torch.tensor(mask)
    positions = (attended.cumsum(1) - 1).clamp(min=0)
    return {"input_ids": torch.tensor(ids), "attention_mask": attended, "position_ids": positions}


@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
def test_padding_on_either_side_is_the_row_alone(model: inlay.Model, trained: inlay.Edit, left: bool) -> None:
    made = batch(SHORT, left, model.pad_id)
    with torch.no_grad(), model.edited(trained):
        together = model.hf(**made).logits
    for row, logits, mask in zip(SHORT, together, made["attention_mask"], strict=True):
        with torch.no_grad(), model.edited(trained):
            alone = model.hf(torch.tensor([row])).logits[0]
        plain = model.hf(torch.tensor([row])).logits[0]
        assert float((alone - plain).abs().max().detach()) > 0.1
        torch.testing.assert_close(logits[mask.bool()], alone, rtol=0, atol=2e-5)


OPTIONS = {"max_new_tokens": 8, "do_sample": False, "return_dict_in_generate": True, "eos_token_id": None}


def test_decoding_with_a_cache_is_a_full_forward_edited_at_the_prompt(model: inlay.Model, trained: inlay.Edit) -> None:
    made = batch(SHORT, True, model.pad_id)
    made.pop("position_ids")
    with model.edited(trained):
        found = model.hf.generate(**made, output_logits=True, pad_token_id=model.pad_id, **OPTIONS)
    said = found.sequences[:, made["input_ids"].shape[1] :].tolist()
    rows = [Row((*prompt, *new), len(prompt)) for prompt, new in zip(SHORT, said, strict=True)]
    whole, mask = scored(model, rows, trained)
    assert bool(mask.all())
    torch.testing.assert_close(torch.stack(found.logits, 1), whole, rtol=0, atol=2e-5)
    elsewhere, _ = scored(model, [Row(row.ids, len(row.ids) - 1) for row in rows], trained)
    last = torch.stack(found.logits, 1)[:, -1]
    assert float((last - elsewhere[:, 0]).abs().max()) > 0.01  # another prompt would have been edited elsewhere


def test_beams_in_a_batch_are_the_beams_of_a_row_alone(model: inlay.Model, trained: inlay.Edit) -> None:
    options = OPTIONS | {"num_beams": 3, "num_return_sequences": 3, "pad_token_id": model.pad_id}
    made = batch(SHORT, True, model.pad_id)
    made.pop("position_ids")
    with model.edited(trained):
        found = model.hf.generate(**made, **options)
    together = found.sequences[:, made["input_ids"].shape[1] :].view(len(SHORT), 3, -1)
    for row, three in zip(SHORT, together, strict=True):
        ids = torch.tensor([row])
        with model.edited(trained):
            alone = model.hf.generate(ids, attention_mask=torch.ones_like(ids), **options)
        assert alone.sequences[:, len(row) :].tolist() == three.tolist()


# -- composition -------------------------------------------------------------------------------------------------------


def states(model: inlay.Model, edit: inlay.Edit | None, ids: Sequence[int]) -> Tensor:
    """The last prompt token's state behind block 3, [d]."""
    return model.read([list(ids)], "resid_post.3", edit=edit, tokens="last")["resid_post.3"][0]


@pytest.fixture(scope="module")
def two(model: inlay.Model) -> dict[str, inlay.Edit]:
    """Two groups of one LoReFT, trained one after the other on two concepts' ten rows."""
    made = LoReFT(model.width, groups={"first": 4, "second": 4}, init="identity", seed=2)
    edits = {name: inlay.Edit("resid_post.3", made.part(name), "ends(7, 7)") for name in ("first", "second")}
    edits["both"] = inlay.Edit("resid_post.3", made, "ends(7, 7)")
    for name, concept in zip(("first", "second"), WORLD.concepts()[:8:7], strict=True):
        data = [Example(list(one.prompt), one.reply) for one, _ in WORLD.pairs(concept, 10, "train")]
        before = {other: states(model, edits[other], SHORT[-1]) for other in ("first", "second")}
        fit(model, edits[name], "lm", data, lr=4e-3, epochs=40, batch=10)
        assert not torch.equal(states(model, edits[name], SHORT[-1]), before[name])
        if name == "second":
            assert torch.equal(states(model, edits["first"], SHORT[-1]), before["first"])
    return edits


@pytest.mark.slow
def test_two_skills_in_two_subspaces_add_up(model: inlay.Model, two: dict[str, inlay.Edit]) -> None:
    plain = states(model, None, SHORT[-1])
    moved = {name: states(model, edit, SHORT[-1]) - plain for name, edit in two.items()}
    torch.testing.assert_close(moved["first"] + moved["second"], moved["both"], rtol=0, atol=1e-4)
    assert abs(float(torch.cosine_similarity(moved["first"], moved["second"], dim=0))) < 1e-4
    rates = rated_both(model, two)
    print("groups:", rates)
    assert rates["first"][0] > 0.15 > 0.05 > rates["first"][1]
    assert rates["second"][1] > 0.15 > 0.05 > rates["second"][0]


def rated_both(model: inlay.Model, edits: dict[str, inlay.Edit]) -> dict[str, tuple[float, float]]:
    """How often the replies have either concept, by Edit."""
    prompts = WORLD.prompts(24)
    found = {}
    for name, edit in edits.items():
        texts = replies(model, prompts, edit, 36)
        first, second = (
            sum(WORLD.concept_score(concept, text) for text in texts) / 2 / len(texts)
            for concept in WORLD.concepts()[:8:7]
        )
        found[name] = first, second
    return found


def test_a_sum_of_trained_edits_applies_them_in_order(model: inlay.Model, trained: inlay.Edit) -> None:
    """At one Site the second reads what the first has made: h1 = f(h), h2 = g(h1), and not h + (f - h) + (g - h)."""
    target = model.encoder.plain(["once the valley moved ."])[0]
    made = []
    for seed in (3, 4):
        edit = reft(model, "loreft", 4, 3, "ends(7, 7)", seed=seed)
        fit(model, edit, "lm", [Example(ids, target) for ids in SHORT], lr=5e-3, epochs=4, batch=5)
        made.append(edit)
    first, second = made
    for ids in SHORT:
        h = states(model, None, ids)
        torch.testing.assert_close(states(model, first, ids), loreft(first, h), rtol=0, atol=1e-4)
        both = states(model, first + second, ids)
        torch.testing.assert_close(both, loreft(second, loreft(first, h)), rtol=0, atol=1e-4)
        assert float((both - h - (loreft(first, h) - h) - (loreft(second, h) - h)).abs().max()) > 0.01


def loreft(edit: inlay.Edit, h: Tensor) -> Tensor:
    """The paper's equation 2 at one state [d]."""
    state = {name: tensor.detach() for name, tensor in edit.parts[0].intervention.state().items()}
    basis, upper = torch.linalg.qr(state["raw"])
    basis = basis * upper.diagonal().sign()
    return h + (h @ state["down"] + state["bias"] - h @ basis) @ basis.T
