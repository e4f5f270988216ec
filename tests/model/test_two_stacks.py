"""Encoders (BERT) and encoder-decoder models (T5, BART): reads, additions and swaps, against bare hooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.interventions import tiny
from torch import Tensor
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)

import inlay
from inlay import Add, Bank, Edit, Mean, Source, Swap, Zero
from inlay.errors import InputError, ModelError, SiteError, TokensError

RAGGED = [[5, 9, 17, 33, 2], [40, 3, 21], [8, 8, 60, 7, 11, 30]]
OTHER = [[31, 22, 13, 44, 7], [55, 6, 8], [19, 20, 41, 42, 3, 4]]
V = torch.randn(32, generator=torch.Generator().manual_seed(0))


def bert() -> Any:
    torch.manual_seed(0)
    shape = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    return BertForMaskedLM(BertConfig(**shape, intermediate_size=48, initializer_range=0.3, pad_token_id=0)).eval()


def t5() -> Any:
    torch.manual_seed(0)
    shape = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3, "num_decoder_layers": 2}
    config = T5Config(**shape, num_heads=4, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)
    return T5ForConditionalGeneration(config).eval()


def bart() -> Any:
    torch.manual_seed(0)
    shape = {"vocab_size": 64, "d_model": 32, "encoder_layers": 3, "decoder_layers": 2, "encoder_ffn_dim": 48}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "decoder_ffn_dim": 48, "init_std": 0.3}
    ends = {"decoder_start_token_id": 2, "pad_token_id": 0, "eos_token_id": 1, "forced_eos_token_id": None}
    return BartForConditionalGeneration(BartConfig(**shape, **heads, **ends)).eval()


# the encoder's and the decoder's block of layer 1, as raw Sites
STACKS: dict[str, tuple[Callable[[], Any], str, str]] = {
    "t5": (t5, "encoder.block.1", "decoder.block.1"),
    "bart": (bart, "model.encoder.layers.1", "model.decoder.layers.1"),
}


def _fed(rows: list[list[int]]) -> dict[str, Tensor]:
    named = tiny.padded(rows)
    return {"input_ids": named["input_ids"], "attention_mask": named["attention_mask"]}


def _hooked(hf: Any, path: str, change: Callable[[Tensor], Tensor], **fed: Any) -> Tensor:
    with tiny.hook(hf.get_submodule(path), change), torch.no_grad():
        return hf(**fed).logits


def _states(hf: Any, path: str, **fed: Any) -> Tensor:
    kept: list[Tensor] = []
    _hooked(hf, path, lambda h: kept.append(h.clone()) or h, **fed)
    return kept[0]


# -- encoders --------------------------------------------------------------------------------------------------------


def test_an_encoder_is_read_and_edited_like_any_model() -> None:
    hf = bert()
    model = inlay.load(hf)
    path = "bert.encoder.layer.1"
    want = _states(hf, path, **_fed(RAGGED))
    acts = model.read(RAGGED, "resid_post.1")
    tiny.same_where_real(acts["resid_post.1"], want, RAGGED, atol=1e-5, rtol=1e-5)

    def adds(h: Tensor) -> Tensor:
        new = h.clone()
        for row, ids in enumerate(RAGGED):
            new[row, len(ids) - 1] += V
        return new

    found = model.forward(RAGGED, edit=Edit("resid_post.1", Add(V), tokens="last")).logits
    tiny.same_where_real(found, _hooked(hf, path, adds, **_fed(RAGGED)), RAGGED, atol=1e-5, rtol=1e-5)


def test_a_swap_of_a_whole_state_gives_the_sources_output() -> None:
    model = inlay.load(bert())
    swapped = model.forward(RAGGED, edit=Edit("resid_post.2", Swap(OTHER))).logits
    tiny.same_where_real(swapped, model.forward(OTHER).logits, RAGGED, atol=1e-5, rtol=1e-5)
    one = model.forward(RAGGED, edit=Edit("resid_post.0", Swap(OTHER), tokens=1), worlds=True).logits
    assert torch.allclose(
        one, model.forward(RAGGED, edit=Edit("resid_post.0", Swap(OTHER), tokens=1)).logits, atol=1e-5
    )


def test_sites_that_an_encoder_lacks_are_named_and_it_does_not_generate() -> None:
    model = inlay.load(bert())
    with pytest.raises(SiteError, match=r"bert has no Site 'attn_out'.*It has: embed, resid_pre, resid_post"):
        model.forward(RAGGED, edit=Edit("attn_out.1", Zero()))
    with pytest.raises(ModelError, match="does not generate"):
        model.generate(RAGGED)


# -- encoder-decoder models --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STACKS)
def test_both_stacks_are_read(name: str) -> None:
    make, encoder, decoder = STACKS[name]
    hf = make()
    model = inlay.load(hf)
    fed = {**_fed(RAGGED), "decoder_input_ids": torch.tensor([[2, 7, 9], [2, 5, 5], [2, 3, 4]])}
    more = {"decoder_input_ids": fed["decoder_input_ids"]}
    acts = model.forward(RAGGED, read=f"module:{encoder}:out", **more).acts
    assert acts is not None
    tiny.same_where_real(acts[f"module:{encoder}:out"], _states(hf, encoder, **fed), RAGGED, atol=1e-5, rtol=1e-5)
    for site in (f"module:{decoder}:out", "resid_post.1"):
        acts = model.forward(RAGGED, read=site, **more).acts
        assert acts is not None
        assert torch.allclose(acts[site], _states(hf, decoder, **fed), atol=1e-6)
    last = model.read(RAGGED, [f"module:{encoder}:out", "resid_post.1"], tokens="last")
    want = _states(hf, encoder, **fed)
    for row, ids in enumerate(RAGGED):
        assert torch.allclose(last[f"module:{encoder}:out"][row], want[row, len(ids) - 1], atol=1e-5)


@pytest.mark.parametrize("name", STACKS)
def test_tokens_are_those_of_the_stack(name: str) -> None:
    """The encoder's last token and the decoder's, in one Edit; token 4 exists in one only."""
    make, encoder, decoder = STACKS[name]
    hf = make()
    model = inlay.load(hf)
    rows = [[5, 9, 17, 33, 2], [40, 3, 21, 7, 9]]
    fed = {**_fed(rows), "decoder_input_ids": torch.tensor([[2, 7, 9], [2, 5, 5]])}
    more = {"decoder_input_ids": fed["decoder_input_ids"]}

    def at(index: int) -> Callable[[Tensor], Tensor]:
        def change(h: Tensor) -> Tensor:
            new = h.clone()
            new[:, index] += V
            return new

        return change

    with tiny.hook(hf.get_submodule(encoder), at(4)):
        want = _hooked(hf, decoder, at(2), **fed)
    edit = Edit(f"module:{encoder}:out", Add(V), tokens="last") + Edit("resid_post.1", Add(V), tokens="last")
    out = model.forward(rows, edit=edit, **more)
    assert torch.allclose(out.logits, want, atol=1e-5)
    assert out.touched == [2, 2]
    with tiny.hook(hf.get_submodule(encoder), at(4)), torch.no_grad():
        want = hf(**fed).logits
    assert torch.allclose(
        model.forward(rows, edit=Edit(f"module:{encoder}:out", Add(V), 4), **more).logits, want, atol=1e-5
    )
    with pytest.raises(TokensError, match="position 4"):
        model.forward(rows, edit=Edit("resid_post.1", Add(V), 4), **more)


@pytest.mark.parametrize("name", STACKS)
def test_the_encoders_swap_gives_the_sources_output(name: str) -> None:
    make, encoder, _ = STACKS[name]
    model = inlay.load(make())
    last = {"t5": "encoder.final_layer_norm", "bart": "model.encoder.layers.2"}[name]
    edit = Edit(f"module:{last}:out", Swap(OTHER))
    assert torch.allclose(model.forward(RAGGED, edit=edit).logits, model.forward(OTHER).logits, atol=1e-5)
    once = Edit(f"module:{encoder}:out", Swap(Source(OTHER)), tokens=1)
    assert not torch.allclose(model.forward(RAGGED, edit=once).logits, model.forward(RAGGED).logits, atol=1e-3)
    mean = Edit(f"module:{encoder}:out", Mean(Source(OTHER)), tokens=1)
    assert model.forward(RAGGED, edit=mean).touched == [3]


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize("beams", [1, 2])
def test_generation_under_edits_of_both_stacks(name: str, beams: int) -> None:
    """Against bare hooks that act in every call; `response` leaves the start token alone."""
    make, encoder, decoder = STACKS[name]
    hf = make()
    model = inlay.load(hf)
    options = {"max_new_tokens": 5, "num_beams": beams, "do_sample": False, "min_new_tokens": 5}
    fed = _fed(RAGGED)
    with (
        tiny.hook(hf.get_submodule(encoder), lambda h: h + V),
        tiny.hook(hf.get_submodule(decoder), lambda h: h + 2 * V),
    ):
        want = hf.generate(**fed, **options)[:, 1:].tolist()
    edit = Edit(f"module:{encoder}:out", Add(V)) + Edit("resid_post.1", Add(2 * V))
    assert model.generate(RAGGED, edit=edit, **options) == want
    steps = iter(range(99))
    with tiny.hook(hf.get_submodule(decoder), lambda h: h + 2 * V if next(steps) else h):
        want = hf.generate(**fed, **options)[:, 1:].tolist()
    assert model.generate(RAGGED, edit=Edit("resid_post.1", Add(2 * V), "response"), **options) == want
    bank = Edit(f"module:{encoder}:out", Bank([Add(V)])) + Edit("resid_post.1", Bank([Add(3 * V)]))
    found = model.generate(RAGGED, edit=bank, rows=[0, 1, 0], **options)
    assert [found[0], found[2]] == [model.generate([RAGGED[i]], **options)[0] for i in (0, 2)]
    assert found[1] == model.generate([RAGGED[1]], edit=bank, rows=[1], **options)[0]


@pytest.mark.parametrize("name", STACKS)
def test_a_stored_response_and_its_loss(name: str) -> None:
    hf = STACKS[name][0]()
    model = inlay.load(hf, tokenizer=tiny.words())
    texts, said = tiny.text(RAGGED), ["w7 w9", "w5", "w3 w4 w6"]
    out = model.forward(texts, responses=said, loss=True)
    start = hf.config.decoder_start_token_id
    fed = torch.tensor([[start, 7, 9, 0], [start, 5, 0, 0], [start, 3, 4, 6]])
    labels = torch.tensor([[7, 9, -100, -100], [5, -100, -100, -100], [3, 4, 6, -100]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]])
    with torch.no_grad():
        want = hf(**_fed(RAGGED), decoder_input_ids=fed, decoder_attention_mask=mask, labels=labels)
    assert torch.allclose(out.logits, want.logits, atol=1e-5) and torch.allclose(out.loss, want.loss, atol=1e-6)
    with pytest.raises(InputError, match="2 responses for 3 prompts"):
        model.forward(texts, responses=["w1", "w2"])
    with pytest.raises(InputError, match="pass responses="):
        model.forward(texts, loss=True)


def test_the_encoder_alone_has_named_sites() -> None:
    hf = t5()
    model = inlay.load(hf.get_encoder())
    want = _states(hf, "encoder.block.1", **_fed(RAGGED), decoder_input_ids=torch.zeros(3, 1, dtype=torch.long))
    tiny.same_where_real(model.read(RAGGED, "resid_post.1")["resid_post.1"], want, RAGGED, atol=1e-5, rtol=1e-5)


def test_what_two_stacks_do_not_allow() -> None:
    model = inlay.load(t5())
    with pytest.raises(ModelError, match="an encoder and a decoder"):
        model.states(RAGGED, "resid_post.0")
    with pytest.raises(ModelError, match="an encoder and a decoder"):
        model.forward(RAGGED, edit=Edit("resid_post.0", Swap(OTHER)), worlds=True)
    with pytest.raises(ModelError, match="an encoder and a decoder"):
        model.read(RAGGED, "resid_post.0", grads=True)
    with pytest.raises(SiteError, match="read them in two calls"):
        model.read(RAGGED, ["module:encoder.block.0:out", "resid_post.0"])
    assert not inlay.model.patch.standing()


@pytest.mark.parametrize("make", [t5, bert])
def test_they_load_from_a_folder(make: Callable[[], Any], tmp_path: Any) -> None:
    hf = make()
    hf.save_pretrained(tmp_path / "model")
    model = inlay.load(tmp_path / "model")
    assert type(model.hf) is type(hf)
    assert torch.allclose(model.forward(RAGGED).logits, inlay.load(hf).forward(RAGGED).logits, atol=1e-5)
