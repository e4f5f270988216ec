"""Generation under edits, in every way that transformers has: each prompt as if alone and recomputed by hand."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from tests.model import chat
from tests.model.by_hand import greedy, hooked, left_padded, output_of
from tests.model.chat import WIDTH, block, ids, text
from torch import Tensor, nn
from transformers import DynamicCache, StoppingCriteria, StoppingCriteriaList

import inlay
from inlay import Ablate, Add, Bank, Edit, Mean, Noise, Scale, Source, Swap, span
from inlay.errors import EditError, InputError, ModelError, TokensError
from inlay.model import patch

STEPS = 7
PROMPT = ids("the captain and crew sail the old ship east")  # longer than the sliding windows
OTHERS = [ids("calm sea harbor night"), PROMPT, ids("the harbor light falls with a cold wind")]
SITE, LAYER = "resid_post.1", 1

TOKENS: dict[str, tuple[Any, Any]] = {
    "all": ("all", lambda prompt, length: range(length)),
    "prompt": ("prompt", lambda prompt, length: range(prompt)),
    "response": ("response", lambda prompt, length: range(prompt, length)),
    "response[1:3]": ("response[1:3]", lambda prompt, length: range(prompt + 1, prompt + 3)),
    "last": ("last", lambda prompt, length: [prompt - 1]),
    "first2+last1": ("first2+last1", lambda prompt, length: [0, 1, prompt - 1]),
    "int": (-3, lambda prompt, length: [prompt - 3]),
    "first1+response[2:]": ("first1+response[2:]", lambda prompt, length: [0, *range(prompt + 2, length)]),
}
every_tokens = pytest.mark.parametrize("tokens", TOKENS)
some_tokens = pytest.mark.parametrize("tokens", ["all", "prompt", "response[1:3]", "first2+last1"])


@cache
def model(family: str) -> inlay.Model:
    return chat.wrapped(family)


@cache
def vector(seed: int = 0) -> Tensor:
    return 4.0 * torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))


def adding(v: Tensor) -> Any:
    return lambda h, row, positions: h + v


def alone(
    hf: Any, prompt: list[int], tokens: str = "all", v: Tensor | None = None, steps: int = STEPS
) -> tuple[list[int], Tensor]:
    """One prompt by the hand-written loop, with a vector added after block 1."""
    where = TOKENS[tokens][1]
    return greedy(
        hf,
        prompt,
        steps,
        block(hf, LAYER),
        adding(vector() if v is None else v),
        lambda row, length: where(len(prompt), length),
    )


def edit(tokens: str = "all", v: Tensor | None = None, site: str = SITE) -> Edit:
    return Edit(site, Add(vector() if v is None else v), tokens=TOKENS[tokens][0])


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """After every test: no shadow stands, and no module of a model has a method of its own."""
    yield
    assert patch.standing() == 0
    for family in chat.FAMILIES:
        for module in model(family).base.modules():
            assert "forward" not in module.__dict__ and "generate" not in module.__dict__
            assert not module._forward_hooks and not module._forward_pre_hooks


# -- one prompt ------------------------------------------------------------------------------------------------------


@every_tokens
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mistral", "falcon", "mixtral"])
def test_cached_uncached_and_by_hand_are_the_same(family: str, tokens: str) -> None:
    m = model(family)
    wanted, logits = alone(m.hf, PROMPT, tokens)
    plain = greedy(m.hf, PROMPT, STEPS)[1]
    assert (plain - logits).abs().max() > 0.1, "the edit must matter, or this test says nothing"
    for use_cache in (True, False):
        with m.edited(edit(tokens)):
            found = m.hf.generate(
                torch.tensor([PROMPT]),
                max_new_tokens=STEPS,
                use_cache=use_cache,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        assert found.sequences[0, len(PROMPT) :].tolist() == wanted
        torch.testing.assert_close(torch.cat(found.logits), logits, rtol=1e-4, atol=1e-4)
        assert m.generate(PROMPT, edit=edit(tokens), max_new_tokens=STEPS, use_cache=use_cache) == text(wanted)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_span(family: str) -> None:
    m = model(family)
    prompt = ids("the old harbor and the new harbor light")
    for spec, at in ((span("new harbor"), [5, 6]), (span("harbor", 0), [2]), ("span('harbor', -1)+last", [6, 7])):
        wanted, _ = greedy(m.hf, prompt, STEPS, block(m.hf, LAYER), adding(vector()), lambda row, length, at=at: at)
        assert m.generate(
            "the old harbor and the new harbor light",
            edit=Edit(SITE, Add(vector()), tokens=spec),
            max_new_tokens=STEPS,
            chat=False,
        ) == text(wanted)


def test_prompt_and_response_may_get_different_edits() -> None:
    hf = model("llama").hf

    def change(h: Tensor, row: int, positions: list[int]) -> Tensor:
        before = torch.tensor([p < len(PROMPT) for p in positions])[:, None]
        return torch.where(before, h + vector(1), h + vector(2))

    wanted, _ = greedy(hf, PROMPT, STEPS, block(hf, LAYER), change, lambda row, length: range(length))
    both = Edit(SITE, Add(vector(1)), "prompt") + Edit(SITE, Add(vector(2)), "response")
    assert model("llama").generate(PROMPT, edit=both, max_new_tokens=STEPS) == text(wanted)


SITES = {
    "llama": [
        "embed", "resid_pre.1", "attn_in.1", "attn_out.1", "resid_mid.1", "mlp_in.1", "mlp_act.1", "mlp_out.1",
        "q.1", "k.1.h1", "v.1", "z.1.h[0,2]", "q_rot.1", "k_rot.1", "pattern.1.h3", "final_norm", "logits",
    ],
    "gemma2": ["attn_out.1", "resid_mid.1", "mlp_out.1", "k.1", "q_rot.1.h0", "k_rot.0", "k_rot.1", "pattern.0"],
    "mistral": ["k_rot.1", "pattern.1", "v.0"],
    "gpt2": ["q.1.h1", "k.1", "v.1.h[1,3]", "z.1", "k_rot.1", "pattern.1"],
    "falcon": ["q.1.h1", "k.1", "v.1", "z.1.h2", "attn_out.1", "mlp_out.1"],
    "mixtral": ["router.1", "mlp_out.1"],
}  # fmt: skip


@pytest.mark.parametrize("tokens", ["all", "first2+last1", "response[1:3]"])
@pytest.mark.parametrize(("family", "site"), [(family, site) for family, sites in SITES.items() for site in sites])
def test_cached_is_uncached_at_every_site(family: str, site: str, tokens: str) -> None:
    m = model(family)
    set_here = Edit(site, Scale(-1.5), tokens=TOKENS[tokens][0])
    logits = []
    for use_cache in (True, False):
        with m.edited(set_here):
            found = m.hf.generate(
                torch.tensor([PROMPT]),
                max_new_tokens=STEPS,
                use_cache=use_cache,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        logits.append(torch.cat(found.logits))
    assert (logits[0] - greedy(m.hf, PROMPT, STEPS)[1]).abs().max() > 1e-3
    assert logits[0].argmax(-1).tolist() == logits[1].argmax(-1).tolist()
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-4)


# -- batches ---------------------------------------------------------------------------------------------------------


@some_tokens
@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral", "gpt2", "falcon", "mixtral"])
def test_a_batch_of_unequal_prompts_is_each_alone(family: str, tokens: str) -> None:
    m = model(family)
    wanted = [text(alone(m.hf, prompt, tokens)[0]) for prompt in OTHERS]
    assert m.generate(OTHERS, edit=edit(tokens), max_new_tokens=STEPS) == wanted


@every_tokens
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_right_padding_with_a_mask(family: str, tokens: str) -> None:
    """Transformers then predicts a short row's first token from padding; by hand does too, with explicit slots."""
    hf, longest = model(family).hf, max(map(len, OTHERS))
    rows = torch.tensor([row + [0] * (longest - len(row)) for row in OTHERS])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in OTHERS])
    more = {"attention_mask": mask, "max_new_tokens": STEPS, "do_sample": False}

    def at(row: int, length: int) -> list[int]:
        generated = range(longest, length)
        if tokens == "all":
            return list(range(length))
        real = len(OTHERS[row])
        slots = [*range(real), *generated]  # attended index -> slot
        return [slots[i] for i in TOKENS[tokens][1](real, len(slots)) if i < len(slots)]

    with hooked(block(hf, LAYER), adding(vector()), at):
        wanted = hf.generate(rows, use_cache=False, **more)
    with model(family).edited(edit(tokens)):
        assert hf.generate(rows, **more).tolist() == wanted.tolist()


