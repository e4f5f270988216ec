"""The table of methods on tiny models: each cell against ids replaced by hand, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.attribute import asking
from tests.interventions import tiny
from torch import Tensor

import inlay
from inlay.attribute.asked import Asked
from inlay.attribute.gradients import saliency, times_change
from inlay.attribute.metrics import COLUMNS, faithfulness
from inlay.attribute.token_scores import TokenScores
from inlay.errors import InputError

REST = {"target": asking.TARGETS, "foil": asking.FOIL, "baseline": asking.BASE}


def scored(asked: Asked, method: Callable[[Asked], Tensor] = times_change) -> TokenScores:
    """The scores of a method, with what metrics ask again."""
    asks = asked.question
    return TokenScores(
        scores=method(asked).masked_fill(~asked.scored, torch.nan),
        tokens=[[str(one) for one in row.ids] for row in asks.rows],
        ids=[list(row.ids) for row in asks.rows],
        target=asks.target,
        foil=asks.foil,
        quantity=asks.quantity,
        method=method.__name__,
        baseline=asked.baseline.name,
        m_clean=asked.all_values(base=False),
        m_baseline=asked.all_values(base=True),
        asked=(asked,),
        explain=method,
    )


@pytest.fixture(scope="module", params=list(tiny.FAMILIES))
def model(request: pytest.FixtureRequest) -> inlay.Model:
    return inlay.load(tiny.FAMILIES[request.param]())


def by_hand(model: inlay.Model, row: int) -> Callable[[Sequence[int]], float]:
    """The number of a row without some slots, from ids."""

    @cache
    def without(gone: frozenset[int]) -> float:
        ids = [asking.BASE if slot in gone else one for slot, one in enumerate(tiny.RAGGED[row])]
        logits = tiny.plain(model.hf, [ids])[0, -1]
        return float(logits[asking.TARGETS[row]] - logits[asking.FOIL])

    return lambda gone: without(frozenset(gone))


def aopc(number: Callable[[Sequence[int]], float], order: Sequence[int]) -> float:
    return sum(number(()) - number(order[:k]) for k in range(1, len(order) + 1)) / len(order)


def test_cells_are_the_formulas_with_ids_replaced(model: inlay.Model) -> None:
    scores = scored(asking.asked(model))
    found = faithfulness(model, scores, ["comprehensiveness", "sufficiency", "aopc", "naopc", "deletion", "insertion"])
    assert found.methods == ["times_change", "random", "oracle"]
    for row, ids in enumerate(tiny.RAGGED):
        number, m = by_hand(model, row), len(ids)
        down = sorted(range(m), key=lambda slot: -float(scores.scores[row, slot]))
        expected = {
            "aopc_comprehensiveness": aopc(number, down),
            "aopc_sufficiency": aopc(number, down[::-1]),
            "deletion": (sum(number(down[:k]) for k in range(m + 1)) - (number(()) + number(down)) / 2) / m,
            "insertion": (sum(number(down[k:]) for k in range(m + 1)) - (number(()) + number(down)) / 2) / m,
        }
        if number(()) > 0:
            lost = [(number(()) - number(down[:k])) / number(()) for k in range(1, m + 1)]
            expected["comprehensiveness"] = sum(lost) / m
            left = [(number(()) - number(down[::-1][: int(r * m)])) / number(()) for r in (0.5, 0.8, 0.9, 0.95, 0.99)]
            expected["sufficiency"] = sum(left) / 5
        else:
            assert found.of("times_change", "comprehensiveness")[row].isnan()
        for metric, value in expected.items():
            assert float(found.of("times_change", metric)[row]) == pytest.approx(value, rel=1e-3, abs=1e-3), metric


def test_limits_and_oracle(model: inlay.Model) -> None:
    """No order of a row does better than the oracle, and of some order it is as good."""
    scores = scored(asking.asked(model))
    found = faithfulness(model, scores)
    row = 0
    number = by_hand(model, row)
    every = [aopc(number, order) for order in permutations(range(len(tiny.RAGGED[row])))]
    low, high = min(every), max(every)
    assert float(found.of("oracle", "aopc_comprehensiveness")[row]) == pytest.approx(high, abs=1e-3)
    assert float(found.of("oracle", "aopc_sufficiency")[row]) == pytest.approx(low, abs=1e-3)
    mine = (float(found.of("times_change", "aopc_comprehensiveness")[row]) - low) / (high - low)
    assert float(found.of("times_change", "naopc_comprehensiveness")[row]) == pytest.approx(mine, abs=1e-3)
    torch.testing.assert_close(found.of("oracle", "naopc_comprehensiveness"), torch.ones(4).double())
    torch.testing.assert_close(found.of("oracle", "naopc_sufficiency"), torch.zeros(4).double(), atol=1e-9, rtol=0)
    chance = found.of("random", "naopc_comprehensiveness")
    assert ((chance > 0.05) & (chance < 0.95)).all()


def test_random_is_the_mean_over_its_rankings(model: inlay.Model) -> None:
    """Of two features there are two orders: the mean lies on the grid of 20 of them."""
    scores = scored(asking.asked(model))
    found = faithfulness(model, scores, ["aopc"], seed=3)
    number = by_hand(model, 3)
    a, b = aopc(number, [0, 1]), aopc(number, [1, 0])
    share = (float(found.of("random", "aopc_comprehensiveness")[3]) - b) / (a - b)
    assert share * 20 == pytest.approx(round(share * 20), abs=0.05)
    assert 0 < share < 1
    assert torch.equal(found.values, faithfulness(model, scores, ["aopc"], seed=3).values)
    assert not torch.equal(found.values[1], faithfulness(model, scores, ["aopc"], seed=4).values[1])


def test_methods_stand_side_by_side_and_alone_alike(model: inlay.Model) -> None:
    asked = asking.asked(model, tiny.RAGGED[:2], target=asking.TARGETS[:2], foil=asking.FOIL)
    mine, other = scored(asked), scored(asked, saliency)
    metrics = ["aopc", "naopc", "soft", "infidelity", "sensitivity_max"]
    both = faithfulness(model, {"a": mine, "b": other}, metrics, draws=1)
    assert both.methods == ["a", "b", "random", "oracle"]
    for name, one in (("a", mine), ("b", other)):
        alone = faithfulness(model, one, metrics, draws=1)
        i = both.methods.index(name)
        torch.testing.assert_close(both.values[i], alone.values[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(both.values[2:], alone.values[1:], atol=1e-5, rtol=1e-4, equal_nan=True)
    for metric in ("infidelity", "sensitivity_max"):  # rankings have no magnitudes
        assert both.of("a", metric).isfinite().all()
        assert both.of("random", metric).isnan().all()
        assert both.of("oracle", metric).isnan().all()


def test_kept_tokens_stay_in_every_run(model: inlay.Model) -> None:
    rows = [one for one in tiny.RAGGED if len(one) > 2]
    asked = asking.asked(model, rows, target=asking.TARGETS[:3], foil=asking.FOIL)
    scores = scored(asked)
    found = faithfulness(model, scores, ["aopc"], keep=(1, 1))
    assert found.sizes == [3, 1, 5]
    down = sorted(range(1, 6), key=lambda slot: -float(scores.scores[2, slot]))
    expected = aopc(by_hand(model, 2), down)
    assert float(found.of("times_change", "aopc_comprehensiveness")[2]) == pytest.approx(expected, abs=1e-3)
    with pytest.raises(InputError, match="no feature of row 1"):
        faithfulness(model, scores, keep=(2, 1))
    with pytest.raises(InputError, match="keep="):
        faithfulness(model, scores, keep=(-1, 0))


def test_words_are_erased_as_one() -> None:
    model = tiny.model()
    asked = asking.asked(model, by=[slice(0, 1), slice(1, None)])
    scores = scored(asked)
    found = faithfulness(model, scores, ["aopc"])
    assert found.sizes == [2] * 4
    number = by_hand(model, 0)
    words = [[0], [1, 2, 3, 4]]
    words.sort(key=lambda slots: -float(scores.scores[0, slots].sum()))
    expected = (2 * number(()) - number(words[0]) - number(range(5))) / 2
    assert float(found.of("times_change", "aopc_comprehensiveness")[0]) == pytest.approx(expected, abs=1e-3)


def test_several_baselines_are_one_game_of_their_mean() -> None:
    model = tiny.model()
    pair = [asking.asked(model, baseline=one) for one in (20, 31)]
    scores = scored(pair[0])
    apart = [faithfulness(model, replace(scores, asked=(one,)), ["aopc"]) for one in pair]
    found = faithfulness(model, replace(scores, asked=tuple(pair)), ["aopc"])
    mean = (apart[0].values[0] + apart[1].values[0]) / 2
    torch.testing.assert_close(found.values[0], mean, atol=1e-5, rtol=1e-5)


def test_evidence_is_the_oracle() -> None:
    model = tiny.model()
    scores = scored(asking.asked(model))
    evidence = [[0], [1, 2], [], [1]]
    found = faithfulness(model, scores, ["recall", "auprc"], evidence=evidence)
    for row, where in enumerate(evidence):
        top = sorted(range(len(tiny.RAGGED[row])), key=lambda slot: -float(scores.scores[row, slot]))[: len(where)]
        value = float(found.of("times_change", "recall")[row])
        assert value == pytest.approx(len(set(top) & set(where)) / len(where)) if where else value != value
    defined = [0, 1, 3]
    for metric in ("recall", "auprc"):
        assert found.of("oracle", metric)[defined].tolist() == [1, 1, 1]
    assert found.undefined == {"recall": 1, "auprc": 1}
    assert "oracle: the evidence" in str(found)
    with pytest.raises(InputError, match="give evidence="):
        faithfulness(model, scores, ["recall"])
    with pytest.raises(InputError, match="evidence of 1 rows for 4"):
        faithfulness(model, scores, ["recall"], evidence=[[0]])
    with pytest.raises(InputError, match="evidence at 5 of row 0"):
        faithfulness(model, scores, ["recall"], evidence=[[5], [], [], []])


def test_long_rows_have_a_beam_and_a_limit() -> None:
    model = tiny.model()
    long = [[*range(5, 20)]]
    scores = scored(asking.asked(model, long, target=[5], foil=40))
    found = faithfulness(model, scores, ["naopc"], width=2)
    assert "by a beam of 2" in str(found)
    assert float(found.of("oracle", "naopc_comprehensiveness")[0]) == pytest.approx(1)
    with pytest.raises(InputError, match=r"15 features.*most_runs=100\)"):
        faithfulness(model, scores, ["naopc"], most_runs=100)


def test_tables() -> None:
    model = tiny.model()
    found = faithfulness(model, scored(asking.asked(model)), ["comprehensiveness", "soft", "sensitivity_max"], draws=1)
    frame, rows = found.frame(), found.rows()
    assert frame.columns == ["method", "comprehensiveness", "soft_nc", "soft_ns", "sensitivity_max"]
    assert frame["method"].to_list() == ["times_change", "random", "oracle"]
    assert frame["sensitivity_max"].to_list()[1:] == [None, None]
    mean = found.of("times_change", "comprehensiveness").nanmean()
    assert frame["comprehensiveness"][0] == pytest.approx(float(mean))
    assert len(rows) == 3 * 4 * 4
    one = rows.filter(method="random", row=2, metric="soft_nc")
    assert one["value"][0] == pytest.approx(float(found.of("random", "soft_nc")[2]))
    assert one["features"][0] == 7
    shown = str(found).splitlines()
    assert (
        shown[0] == "logit_diff, 4 rows, erased to '20'; random: mean of 20 rankings; oracle: the exact limits of NAOPC"
    )
    assert [line.split()[0] for line in shown[1:5]] == ["method", "times_change", "random", "oracle"]
    assert "soft_nc: out of distribution" in str(found)
    lacking = int(found.of("times_change", "comprehensiveness").isnan().sum())
    assert 0 < lacking < 4
    assert f"comprehensiveness on {lacking} of 4 rows" in str(found)
    with pytest.raises(InputError, match="nonsense"):
        found.of("nonsense", "soft_nc")


def test_scores_from_disk_are_asked_again(tmp_path: Path) -> None:
    model = tiny.model()
    scores = scored(asking.asked(model))
    scores.save(tmp_path)
    loaded = TokenScores.load(tmp_path)
    assert loaded.asked == ()
    assert loaded.explain is None
    with pytest.raises(InputError, match=r"from disk.*prompts="):
        faithfulness(model, loaded)
    found = faithfulness(model, loaded, prompts=tiny.RAGGED, **REST)
    torch.testing.assert_close(found.values, faithfulness(model, scores).values)
    with pytest.raises(InputError, match="make them anew"):
        faithfulness(model, loaded, ["sensitivity_max"], prompts=tiny.RAGGED, **REST)


@pytest.mark.parametrize(
    ("again", "said"),
    [
        ({"prompts": tiny.EVEN, **REST}, "other tokens"),
        ({"prompts": tiny.RAGGED, **REST, "foil": 41}, "other foil"),
        ({"prompts": tiny.RAGGED, **REST, "target": 7}, "other target"),
        ({"prompts": tiny.RAGGED, "target": 7, "baseline": 20}, "other quantity"),
        ({"prompts": tiny.RAGGED, "targets": 7}, "no argument targets"),
        ({"target": 7}, "without prompts="),
    ],
)
def test_what_is_asked_again_must_be_what_they_answer(again: dict[str, Any], said: str) -> None:
    model = tiny.model()
    with pytest.raises(InputError, match=said):
        faithfulness(model, scored(asking.asked(model)), **again)


def test_refused() -> None:
    model, asked = tiny.model(), asking.asked(tiny.model())
    scores = scored(asked)
    own = asked.model
    with pytest.raises(InputError, match="another model"):
        faithfulness(model, scores)
    with pytest.raises(InputError, match="metric 'nonsense'"):
        faithfulness(own, scores, ["nonsense"])
    for none in ([], "aopc"):
        with pytest.raises(InputError, match="a list of names"):
            faithfulness(own, scores, none)
    with pytest.raises(InputError, match="two are by the same method"):
        faithfulness(own, [scores, scores])
    with pytest.raises(InputError, match="there are none"):
        faithfulness(own, [])
    with pytest.raises(InputError, match="row of reference"):
        faithfulness(own, {"random": scores})
    with pytest.raises(InputError, match="other foil"):
        faithfulness(own, {"a": scores, "b": scored(asking.asked(own, target=asking.TARGETS, foil=41))})
    some = scored(asking.asked(own, within="last"))
    with pytest.raises(InputError, match="no finite score"):
        faithfulness(own, {"a": scores, "b": some})


def test_every_metric_has_a_line() -> None:
    model = tiny.model()
    scores = scored(asking.asked(model, [[5, 9, 17]], target=[5], foil=40))
    found = faithfulness(model, scores, [*COLUMNS], evidence=[[1]])
    assert [one.name for one in found.columns] == list(COLUMNS)
    assert found.values.shape == (3, len(COLUMNS), 1)
    assert found.undefined["infidelity"] == 0  # of rankings it is never defined, and that is not counted
