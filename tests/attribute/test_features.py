"""Features: tokens, words, spans; which are scored."""

from __future__ import annotations

import pytest
from tests.interventions import tiny
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

import inlay
from inlay import span
from inlay.attribute.features import features
from inlay.errors import ModelError, TokensError


def pieces() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer in which words are several tokens."""
    made = Tokenizer(BPE({"<s>": 0, "Ġ": 1, "a": 2, "b": 3, "c": 4, "ab": 5, "Ġa": 6}, [("a", "b"), ("Ġ", "a")]))
    made.pre_tokenizer = ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>")


def test_tokens_within_a_spec() -> None:
    model = inlay.load(tiny.llama(), tokenizer=tiny.words())
    rows = model.encoder.rows([[1, 2, 3], [4, 5]])
    assert features(model, rows) == [[(0,), (1,), (2,)], [(0,), (1,)]]
    assert features(model, rows, "last2") == [[(1,), (2,)], [(0,), (1,)]]
    with pytest.raises(TokensError, match="no token of row 0"):
        features(model, rows, "response")


def test_words_of_pieces() -> None:
    model = inlay.load(tiny.llama(), tokenizer=pieces())
    rows = model.encoder.rows([[0, 5, 4, 6, 3, 3, 0, 2], [6, 2]])
    assert features(model, rows, by="word") == [[(0,), (1, 2), (3, 4, 5), (6,), (7,)], [(0, 1)]]
    assert features(model, rows, "last4", by="word")[0] == [(4, 5), (6,), (7,)]


def test_words_of_a_tokenizer_without_pieces() -> None:
    model = inlay.load(tiny.llama(), tokenizer=tiny.words())
    assert features(model, model.encoder.rows([[3, 4, 5]]), by="word") == [[(0,), (1,), (2,)]]
    with pytest.raises(ModelError, match="by='token'"):
        bare = inlay.load(tiny.llama())
        features(bare, bare.encoder.rows([[3]]), by="word")


def test_spans() -> None:
    model = inlay.load(tiny.llama(), tokenizer=tiny.words())
    rows = model.encoder.rows([[3, 4, 5, 6]])
    assert features(model, rows, by=["last", span("w4 w5")]) == [[(1, 2), (3,)]]
    with pytest.raises(TokensError, match="two features share a token in row 0"):
        features(model, rows, by=["first2", span("w4")])
    with pytest.raises(TokensError, match="'token', 'word', or a list"):
        features(model, rows, by="sentence")