@some_tokens
def test_a_missing_mask_follows_the_rule_of_transformers(tokens: str) -> None:
    m = model("llama")
    rows, _ = left_padded(OTHERS, pad=0)
    wanted = [alone(m.hf, prompt, tokens)[0] for prompt in OTHERS]
    with m.edited(edit(tokens)):
        found = m.hf.generate(rows, max_new_tokens=STEPS, do_sample=False)
    assert found[:, rows.shape[1] :].tolist() == wanted


@some_tokens
def test_pads_that_are_end_tokens_are_not_guessed_away(tokens: str) -> None:
    """Where pad and end are one token, transformers attends to it, and so positions count it."""
    hf = model("llama").hf
    row = [3, 3, *PROMPT]
    wanted, _ = alone(hf, row, tokens)
    with model("llama").edited(edit(tokens)):
        found = hf.generate(torch.tensor([row]), max_new_tokens=STEPS, pad_token_id=3, eos_token_id=3, do_sample=False)
    assert found[0, len(row) :].tolist() == wanted


def test_rows_that_ended_early_leave_the_others_alone() -> None:
    m = model("llama")
    wanted = [alone(m.hf, prompt)[0] for prompt in OTHERS]
    end = wanted[0][2]
    cut = [row[: row.index(end) + 1] if end in row else row for row in wanted]
    assert {len(row) for row in cut} == {len(cut[0]), STEPS}, "one row ends early and another does not"
    rows, mask = left_padded(OTHERS)
    with m.edited(edit("all")):
        found = m.hf.generate(rows, attention_mask=mask, max_new_tokens=STEPS, eos_token_id=end, do_sample=False)
    assert [row[: len(c)] for row, c in zip(found[:, rows.shape[1] :].tolist(), cut, strict=True)] == cut


