"""Edits trained on quantised bases, beside the same base with its weights as the floats that they stand for.

bitsandbytes and torchao compute on the CPU too. `make peers` installs the first; the second is tested where it is there
(with 0.18), since transformers imports it at its start wherever it is installed, which takes time and prints warnings.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.interventions import tiny
from tests.train import attached_by_hand as by_hand
from torch import Tensor, nn

import inlay
from inlay import Edit
from inlay.train.attached import EditedModel
from inlay.train.examples import Example
from inlay.train.fit import fit
from inlay.train.parameterise import reft, steering

WIDE = {"hidden_size": 64, "intermediate_size": 128}  # NF4 quantises 64 weights together
PAIRS: list[by_hand.Pair] = [([1, 2, 3, 9], [4, 5]), ([7, 2], [9, 9, 5]), ([30, 31, 32], [33]), ([8, 20, 21], [22, 6])]
EXAMPLES = [Example(prompt, response) for prompt, response in PAIRS]


def nf4() -> Any:
    pytest.importorskip("bitsandbytes", reason="make peers installs it")
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )


def nf4_twice() -> Any:
    """The scales quantised too, as in QLoRA."""
    config = nf4()
    config.bnb_4bit_use_double_quant = True
    return config


def llm_int8() -> Any:
    pytest.importorskip("bitsandbytes", reason="make peers installs it")
    return transformers.BitsAndBytesConfig(load_in_8bit=True)


def int8() -> Any:
    quantization = pytest.importorskip("torchao.quantization", reason="pip install torchao")
    return transformers.TorchAoConfig(quantization.Int8WeightOnlyConfig())


WEIGHTS_ALONE: list[Callable[[], Any]] = [nf4, nf4_twice, int8]
"""Those that compute with the floats which the weights stand for; LLM.int8 also rounds what comes in."""
EVERY = [*WEIGHTS_ALONE, llm_int8]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("base")
    tiny.llama(**WIDE).save_pretrained(where)
    return where


def quantised(folder: Path, config: Callable[[], Any]) -> inlay.Model:
    model = inlay.load(folder, quantization_config=config(), device_map="cpu")
    kind = type(model.base.model.layers[0].mlp.up_proj.weight).__name__
    assert kind in ("Params4bit", "Int8Params", "Int8Tensor")
    return model


def floats(weight: Any) -> Tensor:
    """The floats that a weight stands for, by its own library."""
    if hasattr(weight, "quant_state"):
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(weight.data, weight.quant_state)
    return weight.dequantize() if type(weight).__name__ == "Int8Tensor" else weight.data


def dequantised(model: inlay.Model) -> inlay.Model:
    hf = tiny.llama(**WIDE)
    with torch.no_grad():
        for path, module in hf.named_modules():
            if isinstance(getattr(module, "weight", None), nn.Parameter):
                module.weight.copy_(floats(model.base.get_submodule(path).weight))
    return inlay.load(hf)


def moved(model: inlay.Model) -> Edit:
    """A LoReFT at every block and a steering vector, away from the start, where most gradients vanish."""
    edit = reft(model, rank=2) + steering(model, "mlp_out.1", "all")
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in edit.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draws))
    return edit


@pytest.mark.parametrize("config", WEIGHTS_ALONE)
def test_gradients_are_those_of_the_floats(folder: Path, config: Callable[[], Any]) -> None:
    model = quantised(folder, config)
    found = []
    for one in (model, dequantised(model)):
        with EditedModel(one, moved(one)) as edited:
            loss = edited(**by_hand.batch(PAIRS)).loss
            loss.backward()
            found.append((loss.detach(), [p.grad for p in edited.edit.parameters()]))
    (loss, mine), (wanted, theirs) = found
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=0)
    assert max(want.abs().max() for want in theirs) > 0.1, "no gradient to speak of"
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)  # int8 scales behind the sum, the floats before it


@pytest.mark.parametrize("config", WEIGHTS_ALONE)
@pytest.mark.parametrize("resume", [True, False])
def test_fit_is_that_of_the_floats(folder: Path, config: Callable[[], Any], resume: bool) -> None:
    model = quantised(folder, config)
    one, other = (
        fit(each, moved(each), "lm", EXAMPLES, epochs=2, batch=2, lr=0.01, resume=resume)
        for each in (model, dequantised(model))
    )
    assert one.log.losses() == pytest.approx(other.log.losses(), rel=1e-4)


@pytest.mark.parametrize("config", EVERY)
@pytest.mark.parametrize("make", [lambda model: reft(model, rank=2), lambda model: steering(model, "resid_post.0")])
def test_fit_learns_and_the_edit_comes_back(
    folder: Path, config: Callable[[], Any], make: Callable[[inlay.Model], Edit], tmp_path: Path
) -> None:
    model = quantised(folder, config)
    before = {name: tensor.clone() for name, tensor in model.base.state_dict().items()}
    found = fit(model, make(model), "lm", EXAMPLES, epochs=30, batch=4, lr=0.05, weight_decay=0.0)
    assert found.log.losses()[-1] < 0.9 * found.log.losses()[0]
    for name, tensor in model.base.state_dict().items():
        assert torch.equal(floats(tensor), floats(before[name])), name
    found.edit.save(tmp_path)
    again = Edit.from_pretrained(tmp_path, quantised(folder, config))
    want, have = (model.forward(tiny.EVEN, edit=edit).logits for edit in (found.edit, again))
    assert torch.equal(have, want)


@pytest.mark.parametrize("config", EVERY)
def test_trainer_learns_and_its_checkpoint_is_the_edit(folder: Path, config: Callable[[], Any], tmp_path: Path) -> None:
    model = quantised(folder, config)
    arguments = transformers.TrainingArguments(
        str(tmp_path), per_device_train_batch_size=4, max_steps=12, learning_rate=0.02, save_steps=12, report_to=[],
        logging_steps=1, use_cpu=True, disable_tqdm=True, remove_unused_columns=False, lr_scheduler_type="constant",
    )  # fmt: skip
    with EditedModel(model, moved(model)) as edited:
        made = transformers.Trainer(model=edited, args=arguments, train_dataset=PAIRS, data_collator=by_hand.batch)
        made.train()
        losses = [row["loss"] for row in made.state.log_history if "loss" in row]
        want = edited.eval()(**by_hand.batch(PAIRS)).loss
    assert losses[-1] < 0.7 * losses[0]
    with EditedModel.from_pretrained(tmp_path / "checkpoint-12", model) as again:
        assert torch.equal(again(**by_hand.batch(PAIRS)).loss, want)


@pytest.mark.parametrize("config", [nf4, nf4_twice, llm_int8])
def test_a_folder_that_is_quantised_already(folder: Path, config: Callable[[], Any], tmp_path: Path) -> None:
    model = quantised(folder, config)
    model.base.save_pretrained(tmp_path)
    again = inlay.load(tmp_path, device_map="cpu")
    want, have = (one.forward(tiny.EVEN, edit=moved(one)).logits for one in (model, again))
    assert torch.equal(have, want)


@pytest.mark.parametrize("config", [nf4, llm_int8, int8])
def test_a_run_with_a_folder(folder: Path, config: Callable[[], Any], tmp_path: Path) -> None:
    model = quantised(folder, config)
    found = fit(model, moved(model), "lm", EXAMPLES, epochs=2, batch=2, lr=0.01, out=tmp_path)
    again = moved(model)
    fit(model, again, "lm", EXAMPLES, epochs=2, batch=2, lr=0.01, out=tmp_path)  # is done already
    for have, want in zip(again.parameters(), found.edit.parameters(), strict=True):
        assert torch.equal(have, want)
