"""A base model behind transformers' interface, and a record of what a trainer changes on it."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from inlay.errors import TrainError

if TYPE_CHECKING:
    from inlay.model.model import Model


class Unedited(PreTrainedModel):
    """A model as it is, in a module of its own.

    Trainers set a module's `forward` anew (`accelerate` for autocast, TRL for its fused head). They set it here, and
    the model's own stays what it was. All weights are shared with the model.

    Args:
        model: the Model; its `hf` is a Hugging Face model, also inside a `peft` or `torch.compile` wrapper.

    Raises:
        TrainError: the model has no Hugging Face configuration.
    """

    _hf_peft_config_loaded = True  # "a quantised base with trainable adapters on top", which trainers accept

    def __init__(self, model: Model) -> None:
        nn.Module.__init__(self)  # PreTrainedModel's own would pick an attention implementation in the base's config
        config = getattr(model.base, "config", None)
        if not isinstance(config, PreTrainedConfig) or not isinstance(model.base, PreTrainedModel):
            raise TrainError(
                f"{type(model.base).__name__} is no Hugging Face model, which trainers of transformers and TRL expect; "
                "train the edit with inlay.train.fit, or in a loop of your own with model.edited(edit)"
            )
        self.model, self.config = model, config
        self.name_or_path, self.loss_type = config.name_or_path, model.base.loss_type
        self.main_input_name = model.base.main_input_name
        self.accepts_loss_kwargs = _takes_any(model.base)
        self.hf = model.hf

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own forward."""
        return self.hf(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own `generate`."""
        hf: Any = self.hf
        return hf.generate(*args, **kwargs)

    # -- what transformers and TRL ask of a model ---------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        """What is not here is the base's, private names excepted."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or name == "hf":
                raise
            return getattr(self.model.base, name)

    @property
    def base_model(self) -> Any:
        """The model without its head."""
        base: Any = self.model.base
        return base.base_model

    def can_generate(self) -> bool:  # type: ignore[override]  # which of the two it is depends on the base
        """Whether the base generates."""
        base: Any = self.model.base
        return bool(base.can_generate())

    def get_input_embeddings(self) -> Any:
        """The base's."""
        base: Any = self.model.base
        return base.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        """The base's, `None` where it has a head of another kind."""
        base: Any = self.model.base
        return base.get_output_embeddings()

    def enable_input_require_grads(self) -> None:
        """Make the embeddings' output require a gradient, as the base does it."""
        base: Any = self.model.base
        base.disable_input_require_grads()  # a second call would lose the first one's hooks
        base.enable_input_require_grads()

    def disable_input_require_grads(self) -> None:
        """Undo `enable_input_require_grads`."""
        base: Any = self.model.base
        base.disable_input_require_grads()

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: Any = None, every_n_layers: int = 1, offload: bool = False
    ) -> None:
        """Recompute the blocks' activations in backward, `use_reentrant` or not."""
        base: Any = self.model.base
        base.disable_input_require_grads()  # which it may enable once more
        base.activation_checkpointing_enable(activation_checkpointing_kwargs, every_n_layers, offload)

    def activation_checkpointing_disable(self) -> None:
        """Undo `activation_checkpointing_enable`."""
        base: Any = self.model.base
        base.activation_checkpointing_disable()

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Any = None, **kwargs: Any) -> None:
        """`activation_checkpointing_enable`, under the name that TRL calls."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **kwargs)

    def gradient_checkpointing_disable(self) -> None:
        """`activation_checkpointing_disable`, under the name that TRL calls."""
        self.activation_checkpointing_disable()

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether a block's activations are recomputed in backward."""
        return bool(self.is_activation_checkpointing)

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        """What DistributedDataParallel is not to broadcast: DTensors, of which each process has a shard."""
        return [name for name, parameter in self.named_parameters() if hasattr(parameter, "placements")]

    def _get_name(self) -> str:
        """The base's class: the Trainer's label smoothing knows by it whether labels are shifted.

        `fully_shard` puts one of its own making before it.
        """
        names = [kind.__name__ for kind in type(self.model.base).__mro__]
        return names[names.index("FSDPModule") + 1] if "FSDPModule" in names else names[0]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model!r})"


def _takes_any(base: nn.Module) -> bool:
    """Whether a model's loss takes `num_items_in_batch`, by transformers' own rule."""
    stated = getattr(base, "accepts_loss_kwargs", None)
    if stated is not None:
        return bool(stated)
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(base.forward).parameters.values())


_HOOKS = "_require_grads_hooks"
_CHANGED = ("training", "p", "gradient_checkpointing", "_gradient_checkpointing_func")
"""The attributes of a model's modules that trainers set: modes, the p of dropout, checkpointing."""


class Before:
    """What a model was before it was trained on: those attributes, `requires_grad`, input gradients, configuration.

    Args:
        hf: the model, with whatever wraps it.
        base: the Hugging Face model inside.
        kept: parameters of which the values are kept too.
    """

    def __init__(self, hf: nn.Module, base: PreTrainedModel, kept: dict[str, nn.Parameter]) -> None:
        self.base, self.inputs = base, getattr(base, _HOOKS, None)
        self.attributes = [
            (vars(module), {k: v for k, v in vars(module).items() if k in _CHANGED}) for module in hf.modules()
        ]
        self.required = [(parameter, parameter.requires_grad) for parameter in hf.parameters()]
        self.values: list[tuple[nn.Parameter, Tensor]] = [(p, p.detach().clone()) for p in kept.values()]
        named = (base.config, base.config.get_text_config(), getattr(base, "generation_config", None))
        self.configs = [(vars(config), dict(vars(config))) for config in named if config is not None]

    def restore(self) -> None:
        """Put it back."""
        if getattr(self.base, _HOOKS, None) is not self.inputs:
            self.base.disable_input_require_grads()
            if self.inputs is None:
                delattr(self.base, _HOOKS)
            elif self.inputs:
                self.base.enable_input_require_grads()
        for now, before in self.attributes:
            for name in now.keys() & set(_CHANGED) - before.keys():
                del now[name]
            now.update(before)
        with torch.no_grad():
            for parameter, value in self.values:
                parameter.copy_(value)
                parameter.grad = None
        for parameter, required in self.required:
            parameter.requires_grad_(required)
        for now, before in self.configs:
            now.clear()
            now.update(before)