def test_one_prompt_gives_one_text_and_a_list_gives_a_list() -> None:
    m = model("llama")
    one = m.generate(PROMPT, edit=edit(), max_new_tokens=STEPS)
    assert isinstance(one, str) and m.generate([PROMPT], edit=edit(), max_new_tokens=STEPS) == [one]
    assert m.generate(text(PROMPT), chat=False, edit=edit(), max_new_tokens=STEPS) == one
    turns = [{"role": "user", "content": text(PROMPT)}]
    rendered = ids("<user>") + PROMPT + ids("<end> <assistant>")
    wanted = text(alone(m.hf, rendered)[0])
    assert m.generate(turns, edit=edit(), max_new_tokens=STEPS) == wanted
    assert m.generate(text(PROMPT), edit=edit(), max_new_tokens=STEPS) == wanted
    assert m.generate([turns], edit=edit(), max_new_tokens=STEPS) == [wanted]


def test_without_a_tokenizer_ids_come_back() -> None:
    bare = inlay.load(model("llama").hf)
    assert bare.generate(PROMPT, edit=edit("last"), max_new_tokens=STEPS) == alone(bare.hf, PROMPT, "last")[0]
    with pytest.raises(ModelError, match="no tokenizer"):
        bare.generate("the sea")


def test_max_length_takes_the_place_of_the_default() -> None:
    m = model("llama")
    assert m.generate(PROMPT, edit=edit(), max_length=len(PROMPT) + 3) == text(alone(m.hf, PROMPT, steps=3)[0])


# -- beams and sampling ----------------------------------------------------------------------------------------------


def beams_alone(hf: Any, prompt: list[int], tokens: str, v: Tensor, **more: Any) -> list[list[int]]:
    where = TOKENS[tokens][1]
    with hooked(block(hf, LAYER), adding(v), lambda row, length: where(len(prompt), length)):
        found = hf.generate(
            torch.tensor([prompt]), num_beams=3, use_cache=False, do_sample=False, max_new_tokens=STEPS, **more
        )
    return [row[len(prompt) :] for row in found.tolist()]


@some_tokens
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_beams_are_each_prompt_alone(family: str, tokens: str) -> None:
    m = model(family)
    wanted = [text(beams_alone(m.hf, prompt, tokens, vector())[0]) for prompt in OTHERS]
    assert m.generate(OTHERS, edit=edit(tokens), num_beams=3, do_sample=False, max_new_tokens=STEPS) == wanted


