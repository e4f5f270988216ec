"""EditedModel: forward, gradients, padding, what is prompt, the base while attached and after, disk, generation."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.model.tiny import LAYERS, VOCAB, WIDTH, Record, frozen, padded, rows, tiny
from tests.train import attached_by_hand as by_hand
from tests.train.attached_by_hand import Adapter
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.trainer_utils import validate_quantization_for_training

import inlay
from inlay import Add, Bank, Edit, Scale
from inlay.errors import EditError, FolderError, SiteError, TrainError
from inlay.train.attached import EditedModel
from inlay.train.attached_prompt import before_labels

PAIRS = list(zip(rows(6, 4, seed=1), rows(3, 5, seed=2), strict=True))
ENDS = [by_hand.ends(len(prompt), 2, 2) for prompt, _ in PAIRS]
RESPONSES = [list(range(len(prompt), len(prompt) + len(response))) for prompt, response in PAIRS]
sides = pytest.mark.parametrize("side", ["right", "left"])


def vector(seed: int = 0, width: int = WIDTH) -> nn.Parameter:
    return nn.Parameter(torch.randn(width, generator=torch.Generator().manual_seed(seed)))


def adding(tokens: str = "first2+last2", v: nn.Parameter | None = None) -> Edit:
    return Edit("resid_post.1", Add(vector() if v is None else v), tokens=tokens)


# -- forward and backward ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", ["first2+last2", "response"])
@sides
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_loss_and_gradient_are_those_of_the_formula(family: str, side: str, tokens: str) -> None:
    hf = tiny(family)
    v = vector()
    where = ENDS if tokens != "response" else RESPONSES
    want = by_hand.loss(hf, PAIRS, 1, v, where)
    (gradient,) = torch.autograd.grad(want, v)
    edited = EditedModel(inlay.load(hf), adding(tokens, v)).train()
    got = edited(**by_hand.batch(PAIRS, side)).loss
    got.backward()
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(v.grad, gradient, rtol=1e-4, atol=1e-6)
    assert all(p.grad is None and not p.requires_grad for p in hf.parameters())


@pytest.mark.parametrize("call", ["module", "forward", "positional"])
def test_every_way_to_call_it_sets_the_edit_once(call: str) -> None:
    hf = tiny()
    edited = EditedModel(inlay.load(hf), adding("all")).eval()
    ids = torch.tensor([PAIRS[0][0]])
    with torch.no_grad():
        want = by_hand.logits(hf, PAIRS[0][0], 1, edited.edit.interventions[0].vector, range(6))
        if call == "positional":
            got = edited(ids).logits
        else:
            got = (edited if call == "module" else edited.forward)(input_ids=ids).logits
    torch.testing.assert_close(got[0], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_of_both_kinds(reentrant: bool) -> None:
    found = []
    for kwargs in (None, {"use_reentrant": reentrant}):
        v = vector()
        edited = EditedModel(frozen(), adding(v=v)).train()
        if kwargs is not None:
            edited.gradient_checkpointing_enable(kwargs)
            assert edited.is_gradient_checkpointing
        edited(**by_hand.batch(PAIRS)).loss.backward()
        found.append(v.grad)
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-7)


def test_bf16_base_with_fp32_parameters() -> None:
    v = vector()
    edited = EditedModel(inlay.load(tiny().bfloat16()), adding(v=v)).train()
    loss = edited(**by_hand.batch(PAIRS)).loss
    loss.backward()
    assert edited.dtype == torch.bfloat16 and v.grad is not None and v.grad.dtype == torch.float32
    exact = by_hand.loss(tiny(), PAIRS, 1, v.detach(), ENDS)
    torch.testing.assert_close(loss.float(), exact, rtol=2e-2, atol=2e-2)


@sides
def test_rows_of_a_bank(side: str) -> None:
    items = [vector(k) for k in range(3)]
    edited = EditedModel(frozen(), Edit("resid_post.1", Bank([Add(v) for v in items]), tokens="first2+last2")).eval()
    out = edited(**by_hand.batch(PAIRS, side), rows=torch.tensor([3, 0]))
    want = -(
        by_hand.logp(edited.hf, PAIRS[0], 1, items[2].detach(), ENDS[0])
        + by_hand.logp(edited.hf, PAIRS[1], 1, torch.zeros(WIDTH), ENDS[1])
    ) / sum(len(response) for _, response in PAIRS)
    torch.testing.assert_close(out.loss, want, rtol=1e-5, atol=1e-6)
    with pytest.raises(EditError, match="is a Bank: say which row each prompt uses"):
        edited(**by_hand.batch(PAIRS, side))


def test_strength_is_a_factor() -> None:
    v = vector()
    edited = EditedModel(frozen(), adding(v=v)).eval()
    got = edited(**by_hand.batch(PAIRS), strength=torch.tensor([0.5, 0.5])).loss
    torch.testing.assert_close(got, by_hand.loss(edited.hf, PAIRS, 1, 0.5 * v, ENDS), rtol=1e-5, atol=1e-6)


def test_a_peft_model_is_a_base() -> None:
    peft = pytest.importorskip("peft")
    hf = peft.get_peft_model(tiny(), peft.LoraConfig(target_modules=["q_proj"], r=2))
    v = vector()
    with EditedModel(inlay.load(hf), adding(v=v)) as edited:
        got = edited.eval()(**by_hand.batch(PAIRS)).loss
        assert edited.num_parameters(only_trainable=True) == WIDTH
    torch.testing.assert_close(got, by_hand.loss(tiny(), PAIRS, 1, v, ENDS), rtol=1e-5, atol=1e-6)
    assert any(p.requires_grad for n, p in hf.named_parameters() if "lora" in n)


def test_a_quantised_base_counts_as_one_with_adapters_on_top() -> None:
    hf = tiny()
    hf.is_quantized, hf.hf_quantizer = True, SimpleNamespace(is_trainable=True)
    with pytest.raises(ValueError, match="attach trainable adapters on top"):
        validate_quantization_for_training(hf)
    validate_quantization_for_training(EditedModel(inlay.load(hf), adding()))


# -- what is prompt ----------------------------------------------------------------------------------------------------


def test_what_lies_before_the_labels() -> None:
    labels = torch.tensor([[-100, -100, 5, -100, 7], [-100, 4, 5, -100, -100], [6, 6, -100, -100, -100], [-100] * 5])
    mask = torch.tensor([[0, 1, 1, 1, 1], [0, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
    found = before_labels(labels, mask, 5) & mask.bool()
    assert found.int().tolist() == [
        [0, 1, 0, 0, 0],  # up to the first label; an unlabelled token behind it is response
        [0, 1, 1, 0, 0],  # labelled from its first token, behind left padding: all prompt
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],  # nothing is asked: all prompt
    ]


@pytest.mark.parametrize("mask", ["prompt_mask", "completion_mask"])
def test_a_mask_of_the_batch_counts_more_than_labels(mask: str) -> None:
    v = vector()
    edited = EditedModel(frozen(), adding("response", v)).train()
    batch = by_hand.batch(PAIRS)
    prompt = torch.zeros_like(batch["input_ids"])
    prompt[:, :2] = 1
    given = {mask: prompt if mask == "prompt_mask" else batch["attention_mask"] - prompt}
    where = [list(range(2, len(p) + len(r))) for p, r in PAIRS]
    got = edited(**batch, **given).loss
    torch.testing.assert_close(got, by_hand.loss(edited.hf, PAIRS, 1, v, where), rtol=1e-5, atol=1e-6)


def test_training_without_a_word_on_what_is_prompt_is_an_error() -> None:
    batch = padded(rows(5, 3))
    edited = EditedModel(frozen(), adding("last")).train()
    with pytest.raises(TrainError, match=r"does not say which tokens are prompt.*prompt_mask"):
        edited(**batch)
    assert edited.eval()(**batch).logits.shape == (2, 5, VOCAB)
    assert EditedModel(frozen(), adding("all")).train()(**batch).logits.requires_grad


def test_packed_rows_are_refused_where_tokens_count() -> None:
    batch = padded(rows(6)) | {"cu_seq_lens_q": torch.tensor([0, 3, 6], dtype=torch.int32)}
    with pytest.raises(TrainError, match=r"packs several sequences into a row.*packing=False"):
        EditedModel(frozen(), adding("last"))(**batch)


def test_labels_of_another_shape() -> None:
    batch = by_hand.batch(PAIRS) | {"labels": torch.tensor([1, 0])}
    with pytest.raises(TrainError, match="give one label a token"):
        EditedModel(frozen(), adding())(**batch)


# -- the base ----------------------------------------------------------------------------------------------------------


def test_it_is_a_pretrained_model_with_the_parameters_of_the_edit() -> None:
    edited = EditedModel(frozen(), adding())
    assert isinstance(edited, PreTrainedModel) and edited.config is edited.hf.config
    assert edited.device.type == "cpu" and edited.get_input_embeddings() is edited.hf.get_input_embeddings()
    assert edited.num_parameters(only_trainable=True) == WIDTH
    assert edited.num_parameters() == WIDTH + edited.hf.num_parameters()
    assert [n for n, p in edited.named_parameters() if p.requires_grad] == ["edit.interventions.0.vector"]
    assert list(edited.state_dict()) == ["edit.interventions.0.vector"]


def test_print_trainable_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    edited = EditedModel(frozen(), adding())
    edited.print_trainable_parameters()
    every = edited.num_parameters()
    assert capsys.readouterr().out == (
        f"trainable params: {WIDTH} || all params: {every:,} || trainable%: {100 * WIDTH / every:.4f}\n"
    )


@pytest.mark.parametrize("training", [False, True])
def test_detach_gives_the_base_back_as_it_was(training: bool) -> None:
    hf = tiny("gpt2", attn_pdrop=0.1).train(training)
    hf.lm_head.weight.requires_grad_(False)
    record = Record(hf)
    with EditedModel(inlay.load(hf), adding()) as edited:
        edited.train(not training).gradient_checkpointing_enable({"use_reentrant": False})
        edited.enable_input_require_grads()
        edited.gradient_checkpointing_enable({"use_reentrant": False})
        for module in edited.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        edited.config.use_cache, edited.config.pad_token_id, edited.generation_config.eos_token_id = False, 5, 6
        edited.forward = edited.forward  # as accelerate and TRL set it
        edited(**by_hand.batch(PAIRS)).loss.backward()
    record.check()
    with pytest.raises(TrainError, match="was detached"):
        edited(**by_hand.batch(PAIRS))
    assert edited.detach() is edited.edit


def test_input_gradients_of_the_users_own_are_there_again() -> None:
    hf = tiny()
    hf.enable_input_require_grads()
    with EditedModel(inlay.load(hf), adding()) as edited:
        edited.gradient_checkpointing_enable()
    assert len(hf.get_input_embeddings()._forward_hooks) == 1
    hf.disable_input_require_grads()
    assert not hf.get_input_embeddings()._forward_hooks


def test_an_exception_inside_leaves_no_edit_in_force() -> None:
    edited = EditedModel(frozen(), adding()).eval()
    with pytest.raises(IndexError):
        edited(input_ids=torch.tensor([[VOCAB + 3] * 5]))
    want = by_hand.logits(edited.hf, PAIRS[0][0], 1, torch.zeros(WIDTH), [])
    torch.testing.assert_close(edited.hf(torch.tensor([PAIRS[0][0]])).logits[0], want)
    assert edited(torch.tensor([PAIRS[0][0]])).logits.shape == (1, 6, VOCAB)


def test_the_reference_is_the_base_without_the_edit() -> None:
    edited = EditedModel(frozen(), adding()).eval()
    reference = edited.reference()
    assert torch.equal(reference(**by_hand.batch(PAIRS)).logits, edited.hf(**by_hand.batch(PAIRS)).logits)
    assert not [p for p in reference.parameters() if p.requires_grad]
    assert {id(p) for p in reference.parameters()} == {id(p) for p in edited.hf.parameters()}


def test_an_edit_that_does_not_fit() -> None:
    with pytest.raises(SiteError, match="width"):
        EditedModel(frozen(), Edit("resid_post.1", Add(vector(width=5))))
    with pytest.raises(EditError, match="is not an Edit"):
        EditedModel(frozen(), Add(vector()))  # type: ignore[arg-type]


def test_a_module_that_is_no_hugging_face_model() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([nn.Linear(4, 4)])

        def forward(self, x: Tensor) -> Tensor:
            return self.blocks[0](x)

    model = inlay.load(Plain(), sites={"resid_post": "blocks.{layer}:out"}, example=torch.zeros(1, 2, 4))
    with pytest.raises(TrainError, match=r"is no Hugging Face model.*inlay\.train\.fit"):
        EditedModel(model, Edit("resid_post.0", Add(vector(width=4))))


def test_groups_of_an_optimiser() -> None:
    affine = inlay.Affine(torch.eye(WIDTH), torch.zeros(WIDTH))
    for name, tensor in affine.state().items():
        del affine._buffers[name]
        affine.register_parameter(name, nn.Parameter(tensor))
    bank = Bank([Add(vector(k)) for k in range(3)])
    edit = (
        Edit("resid_post.0", affine)
        + Edit("resid_post.1", bank)
        + Edit("mlp_out.0", Scale(nn.Parameter(torch.ones(()))))
    )
    decays, rest = EditedModel(frozen(), edit).parameter_groups(0.1)
    assert (decays["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    assert [tuple(p.shape) for p in decays["params"]] == [(WIDTH, WIDTH)]
    assert sorted(tuple(p.shape) for p in rest["params"]) == [(), (4, WIDTH), (WIDTH,)]


# -- disk --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_from_pretrained_brings_back_dtype_dropout_and_activation(dtype: torch.dtype, tmp_path: Path) -> None:
    made = Adapter(WIDTH, 3, p=0.25, act="tanh").to(dtype)
    with torch.no_grad():
        made.up.copy_(torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(1)))
    with EditedModel(frozen(), Edit("resid_post.*", made, tokens="last2", strength=0.5)) as edited:
        want = edited.eval()(**by_hand.batch(PAIRS)).logits
        edited.save_pretrained(tmp_path / "made")
    assert sum(file.stat().st_size for file in (tmp_path / "made").iterdir()) < 5_000
    again = EditedModel.from_pretrained(tmp_path / "made", frozen())
    (back,) = again.edit.interventions
    assert (back.p, back.act, back.up.dtype, back.training) == (0.25, "tanh", dtype, False)
    assert back.up.requires_grad and torch.equal(back.up, made.up) and torch.equal(back.down, made.down)
    assert torch.equal(again(**by_hand.batch(PAIRS)).logits, want)
    assert str(Edit.from_pretrained(tmp_path / "made")) == str(edited.edit)
    with EditedModel(frozen(), Edit("resid_post.*", made, tokens="last2", strength=0.5)) as other:
        other.train()
        torch.manual_seed(0)
        trained = other(**by_hand.batch(PAIRS)).logits
    torch.manual_seed(0)
    assert torch.equal(again.train()(**by_hand.batch(PAIRS)).logits, trained)


def test_ids_that_a_trainer_wrote_into_the_configuration_do_not_make_it_another_base(tmp_path: Path) -> None:
    edited = EditedModel(frozen(), adding())
    edited.config.eos_token_id = 3
    edited.save_pretrained(tmp_path)
    EditedModel.from_pretrained(tmp_path, frozen())
    with pytest.raises(FolderError, match="another configuration"):
        EditedModel.from_pretrained(tmp_path, frozen("gpt2"))


def test_parts_that_share_a_tensor_are_saved(tmp_path: Path) -> None:
    v = vector()
    edited = EditedModel(frozen(), adding(v=v) + Edit("resid_post.2", Add(v)))
    edited.save_pretrained(tmp_path)
    again = EditedModel.from_pretrained(tmp_path, frozen())
    first, second = again.edit.interventions
    assert first.vector is second.vector and torch.equal(first.vector, v)


def test_a_state_that_does_not_fit_changes_nothing() -> None:
    edited = EditedModel(frozen(), adding())
    before = edited.state_dict()["edit.interventions.0.vector"].clone()
    for state in ({}, {"edit.interventions.0.vector": torch.zeros(3)}, {**edited.state_dict(), "more": torch.zeros(1)}):
        with pytest.raises(TrainError, match="does not fit this EditedModel"):
            edited.load_state_dict(state, False)
    assert torch.equal(edited.state_dict()["edit.interventions.0.vector"], before)


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="there is no folder"):
        EditedModel.from_pretrained(tmp_path / "nowhere", frozen())
    adding().save(tmp_path / "edit")
    with pytest.raises(FolderError, match=r"model\.safetensors.*Edit\.from_pretrained"):
        EditedModel.from_pretrained(tmp_path / "edit", frozen())
    edited = EditedModel(frozen(), adding())
    edited.save_pretrained(tmp_path / "none", is_main_process=False)
    assert not (tmp_path / "none").exists()


def test_push_to_hub_uploads_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers.utils.hub as hub

    sent: dict[str, set[str]] = {}
    card = SimpleNamespace(save=lambda path: Path(path).write_text("card"))
    api = SimpleNamespace(create_repo=lambda repo_id, **_: SimpleNamespace(repo_id=repo_id))

    def upload(self: Any, folder: str, repo_id: str, **_: Any) -> None:
        sent[repo_id] = {file.name for file in Path(folder).iterdir()}
        assert json.loads((Path(folder) / "edit.json").read_text())["parts"][0]["site"] == "resid_post.1"

    monkeypatch.setattr(hub, "hf_api", lambda: api)
    monkeypatch.setattr(hub, "create_and_tag_model_card", lambda *_, **__: card)
    monkeypatch.setattr(hub.PushToHubMixin, "_upload_modified_files", upload)
    edited = EditedModel(frozen(), adding())
    edited.push_to_hub("me/edit")
    assert sent == {"me/edit": {"README.md", "edit.json", "edit.safetensors", "model.safetensors"}}


def test_save_pretrained_may_push(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sent: list[Any] = []
    monkeypatch.setattr(EditedModel, "push_to_hub", lambda self, repo, **kwargs: sent.append((repo, kwargs)))
    edited = EditedModel(frozen(), adding())
    edited.save_pretrained(tmp_path / "steers", push_to_hub=True)
    edited.save_pretrained(tmp_path / "steers", push_to_hub=True, repo_id="me/edit", private=True, max_shard_size="1GB")
    assert sent == [("steers", {}), ("me/edit", {"private": True})]


def test_a_folder_from_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    edited = EditedModel(frozen(), adding())
    edited.save_pretrained(tmp_path)

    def download(name: str, *, allow_patterns: list[str], **kwargs: Any) -> str:
        if name != "me/edit":
            raise OSError("no such repository")
        assert sorted(allow_patterns) == ["edit.json", "edit.safetensors", "model.safetensors"]
        assert kwargs == {"revision": "v1"}
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    again = EditedModel.from_pretrained("me/edit", frozen(), revision="v1")
    assert torch.equal(again.edit.interventions[0].vector, edited.edit.interventions[0].vector)
    with pytest.raises(FolderError, match="the hub did not give it: no such repository"):
        EditedModel.from_pretrained("me/other", frozen())


# -- generation --------------------------------------------------------------------------------------------------------


def greedy(hf: Any, ids: list[int], v: Tensor, where: list[int], new: int) -> list[int]:
    """The whole row computed anew for every token."""
    made = list(ids)
    for _ in range(new):
        made.append(int(by_hand.logits(hf, made, 1, v, where)[-1].argmax()))
    return made[len(ids) :]


def test_prompt_tokens_alone_leave_decoding_untouched() -> None:
    v = 3 * vector().detach()
    edited = EditedModel(frozen(), adding("last2", nn.Parameter(v))).eval()
    prompts = rows(6, 3, seed=5)
    batch = padded(prompts, "left")
    del batch["position_ids"]
    got = edited.generate(**batch, max_new_tokens=5, do_sample=False)[:, 6:].tolist()
    assert got == [greedy(edited.hf, ids, v, [len(ids) - 2, len(ids) - 1], 5) for ids in prompts]
    assert got != edited.hf.generate(**batch, max_new_tokens=5, do_sample=False)[:, 6:].tolist()
    with edited.model.edited(edited.edit) as run:
        edited.hf.generate(**batch, max_new_tokens=5, do_sample=False)
    assert run.touched == [4]  # two positions of two prompts, and none while decoding


def test_the_cached_generation_equals_the_full_recomputation() -> None:
    v = 3 * vector().detach()
    edited = EditedModel(frozen(), adding("all", nn.Parameter(v))).eval()
    batch = padded(rows(6, 3, seed=5), "left")
    del batch["position_ids"]
    cached, anew = (
        edited.generate(**batch, max_new_tokens=5, do_sample=False, use_cache=use_cache) for use_cache in (True, False)
    )
    assert torch.equal(cached, anew)
    assert not torch.equal(cached, edited.reference().generate(**batch, max_new_tokens=5, do_sample=False))


def test_beams_of_a_batch_are_those_of_its_rows_alone() -> None:
    bank = Bank([Add(nn.Parameter(3 * vector(k).detach())) for k in range(2)])
    edited = EditedModel(frozen(), Edit("resid_post.1", bank, tokens="last2")).eval()
    prompts, chosen = rows(6, 3, seed=5), [2, 1]
    batch = padded(prompts, "left")
    del batch["position_ids"]
    options = {"max_new_tokens": 4, "num_beams": 3, "do_sample": False}
    got = edited.generate(**batch, rows=chosen, **options)[:, 6:].tolist()
    alone = [
        edited.generate(input_ids=torch.tensor([ids]), rows=[row], **options)[0, len(ids) :].tolist()
        for ids, row in zip(prompts, chosen, strict=True)
    ]
    assert got == alone and LAYERS > 1
