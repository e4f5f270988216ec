"""LoRA Edits as adapters of `peft`, and back."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

from inlay.errors import EditError, ExtraError
from inlay.interventions.edit import Edit, Part
from inlay.interventions.lora import LoRA, widths
from inlay.model.running import expanded
from inlay.model.sites import Site
from inlay.model.tokens import Tokens

if TYPE_CHECKING:
    from inlay.model.model import Model


def to_peft(edit: Edit, model: Model, adapter: str = "default") -> Any:
    """A `peft.PeftModel` of a copy of the model that computes what it does under the Edit.

    Args:
        edit: an Edit of `LoRA`s, each at all tokens of a linear module's output.
        model: the Model; its weights are copied, not changed.
        adapter: the adapter's name.

    Returns:
        The PeftModel, with peft's own `LoraConfig`; `save_pretrained` writes the adapter alone.

    Raises:
        EditError: a part is no such LoRA, two parts share a module, or their dropouts differ.
        ExtraError: peft is not installed.
    """
    peft = _peft()
    parts = _targets(model, edit)
    loras = {path: lora for path, (lora, _) in parts.items()}
    drops = {lora.dropout for lora in loras.values()}
    if len(drops) > 1:
        raise EditError(f"peft has one dropout for all modules, and these LoRAs have {sorted(drops)}")
    rslora = all(lora.rslora for lora in loras.values())
    alphas = {path: _alpha(lora, strength, rslora) for path, (lora, strength) in parts.items()}
    first = next(iter(loras))
    base = copy.deepcopy(model.base)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM" if hasattr(base, "prepare_inputs_for_generation") else None,
        target_modules=list(loras),
        r=loras[first].rank(),
        lora_alpha=alphas[first],
        rank_pattern={path: lora.rank() for path, lora in loras.items()},
        alpha_pattern=alphas,
        lora_dropout=drops.pop(),
        use_rslora=rslora,
        fan_in_fan_out=type(base.get_submodule(first)).__name__ == "Conv1D",
    )
    made = peft.get_peft_model(base, config, adapter_name=adapter)
    with torch.no_grad():
        for path, lora in loras.items():
            layer: Any = made.get_base_model().get_submodule(path)
            layer.lora_A[adapter].weight.copy_(lora.down.T)
            layer.lora_B[adapter].weight.copy_(lora.up.T)
    return made.train(edit.training)


def from_peft(peft_model: Any, adapter: str | None = None) -> Edit:
    """The Edit that does to the plain model what a LoRA adapter of `peft` does.

    Args:
        peft_model: a `peft.PeftModel` with a LoRA adapter; its tensors are copied.
        adapter: which adapter; by default the active one.

    Raises:
        EditError: it is no plain LoRA of linear modules (DoRA, trained biases or embeddings, merged weights).
        ExtraError: peft is not installed.
    """
    peft = _peft()
    name = peft_model.active_adapter if adapter is None else adapter
    config = peft_model.peft_config.get(name)
    if config is None:
        raise EditError(f"there is no adapter {name!r}: {', '.join(peft_model.peft_config)}")
    if config.peft_type != peft.PeftType.LORA:
        raise EditError(f"adapter {name!r} is {config.peft_type}, and LoRA alone is an Edit")
    for option in (
        "bias",
        "modules_to_save",
        "trainable_token_indices",
        "alora_invocation_tokens",
        "layer_replication",
    ):
        if getattr(config, option, None) not in (None, "none", []):
            raise EditError(f"adapter {name!r} has {option}={getattr(config, option)!r}, which no LoRA Edit holds")
    parts: list[Part] = []
    for path, module in peft_model.get_base_model().named_modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            if name in module.lora_embedding_A:
                raise EditError(f"{path}: LoRA of an embedding is no intervention on a linear module")
            if name in module.lora_A:
                lora = _lora(path, module, name, config)
                parts.append(Part(Site.parse(f"module:{path}:out"), Tokens.parse("all"), lora))
    if not parts:
        raise EditError(f"adapter {name!r} has no LoRA modules")
    return Edit.of(tuple(parts)).train(peft_model.training)


def _lora(path: str, module: Any, name: str, config: Any) -> LoRA:
    if module.merged:
        raise EditError(f"{path}: the adapter is merged into the weights; call unmerge_adapter() first")
    if name in module.lora_variant or module.lora_bias.get(name):
        raise EditError(f"{path}: DoRA and other variants of LoRA are no plain low-rank product")
    down, up, scale = module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name]
    if down.ndim != 2:
        raise EditError(f"{path}: LoRA of a {type(module.get_base_layer()).__name__} is not one of a linear module")
    rank, dropout = len(down), getattr(module.lora_dropout[name], "p", 0.0)
    lora = LoRA(*widths(module), rank, module.lora_alpha[name], config.use_rslora, dropout)
    if abs(lora.scale() - scale) > 1e-12 * abs(scale):  # peft's set_scale
        lora = LoRA(*widths(module), rank, scale * rank, dropout=dropout)
    with torch.no_grad():
        lora.down.copy_(down.T)
        lora.up.copy_(up.T)
    return lora


def _targets(model: Model, edit: Edit) -> dict[str, tuple[LoRA, float | None]]:
    """Each part's LoRA and strength, by the path of its module.

    Raises:
        EditError: a part is no LoRA at all tokens of a linear module.
    """
    found: dict[str, tuple[LoRA, float | None]] = {}
    for part in expanded(model, edit):
        if type(part.intervention) is not LoRA:
            raise EditError(f"peft holds LoRA, and a part of the Edit is {part}")
        if not part.tokens.everything or part.when is not None or part.joint:
            raise EditError(f"a LoRA of peft acts at every token, and a part of the Edit is {part}")
        path = _path(model, part.site)
        if path in found:
            raise EditError(f"peft holds one adapter a module, and two parts of the Edit act on {path}")
        found[path] = part.intervention, part.strength
    return found


def _path(model: Model, site: Site) -> str:
    """The linear module whose whole output a Site is."""
    if site.name == "module":
        path, whole = site.path, site.side == "out"
    else:
        place = model.sites().place(site)
        path, whole = place.path, place.side == "out" and not place.columns
    widths(model.base.get_submodule(path))
    if not whole:
        raise EditError(f"peft adapts whole linear modules, and {site} is a part of the output of {path}, or its input")
    return path


def _alpha(lora: LoRA, strength: float | None, rslora: bool) -> float:
    """peft's alpha for the scale and the part's strength; `rslora`: peft divides it by sqrt(r), else by r."""
    alpha = float(lora.rank()) if lora.alpha is None else lora.alpha
    if lora.rslora and not rslora:
        alpha *= lora.rank() ** 0.5
    return alpha * (1.0 if strength is None else strength)


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ExtraError("adapters of peft need it: pip install 'inlay[train]'") from error
    return peft