def test_rows_of_a_bank_follow_their_prompt_through_beams() -> None:
    m, rows = model("llama"), [2, 0, 1]
    bank = Edit(SITE, Bank([Add(vector(1)), Add(vector(2))]), tokens="first2+last1")
    per_row = [vector(2), torch.zeros(WIDTH), vector(1)]
    for sequences in (1, 2):
        wanted = [
            [text(t) for t in beams_alone(m.hf, p, "first2+last1", v, num_return_sequences=sequences)]
            for p, v in zip(OTHERS, per_row, strict=True)
        ]
        found = m.generate(
            OTHERS,
            edit=bank,
            rows=rows,
            num_beams=3,
            num_return_sequences=sequences,
            do_sample=False,
            max_new_tokens=STEPS,
        )
        assert found == ([one[0] for one in wanted] if sequences == 1 else wanted)


def sampled_by_hand(hf: Any, prompts: list[list[int]], at: Any, per_row: list[Tensor], sequences: int) -> list[Any]:
    """Transformers' own sampling of a left-padded batch, without a cache, edited by a hook on explicit slots."""
    rows, mask = left_padded(prompts)
    slots = rows.shape[1]

    def where(row: int, length: int) -> list[int]:
        prompt = prompts[row // sequences]
        room = slots - len(prompt)
        return [room + i for i in at(len(prompt), length - room)]

    torch.manual_seed(11)
    with hooked(block(hf, LAYER), lambda h, row, positions: h + per_row[row // sequences], where):
        found = hf.generate(
            rows,
            attention_mask=mask,
            use_cache=False,
            do_sample=True,
            num_return_sequences=sequences,
            max_new_tokens=STEPS,
        )
    texts = [text(row) for row in found[:, slots:]]
    return texts if sequences == 1 else [texts[i : i + sequences] for i in range(0, len(texts), sequences)]


@some_tokens
@pytest.mark.parametrize("sequences", [1, 3])
def test_sampling_with_the_same_seed(tokens: str, sequences: int) -> None:
    m = model("llama")
    wanted = sampled_by_hand(m.hf, OTHERS, TOKENS[tokens][1], [vector()] * 3, sequences)
    torch.manual_seed(11)
    found = m.generate(OTHERS, edit=edit(tokens), do_sample=True, num_return_sequences=sequences, max_new_tokens=STEPS)
    assert found == wanted


def test_one_prompt_sampled_thrice_gives_a_list() -> None:
    m = model("llama")
    [wanted] = sampled_by_hand(m.hf, [PROMPT], TOKENS["last"][1], [vector()], 3)
    torch.manual_seed(11)
    found = m.generate(PROMPT, edit=edit("last"), do_sample=True, num_return_sequences=3, max_new_tokens=STEPS)
    assert found == wanted and len(set(found)) > 1


@some_tokens
def test_rows_of_a_bank_follow_their_prompt_through_returned_sequences(tokens: str) -> None:
    m = model("llama")
    per_row = [vector(2), torch.zeros(WIDTH), vector(1)]
    wanted = sampled_by_hand(m.hf, OTHERS, TOKENS[tokens][1], per_row, 2)
    torch.manual_seed(11)
    found = m.generate(
        OTHERS,
        edit=Edit(SITE, Bank([Add(vector(1)), Add(vector(2))]), tokens=TOKENS[tokens][0]),
        rows=[2, 0, 1],
        do_sample=True,
        num_return_sequences=2,
        max_new_tokens=STEPS,
    )
    assert found == wanted


@some_tokens
def test_strength_per_row(tokens: str) -> None:
    m, strength = model("llama"), [0.0, 1.0, -2.0]
    wanted = [text(alone(m.hf, p, tokens, s * vector())[0]) for p, s in zip(OTHERS, strength, strict=True)]
    assert m.generate(OTHERS, edit=edit(tokens), strength=strength, max_new_tokens=STEPS) == wanted
    beams = [text(beams_alone(m.hf, p, tokens, s * vector())[0]) for p, s in zip(OTHERS, strength, strict=True)]
    found = m.generate(OTHERS, edit=edit(tokens), strength=strength, num_beams=3, do_sample=False, max_new_tokens=STEPS)
    assert found == beams


def test_rows_and_strengths_that_do_not_fit_the_batch() -> None:
    m, bank = model("llama"), Edit(SITE, Bank([Add(vector())]))
    with pytest.raises(EditError, match="names 2 rows, and the batch has 3"):
        m.generate(OTHERS, edit=bank, rows=[0, 1])
    with pytest.raises(EditError, match="names 2 rows, and the batch has 3"):
        m.generate(OTHERS, edit=edit(), strength=[0.0, 1.0])
    with pytest.raises(EditError, match=r"rows=\[\.\.\.\]"):
        m.generate(OTHERS, edit=bank)


# -- the other ways of transformers ----------------------------------------------------------------------------------


class Lengths:
    """Counts the tokens of every call of a module, as a user's own hook would."""

    def __init__(self, module: nn.Module) -> None:
        self.seen: list[int] = []
        self.handle = module.register_forward_hook(self._note)

    def _note(self, module: nn.Module, args: Any, output: Any) -> None:
        self.seen.append((output[0] if isinstance(output, tuple) else output).shape[1])

    def __enter__(self) -> list[int]:
        return self.seen

    def __exit__(self, *_: Any) -> None:
        self.handle.remove()


REPEATING = ids("tide rises tide falls tide rises tide falls tide rises")


@every_tokens
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_prompt_lookup_decoding_is_greedy(family: str, tokens: str) -> None:
    m = model(family)
    wanted, _ = alone(m.hf, REPEATING, tokens, steps=12)
    with Lengths(block(m.hf, LAYER)) as seen:
        found = m.generate(REPEATING, edit=edit(tokens), prompt_lookup_num_tokens=3, max_new_tokens=12)
    assert found == text(wanted)
    assert any(length > 1 for length in seen[1:]) or seen[0] > len(REPEATING), "no draft was ever checked"


def assistants() -> dict[str, Any]:
    other = chat.tiny("llama", seed=3, num_hidden_layers=1)
    same = copy.deepcopy(model("llama").hf)
    return {"other": other, "same weights": same}


@every_tokens
@pytest.mark.parametrize("kind", ["other", "same weights"])
def test_assisted_generation_is_greedy_and_leaves_the_assistant_alone(kind: str, tokens: str) -> None:
    m, assistant, drafts = model("llama"), assistants()[kind], []
    with torch.no_grad():
        plain = assistant(torch.tensor([PROMPT])).logits[0, -1]
    handle = assistant.lm_head.register_forward_hook(lambda module, args, out: drafts.append(out[0, -1].clone()))
    try:
        found = m.generate(PROMPT, edit=edit(tokens), assistant_model=assistant, max_new_tokens=12, do_sample=False)
    finally:
        handle.remove()
    assert found == text(alone(m.hf, PROMPT, tokens, steps=12)[0])
    torch.testing.assert_close(drafts[0], plain)


@every_tokens
def test_a_model_that_assists_itself_drafts_under_the_edit(tokens: str) -> None:
    """The drafts run inside the outer generation, and an early exit skips the last block in them."""
    m = model("llama")
    wanted = text(alone(m.hf, PROMPT, tokens, steps=12)[0])
    found = m.generate(PROMPT, edit=edit(tokens), assistant_model=m.hf, max_new_tokens=12, do_sample=False)
    assert found == wanted


@some_tokens
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mistral"])
def test_a_static_cache_is_a_dynamic_one(family: str, tokens: str) -> None:
    m = model(family)
    wanted = [text(alone(m.hf, prompt, tokens)[0]) for prompt in OTHERS]
    found = m.generate(OTHERS, edit=edit(tokens), cache_implementation="static", max_new_tokens=STEPS)
    assert found == wanted


@pytest.mark.parametrize("layer", range(chat.LAYERS))
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_positions_under_a_static_cache(family: str, layer: int) -> None:
    """What an intervention is told of positions does not depend on the cache, or on how many layers ran before it."""
    m, seen = model(family), {}
    for kind in ("dynamic", "static"):
        told: list[Tensor] = []

        def note(h: Tensor, positions: Tensor, told: list[Tensor] = told) -> Tensor:
            told.append(positions.expand(h.shape[0], -1).clone())
            return h + 1.0

        m.generate(OTHERS, edit=Edit(f"mlp_out.{layer}", note), cache_implementation=kind, max_new_tokens=3)
        seen[kind] = told
    lengths = [len(prompt) for prompt in OTHERS]
    assert [step.tolist() for step in seen["dynamic"][1:]] == [[[n + k] for n in lengths] for k in range(2)]
    assert [step.tolist() for step in seen["static"]] == [step.tolist() for step in seen["dynamic"]]


@some_tokens
@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral", "gpt2"])
@pytest.mark.parametrize("chunk", [1, 4])
def test_chunked_prefill(family: str, chunk: int, tokens: str) -> None:
    m = model(family)
    wanted = text(alone(m.hf, PROMPT, tokens)[0])
    assert m.generate(PROMPT, edit=edit(tokens), prefill_chunk_size=chunk, max_new_tokens=STEPS) == wanted


@some_tokens
def test_chunked_prefill_of_a_padded_batch(tokens: str) -> None:
    m = model("llama")
    wanted = [text(alone(m.hf, prompt, tokens)[0]) for prompt in OTHERS]
    assert m.generate(OTHERS, edit=edit(tokens), prefill_chunk_size=4, max_new_tokens=STEPS) == wanted


@pytest.mark.parametrize("tokens", ["all", "prompt", "response", "last"])
def test_a_second_turn_goes_on_from_the_cache_of_the_first(tokens: str) -> None:
    """In the second call everything given is its prompt; what lies in the cache stays as the first call left it."""
    m, hf = model("llama"), model("llama").hf
    cache_ = DynamicCache(config=hf.config)
    with m.edited(edit(tokens)):
        first = hf.generate(torch.tensor([PROMPT]), cache=cache_, max_new_tokens=4, do_sample=False)[0].tolist()
    cached = cache_.get_seq_length()
    assert cached == len(first) - 1
    second = [*first, *ids("and the gull waits")]
    with m.edited(edit(tokens)):
        found = hf.generate(torch.tensor([second]), cache=cache_, max_new_tokens=4, do_sample=False)[0].tolist()

    where = TOKENS[tokens][1]
    before = [i for i in where(len(PROMPT), len(first)) if i < cached]

    def at(row: int, length: int) -> list[int]:
        return [*before, *(i for i in where(len(second), length) if i >= cached)]

    wanted, _ = greedy(hf, second, 4, block(hf, LAYER), adding(vector()), at)
    assert found[len(second) :] == wanted


def test_positions_that_lie_in_the_cache_already_raise() -> None:
    m = model("llama")
    cache_ = DynamicCache(config=m.hf.config)
    first = m.hf.generate(torch.tensor([PROMPT]), cache=cache_, max_new_tokens=2, do_sample=False)
    with pytest.raises(EditError, match="changed nothing"), m.edited(edit("int")):
        m.hf.generate(first, cache=cache_, max_new_tokens=2, do_sample=False)


@every_tokens
def test_generation_from_embeddings(tokens: str) -> None:
    m, hf = model("llama"), model("llama").hf
    rows, mask = left_padded(OTHERS)
    embeds = hf.get_input_embeddings()(rows)
    wanted = [alone(hf, prompt, tokens)[0] for prompt in OTHERS]
    with m.edited(edit(tokens)):
        found = hf.generate(inputs_embeds=embeds, attention_mask=mask, max_new_tokens=STEPS, do_sample=False)
        assert found.tolist() == wanted
        one = hf.generate(inputs_embeds=hf.get_input_embeddings()(torch.tensor([PROMPT])), max_new_tokens=STEPS)
    assert one.tolist() == [wanted[1]]


def test_an_output_object_gives_the_same_texts() -> None:
    m = model("llama")
    wanted = m.generate(OTHERS, edit=edit(), max_new_tokens=STEPS)
    assert m.generate(OTHERS, edit=edit(), max_new_tokens=STEPS, return_dict_in_generate=True) == wanted


def test_a_forward_after_a_generation_in_one_context_is_a_new_prompt() -> None:
    m, hf = model("llama"), model("llama").hf
    with torch.no_grad():
        with hooked(block(hf, LAYER), adding(vector()), lambda row, length: [length - 1]):
            wanted = hf(torch.tensor([OTHERS[0]])).logits
        with m.edited(edit("last")):
            hf.generate(torch.tensor([PROMPT]), max_new_tokens=3)
            found = hf(torch.tensor([OTHERS[0]])).logits
            again = hf.generate(torch.tensor([OTHERS[0]]), max_new_tokens=3, do_sample=False)
    torch.testing.assert_close(found, wanted)
    assert again[0, len(OTHERS[0]) :].tolist() == alone(hf, OTHERS[0], "last", steps=3)[0]


# -- other interventions ---------------------------------------------------------------------------------------------

DONOR = ids("warm rain and deep blue wave")


@pytest.mark.parametrize("site_layer", [0, 2])
def test_swap_with_a_source_is_a_patch_by_hand(site_layer: int) -> None:
    m, hf = model("llama"), model("llama").hf
    donor = output_of(hf, block(hf, site_layer), DONOR)
    for source, spec, at, taken in (
        (Source([DONOR], tokens=4), 2, [2], [4]),
        (Source([DONOR], tokens="first3"), "first3", [0, 1, 2], [0, 1, 2]),
        (Source([DONOR], tokens="last2"), "first1+last1", [0, len(PROMPT) - 1], [-2, -1]),
        (Source([DONOR], tokens="last"), "last", [len(PROMPT) - 1], [-1]),
    ):
        wanted, _ = greedy(
            hf,
            PROMPT,
            STEPS,
            block(hf, site_layer),
            lambda h, row, positions, taken=taken: donor[taken],
            lambda row, length, at=at: at,
        )
        swap = Edit(f"resid_post.{site_layer}", Swap(source), tokens=spec)
        for more in ({}, {"use_cache": False}, {"cache_implementation": "static"}, {"prefill_chunk_size": 2}):
            assert m.generate(PROMPT, edit=swap, max_new_tokens=STEPS, **more) == text(wanted), (spec, more)


def test_swap_of_every_prompt_token_leaves_the_response_to_itself() -> None:
    m, hf = model("llama"), model("llama").hf
    donor = PROMPT[::-1]
    states = output_of(hf, block(hf, LAYER), donor)
    wanted, _ = greedy(
        hf, PROMPT, STEPS, block(hf, LAYER), lambda h, row, at: states[at], lambda row, length: range(len(PROMPT))
    )
    for tokens in ("prompt", "all"):
        for more in ({}, {"use_cache": False}, {"cache_implementation": "static"}):
            found = m.generate(PROMPT, edit=Edit(SITE, Swap([donor]), tokens=tokens), max_new_tokens=STEPS, **more)
            assert found == text(wanted), (tokens, more)


def test_swap_pairs_rows_in_a_batch_and_through_beams() -> None:
    m, hf = model("llama"), model("llama").hf
    donors = [DONOR, ids("gull waits"), ids("star and moon and sun and night")]
    swap = Edit(SITE, Swap(Source(donors, tokens="last2")), tokens="first1+last1")
    states = [output_of(hf, block(hf, LAYER), donor)[-2:] for donor in donors]
    greedy_wanted, beam_wanted = [], []
    for prompt, donor in zip(OTHERS, states, strict=True):
        change = lambda h, row, at, donor=donor: donor  # noqa: E731
        at = lambda row, length, prompt=prompt: [0, len(prompt) - 1]  # noqa: E731
        greedy_wanted.append(text(greedy(hf, prompt, STEPS, block(hf, LAYER), change, at)[0]))
        with hooked(block(hf, LAYER), change, at):
            found = hf.generate(
                torch.tensor([prompt]), num_beams=3, use_cache=False, do_sample=False, max_new_tokens=STEPS
            )
        beam_wanted.append(text(found[0, len(prompt) :]))
    assert m.generate(OTHERS, edit=swap, max_new_tokens=STEPS) == greedy_wanted
    assert m.generate(OTHERS, edit=swap, num_beams=3, do_sample=False, max_new_tokens=STEPS) == beam_wanted


def test_swap_needs_as_many_positions_as_its_source() -> None:
    with pytest.raises(TokensError, match=r"row 0 selects 1 positions .* its source 2"):
        model("llama").generate(PROMPT, edit=Edit(SITE, Swap(Source([DONOR], tokens="last2")), tokens="last"))


def test_mean_of_a_source() -> None:
    m, hf = model("llama"), model("llama").hf
    donors = [DONOR, ids("gull waits")]
    mean = torch.cat([output_of(hf, block(hf, LAYER), donor) for donor in donors]).mean(0)
    where = TOKENS["response"][1]
    wanted, _ = greedy(
        hf,
        PROMPT,
        STEPS,
        block(hf, LAYER),
        lambda h, row, at: mean.expand_as(h),
        lambda row, length: where(len(PROMPT), length),
    )
    edit_ = Edit(SITE, Mean(Source(donors, tokens="all")), tokens="response")
    assert m.generate(PROMPT, edit=edit_, max_new_tokens=STEPS) == text(wanted)


@pytest.mark.parametrize("tokens", ["all", "prompt", "response", "first2+last1"])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_noise_does_not_depend_on_cache_batch_or_beams(family: str, tokens: str) -> None:
    m = model(family)
    noise = Edit(SITE, Noise(2.0, seed=5), tokens=TOKENS[tokens][0])
    each = [m.generate(prompt, edit=noise, use_cache=False, max_new_tokens=STEPS) for prompt in OTHERS]
    assert each != [m.generate(prompt, use_cache=False, max_new_tokens=STEPS) for prompt in OTHERS]
    for more in ({}, {"use_cache": False}, {"cache_implementation": "static"}, {"prefill_chunk_size": 3}):
        assert m.generate(OTHERS, edit=noise, max_new_tokens=STEPS, **more) == each, more
    beams = {"num_beams": 3, "do_sample": False, "max_new_tokens": STEPS}
    alone_ = [m.generate(prompt, edit=noise, use_cache=False, **beams) for prompt in OTHERS]
    assert m.generate(OTHERS, edit=noise, **beams) == alone_


def test_ablation_at_every_layer() -> None:
    m, hf = model("llama"), model("llama").hf
    u = vector() / vector().norm()
    change = lambda h, row, at: h - (h @ u)[:, None] * u  # noqa: E731
    at = lambda row, length: range(length)  # noqa: E731
    with hooked(block(hf, 0), change, at), hooked(block(hf, 1), change, at):
        wanted, _ = greedy(hf, PROMPT, STEPS, block(hf, 2), change, at)
    assert m.generate(PROMPT, edit=Edit("resid_post.*", Ablate(vector())), max_new_tokens=STEPS) == text(wanted)


# -- what must fail --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tokens", "steps"), [("response", 1), ("response[5:]", 4), ("response[9]", STEPS)])
def test_an_edit_that_reached_no_token_raises(tokens: str, steps: int) -> None:
    m = model("llama")
    with pytest.raises(EditError, match=r"changed nothing in \d+ forward"):
        m.generate(PROMPT, edit=Edit(SITE, Add(vector()), tokens=tokens), max_new_tokens=steps)


def test_a_response_edit_of_two_tokens_touches_one() -> None:
    m = model("llama")
    with m.edited(edit("response")) as run:
        m.hf.generate(torch.tensor([PROMPT]), max_new_tokens=2, do_sample=False)
    assert run.touched == [1]


@pytest.mark.parametrize("use_cache", [True, False])
def test_touched_counts_attended_positions(use_cache: bool) -> None:
    m = model("llama")
    rows, mask = left_padded(OTHERS)
    with m.edited(edit("prompt")) as run:
        m.hf.generate(rows, attention_mask=mask, max_new_tokens=1, use_cache=use_cache)
    assert run.touched == [sum(map(len, OTHERS))]


def test_positions_outside_a_row() -> None:
    with pytest.raises(TokensError, match="position 6 is out of range in row 0, whose prompt has 4 tokens"):
        model("llama").generate(OTHERS, edit=Edit(SITE, Add(vector()), tokens=6))
    with pytest.raises(TokensError, match=r"span\('mast'\): row 0 holds the text 0 times"):
        model("llama").generate(OTHERS, edit=Edit(SITE, Add(vector()), tokens=span("mast")))


def test_an_error_in_the_middle_of_a_generation_leaves_nothing() -> None:
    class Fails(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Any:
            if input_ids.shape[1] == len(PROMPT) + 3:
                raise RuntimeError("the caller's own")
            return torch.zeros(len(input_ids), dtype=torch.bool)

    m = model("llama")
    plain = m.generate(PROMPT, max_new_tokens=STEPS)
    with pytest.raises(RuntimeError, match="the caller's own"):
        m.generate(PROMPT, edit=edit(), stopping_criteria=StoppingCriteriaList([Fails()]), max_new_tokens=STEPS)
    assert patch.standing() == 0
    assert m.generate(PROMPT, max_new_tokens=STEPS) == plain


def test_prompts_that_cannot_be() -> None:
    m = model("llama")
    for prompts, match in (([], "empty"), ([[]], "prompt 0 has no tokens"), ([PROMPT * 9], "81 tokens.* holds 64")):
        with pytest.raises(InputError, match=match):
            m.generate(prompts, edit=edit())
