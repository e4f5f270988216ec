"""The same training steps by pyreft, by peft, and by hand. Nothing here uses inlay.

Dims: R rows, T tokens, d width, r rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import Any

import torch
from random_llama import inputs
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from train_loop import ADAM


def missing(package: str) -> str | None:
    """Why a peer has nothing to measure."""
    if find_spec(package):
        return None
    how = "pip install --no-deps pyreft==0.1.0, behind make peers" if package == "pyreft" else f"pip install {package}"
    return f"{package} is not installed: {how}"


# -- modules -----------------------------------------------------------------------------------------------------------


class ByHand(nn.Module):
    """LoReFT with a thin QR and nothing else: h + (h D + b - h R) R^T, in two products of h."""

    def __init__(self, raw: Tensor, down: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.raw, self.down, self.bias = (nn.Parameter(tensor.detach().clone()) for tensor in (raw, down, bias))

    def ready(self) -> tuple[Tensor, Tensor, Tensor]:
        """What a forward needs of the parameters."""
        columns, upper = torch.linalg.qr(self.raw)
        basis = columns * upper.diagonal().sign()
        return self.down - basis, self.bias, basis.T

    def forward(self, h: Tensor) -> Tensor:
        """h [..., d] to h' [..., d]."""
        read, bias, write = self.ready()
        return h + (h @ read + bias) @ write


def loreft(raw: Tensor, down: Tensor, bias: Tensor) -> Any:
    """pyreft's module with the same directions [d, r], D [d, r] and b [r], in float32."""
    from pyreft import LoreftIntervention

    width, rank = raw.shape
    made = LoreftIntervention(embed_dim=width, low_rank_dimension=rank, dtype=torch.float32)
    with torch.no_grad():
        made.rotate_layer.weight = raw.detach().clone()  # its parametrization makes its own state of it
        made.learned_source.weight.copy_(down.T)
        made.learned_source.bias.copy_(bias)
    return made


def lora_linear(width: int, rank: int) -> Any:
    """peft's LoRA of one frozen square projection."""
    import peft

    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Linear(width, width, bias=False)

        def forward(self, h: Tensor) -> Tensor:
            projected: Tensor = self.proj(h)
            return projected

    return peft.get_peft_model(One(), peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=["proj"]))


def module_step(module: nn.Module, h: Tensor, back: Tensor) -> Callable[[], Tensor]:
    """Forward, backward and AdamW of one module.

    Args:
        module: h to h'.
        h: the positions, [R, T, d]; what lies below them wants their gradient.
        back: the gradient that comes from above, [R, T, d].
    """
    mine = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer, given = torch.optim.AdamW(mine, **ADAM), h.clone().requires_grad_()

    def step() -> Tensor:
        optimizer.zero_grad()
        given.grad = None
        found: Tensor = module(given)
        found.backward(back)
        optimizer.step()
        return found.detach()

    return step


# -- steps of a whole model --------------------------------------------------------------------------------------------


def _stepped(parameters: Iterable[nn.Parameter], loss: Callable[[], Tensor]) -> Callable[[], float]:
    """Loss, backward, clipping to norm 1, AdamW; gives the loss before the step."""
    mine = [parameter for parameter in parameters if parameter.requires_grad]
    optimizer = torch.optim.AdamW(mine, **ADAM)

    def step() -> float:
        optimizer.zero_grad()
        found = loss()
        found.backward()
        clip_grad_norm_(mine, 1.0)
        optimizer.step()
        return float(found.detach())

    return step


def _narrow(hf: Any, ids: Tensor, prompt: int) -> Callable[[], Tensor]:
    """The mean cross entropy of the responses, with the head on the positions that predict them alone."""
    arguments, answers = inputs(ids), ids[:, prompt:]
    kept = torch.arange(
        prompt - 1, ids.shape[1] - 1
    )  # as a number it would be a slice: one product a row, half as fast

    def loss() -> Tensor:
        logits = hf(**arguments, logits_to_keep=kept).logits
        return cross_entropy(logits.flatten(0, 1), answers.flatten())

    return loss


def by_hand(hf: Any, modules: list[ByHand], ids: Tensor, prompt: int, where: Tensor) -> Callable[[], float]:
    """The floor: a hook on every block that changes the positions `where`, [k]."""
    loss = _narrow(hf, ids, prompt)

    def hooked() -> Tensor:
        def change(module: ByHand) -> Any:
            read, bias, write = module.ready()
            return lambda _, __, h: h.index_add(1, where, (h[:, where] @ read + bias) @ write)

        pairs = zip(hf.model.layers, modules, strict=True)
        handles = [block.register_forward_hook(change(module)) for block, module in pairs]
        try:
            return loss()
        finally:
            for handle in handles:
                handle.remove()

    return _stepped((p for module in modules for p in module.parameters()), hooked)


def by_pyreft(hf: Any, modules: list[Any], ids: Tensor, prompt: int, where: Tensor) -> Callable[[], float]:
    """What pyreft's trainer does in a step: its ReftModel with labels, on a model of its own, which it freezes."""
    import pyreft

    rank = modules[0].learned_source.out_features
    parts = [
        {"layer": layer, "component": "block_output", "low_rank_dimension": rank, "intervention": module}
        for layer, module in enumerate(modules)
    ]
    wrapped = pyreft.get_reft_model(hf, pyreft.ReftConfig(representations=parts))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    labels = ids.clone()
    labels[:, :prompt] = -100
    places = {"sources->base": (None, [[where.tolist()] * len(ids)] * len(modules))}

    def loss() -> Tensor:
        found: Tensor = wrapped(batch, unit_locations=places, labels=labels)[1].loss
        return found

    return _stepped(wrapped.parameters(), loss)


def by_peft(hf: Any, rank: int, starts: list[Tensor], ids: Tensor, prompt: int) -> Callable[[], float]:
    """peft's LoRA of every block's o_proj with the given A, each [d, r], on a model of its own."""
    import peft

    config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=["o_proj"], task_type="CAUSAL_LM")
    wrapped = peft.get_peft_model(hf, config)
    with torch.no_grad():
        for block, start in zip(wrapped.get_base_model().model.layers, starts, strict=True):
            block.self_attn.o_proj.lora_A["default"].weight.copy_(start.T)
    return _stepped(wrapped.parameters(), _narrow(wrapped, ids, prompt))
