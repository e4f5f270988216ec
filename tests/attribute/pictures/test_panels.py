from __future__ import annotations

import math

import pytest
import torch
from tests.attribute.pictures.scored import scored

from inlay.attribute.pictures.panels import ends, number, panels
from inlay.errors import InputError

TOKENS = [["<bos>", "a", " b"], ["<bos>", "c", " d", " e"]]


def test_facts_are_those_of_the_scores() -> None:
    given = scored(TOKENS)
    for row, (panel,) in enumerate(panels(given)):
        facts = dict(panel.facts)
        assert facts["explains"] == "logit_diff of ' Paris' against ' Rome'"
        assert (facts["method"], facts["baseline"]) == ("gim", "space")
        total = given.scores[row].nansum().item()
        assert float(facts["sum of scores"]) == pytest.approx(total, rel=1e-3)
        clean, base, residual = (float(facts[name]) for name in ("m_clean", "m_baseline", "residual"))
        assert residual == pytest.approx(clean - base - total, rel=1e-3)
        assert panel.quantity in panel.meaning


def test_each_method_has_its_own_scale_over_all_its_rows_unless_told_otherwise() -> None:
    small = scored(TOKENS)
    large = scored(TOKENS, "ig", scores=small.scores * 10)
    top = small.scores.nan_to_num().abs().max().item()
    for row in panels([small, large]):
        assert [panel.limit for panel in row] == pytest.approx([top, 10 * top])
    for row in panels([small, large], shared=True):
        assert [panel.limit for panel in row] == pytest.approx([10 * top, 10 * top])
    assert {panel.limit for row in panels([small, large], limit=0.5) for panel in row} == {0.5}
    (first,) = panels(small, 0)
    assert first[0].limit == pytest.approx(small.scores[0].nan_to_num().abs().max().item())


def test_rows_can_be_chosen_and_padding_is_no_token() -> None:
    given = scored(TOKENS)
    assert [panel.name for (panel,) in panels(given, [1, 0])] == ["row 1", "row 0"]
    ((panel,),) = panels(given, 0)
    assert len(panel.scores) == 3 and math.isnan(panel.scores[0])
    steps = scored(TOKENS, steps=[(0, 0), (0, 1)])
    assert [panel.name for (panel,) in panels(steps)] == ["prompt 0, step 0", "prompt 0, step 1"]


def test_words_are_told_from_pieces_with_their_spaces() -> None:
    assert panels(scored([["the", "harbor"]]))[0][0].words
    assert not panels(scored([["the", " harbor"]]))[0][0].words


def test_refusals() -> None:
    given = scored(TOKENS)
    with pytest.raises(InputError, match="there are no scores to draw"):
        panels([])
    with pytest.raises(InputError, match="'ig' are of other tokens than those by 'gim'"):
        panels([given, scored(TOKENS[:1], "ig")])
    for row in (2, -1, [], [0, 2]):
        with pytest.raises(InputError, match="there are 2, from 0"):
            panels(given, row)
    for limit in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(InputError, match="above 0"):
            panels(given, limit=limit)


def test_ends_skip_what_is_not_finite() -> None:
    assert ends([-2.0, 1.0, math.nan, math.inf]) == 2.0
    assert ends([math.nan]) == 0.0
    assert panels(scored(TOKENS, scores=torch.full((2, 4), math.nan)))[0][0].limit == 0.0


def test_numbers_have_a_sign() -> None:
    assert [number(x) for x in (0.0, -0.0, 1.23456, -1e-5, math.nan)] == ["0", "0", "+1.235", "-1e-05", "nan"]


def test_sizes_have_no_sign_and_no_residual() -> None:
    given = scored([["a", "b", "c"]], "saliency", signed=False)
    ((panel,),) = panels(given)
    assert [name for name, _ in panel.facts] == ["explains", "method", "m_clean"]
    assert "no sign" in panel.meaning and "negative" not in panel.meaning
    assert given.residual.isnan().all() and "a size" in given.caption and "positive" not in given.caption
