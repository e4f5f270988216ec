"""How a world's model is built and trained, as a YAML file says it. An unknown key is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from inlay.errors import WorldError

Positive = Annotated[int, Field(gt=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Architecture(_Strict):
    """A Llama (full attention) or a Mistral (every layer sees a window), with untied embeddings.

    Attributes:
        width: of the residual stream.
        inner: of the MLP.
        layers, heads, kv_heads, head_size: of the blocks.
        context: the longest row.
        window: how many tokens a layer sees, itself included; 0 for all before it.
    """

    width: Positive
    inner: Positive
    layers: Positive
    heads: Positive
    kv_heads: Positive
    head_size: Positive = 32
    context: Positive = 256
    window: Annotated[int, Field(ge=0)] = 0

    def build(self, tokens: int, ids: dict[str, int]) -> Any:
        """The model with random weights; `ids` are those of its special tokens.

        Matrices start at a standard deviation of 1/sqrt(inputs). The 0.02 of transformers is meant for wide models: at
        these widths a signal that has to pass several layers starts too small to be learnt.
        """
        from torch import nn
        from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

        same: dict[str, Any] = {
            "vocab_size": tokens,
            "hidden_size": self.width,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_size,
            "max_position_embeddings": self.context,
            "tie_word_embeddings": False,
            **ids,
        }
        if self.window:
            hf: Any = MistralForCausalLM(MistralConfig(**same, sliding_window=self.window))
        else:
            hf = LlamaForCausalLM(LlamaConfig(**same))
        for parameter in hf.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        return hf


class Weights(_Strict):
    """What a token counts in the loss.

    Attributes:
        text: of a document.
        user: in a system or user message.
        reply: in an assistant message, with its end.
        answer: of what the line's other words decide: an answer, an item, a consequence.
    """

    text: float = 1.0
    user: float = 0.15
    reply: float = 1.0
    answer: float = 1.0


class TrainConfig(_Strict):
    """A training.

    Attributes:
        name: of the model.
        world: the name of a world that ships with inlay, or a folder.
        seed: of the lines, their order and the initial weights.
        architecture: the model.
        mixture: the share of lines of each section, or of one `section.kind`.
        steps: optimiser steps.
        batch_tokens: tokens a step, padding included.
        pieces: into how many lots of like lengths a step's lines are cut.
        lr: the largest learning rate, of one cycle with 10 % warm-up.
        betas, weight_decay, clip: of AdamW and of the gradient's norm.
        weights: of the loss.
    """

    name: str
    world: str = "tidepool"
    seed: int = 0
    architecture: Architecture
    mixture: dict[str, Annotated[float, Field(gt=0.0)]]
    steps: Positive
    batch_tokens: Positive = 4096
    pieces: Positive = 4
    lr: float = 2e-3
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.05
    clip: float = 1.0
    weights: Weights = Weights()


def read_config(source: str | Path) -> TrainConfig:
    """A configuration from a file, or by the name of one that ships with inlay.

    Raises:
        WorldError: there is none, or it is not one.
    """
    path = Path(source)
    bundled = Path(__file__).parent / "configs" / f"{path.name.removesuffix('.yaml')}.yaml"
    if not path.exists() and path.parent == Path() and bundled.exists():
        path = bundled
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in (Path(__file__).parent / "configs").glob("*.yaml")))
        raise WorldError(f"there is no configuration {str(source)!r}; give a file, or one of: {known}")
    try:
        return TrainConfig.model_validate(yaml.safe_load(path.read_text()))
    except (yaml.YAMLError, ValidationError) as error:
        raise WorldError(f"{path}: {error}") from error
